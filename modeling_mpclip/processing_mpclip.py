"""MPCLIPProcessor: texts, images and video frames -> tensors. Needs no torchvision."""

from pathlib import Path
from typing import Unpack

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

# Not from the top level: there transformers 5.17 puts a stand-in that demands torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.processing_utils import ProcessingKwargs
from transformers.video_utils import is_valid_video

from .checkpoint_guard import refuse_old_versions
from .hub_card import CARD, card_in, is_form
from .model_options import MAX_TEXT_LENGTH
from .prompt_tree import add_adaptive_tokens

refuse_old_versions()  # a processor is also loaded alone


class MPCLIPProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of `MPCLIPProcessor.__call__`; the tokenizer's own settings come before these defaults."""

    _defaults = {"text_kwargs": {"padding": True, "return_tensors": "pt"}, "images_kwargs": {"return_tensors": "pt"}}


class MPCLIPProcessor(ProcessorMixin):
    """Tokenizer and image processor as one.

    Args:
        image_processor: of the vision encoder.
        tokenizer: of the LLM, with the [APT-i] tokens. The prompts are not its business: the model appends them.
    """

    valid_processor_kwargs = MPCLIPProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained_towers(
        cls, text: str, vision: str, templates: list[str], max_text_length: int = MAX_TEXT_LENGTH
    ) -> "MPCLIPProcessor":
        """The processor that belongs to `MPCLIPModel.from_pretrained_towers(text, vision, templates=templates)`.

        Args:
            text, vision: Hub id or folder of each tower.
            templates: the prompt templates, negated ones included; their [APT-i] join the tokenizer.
            max_text_length: tokens a text is cut to when truncation is asked for, prompts not counted.
        """
        tokenizer = AutoTokenizer.from_pretrained(text)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.model_max_length = max_text_length
        add_adaptive_tokens(tokenizer, templates)
        # torchvision is optional here, and its absence would be announced at every load.
        return cls(AutoImageProcessor.from_pretrained(vision, backend="pil"), tokenizer)

    def __call__(self, images=None, text=None, videos=None, **kwargs: Unpack[MPCLIPProcessorKwargs]) -> BatchFeature:
        """
        Args:
            images: one image or a list of B (PIL, numpy or torch).
            text: one string or a list of them.
            videos: one video or a list of B, each a list or array of frames; frames need not be equally many.
            kwargs: for the tokenizer or the image processor, flat or as `text_kwargs` and `images_kwargs`; by default texts are
                padded and tensors are torch's. Frames are processed as images.

        Returns:
            `input_ids`, `attention_mask` (B, N); `pixel_values` (B, C, H, W); `pixel_values_videos` (B, T, C, H, W) with
            `frame_mask` (B, T) - for whichever input was given.
        """
        if images is None and text is None and videos is None:
            raise ValueError("Nothing to process: give text, images or videos.")
        batch = BatchFeature()
        if images is not None or text is not None:
            batch.update(super().__call__(images=images, text=text, **kwargs))
        if videos is not None:
            batch.update(self._videos([videos] if is_valid_video(videos) else videos, **kwargs))
        return batch

    def _videos(self, videos: list, **kwargs) -> dict[str, torch.Tensor]:
        lengths = [len(frames) for frames in videos]
        if 0 in lengths:
            raise ValueError(f"The videos {[i for i, length in enumerate(lengths) if length == 0]} have no frame.")
        frames = [frame for video in videos for frame in video]
        pixels = torch.as_tensor(super().__call__(images=frames, **kwargs)["pixel_values"])  # (sum of lengths, C, H, W)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, T)
        padded = pixels.new_zeros(*mask.shape, *pixels.shape[1:])  # (B, T, C, H, W)
        padded[mask] = pixels
        return {"pixel_values_videos": padded, "frame_mask": mask.long()}

    def save_pretrained(self, save_directory, *args, **kwargs) -> list[str]:
        """As in the base class, but the last call's truncation, which the tokenizer keeps, does not become a default."""
        if self.tokenizer.is_fast:
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id: str, files_timestamps: dict, *args, **kwargs):
        # As in the model; the card is the model's to write, which knows what to say.
        if CARD not in files_timestamps and is_form(card_in(working_dir)):
            Path(working_dir, CARD).unlink()
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "frame_mask"]


MPCLIPProcessor.register_for_auto_class()  # `save_pretrained` then writes the code beside the weights
