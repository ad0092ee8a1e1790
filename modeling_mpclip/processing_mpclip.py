"""MPCLIPProcessor: texts, images and video frames -> tensors. Needs no torchvision."""

from pathlib import Path
from typing import Unpack

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

# Not imported from `transformers` itself: version 5.17 has a placeholder there that requires torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.processing_utils import ProcessingKwargs
from transformers.video_utils import is_valid_video

from .checkpoint_guard import refuse_old_versions, refuse_strange_files
from .hub_card import CARD, card_in, is_form
from .model_options import MAX_TEXT_LENGTH, NUM_FRAMES, Range, refuse_out_of_range
from .picture_files import load_rgb
from .pictures import flat, in_unit_range, rgb_pictures
from .prompt_tree import add_adaptive_tokens, read_as_text, refuse_other_texts
from .sentence_files import save_input_kinds
from .shipped_code import saved_as_shipped
from .source_names import tower_source
from .video_files import video_frames
from .vision_families import NO_VIDEOS_IN_PATCHES

refuse_old_versions()  # here too, because a processor can be loaded without the model


class MPCLIPProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of `MPCLIPProcessor.__call__`. Settings of the tokenizer take precedence over these defaults."""

    _defaults = {"text_kwargs": {"padding": True, "return_tensors": "pt"}, "images_kwargs": {"return_tensors": "pt"}}


class MPCLIPProcessor(ProcessorMixin):
    """Tokenizer and image processor in one object.

    Args:
        image_processor: of the vision encoder.
        tokenizer: of the LLM, with the [APT-i] tokens added. It does not add the prompts; the model does. From now on it reads
            what looks like a special token in a text, such as "[APT-1]", as letters.
    """

    valid_processor_kwargs = MPCLIPProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer if tokenizer is None else read_as_text(tokenizer), **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args, **kwargs) -> "MPCLIPProcessor":
        """As of the base class. A tokenizer that is far larger than any in use is refused with an OSError."""
        where = {name: kwargs[name] for name in ("cache_dir", "revision", "subfolder", "token") if name in kwargs}
        refuse_strange_files(str(pretrained_model_name_or_path), **where)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_pretrained_towers(
        cls, text: str, vision: str, templates: list[str], max_text_length: int = MAX_TEXT_LENGTH
    ) -> "MPCLIPProcessor":
        """The processor that belongs to `MPCLIPModel.from_pretrained_towers(text, vision, templates=templates)`.

        Args:
            text, vision: Hub id or folder of each tower, or the name of a packaged one.
            templates: the prompt templates, negated ones included. Their [APT-i] tokens are added to the tokenizer.
            max_text_length: tokens that a text is cut to if truncation is requested. The prompts are not counted.
        """
        refuse_out_of_range("max_text_length", max_text_length, Range(least=1))
        text, vision = tower_source(text), tower_source(vision)
        refuse_strange_files(text)
        tokenizer = AutoTokenizer.from_pretrained(text)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.model_max_length = max_text_length
        add_adaptive_tokens(tokenizer, templates)
        # backend="pil" avoids a message at every load that the optional torchvision is missing.
        return cls(AutoImageProcessor.from_pretrained(vision, backend="pil"), tokenizer)

    def __call__(self, images=None, text=None, videos=None, **kwargs: Unpack[MPCLIPProcessorKwargs]) -> BatchFeature:
        """Prepare texts, images and videos as inputs of [`MPCLIPModel`].

        Args:
            images: one image or a list of B: PIL images, or arrays of numpy or torch. All modes, number types and shapes
                that `pictures.to_rgb` lists are converted to RGB, upright and with white under what is transparent.
            text: one string or a list of B.
            videos: one video or a list of B. A video is a list or an array of frames, or the path of a video file, which needs
                the package av; numbers of frames may differ. From a file `num_frames` frames at even distances are read
                (`video_files.video_frames`).
            kwargs: for the tokenizer or the image processor, flat or as `text_kwargs` and `images_kwargs`. By default texts are
                padded and the results are torch tensors. Frames are processed as images. `num_frames` (8), flat or in
                `videos_kwargs`, is for video files.

        Returns:
            For text, `input_ids` and `attention_mask` (B, N). For images, `pixel_values` (B, C, H, W); for SigLIP 2 NaFlex
            `pixel_values` (B, N, C * p * p), `pixel_attention_mask` (B, N) and `spatial_shapes` (B, 2). For videos,
            `pixel_values_videos` (B, T, C, H, W) and `frame_mask` (B, T), 0 for padding frames.

        Raises:
            ValueError: no input is given, a text is no string, a video has no frame, or an image has values or a shape that no
                picture has.
            OSError, ImportError: a video file is not found, or PyAV is not installed.
        """
        if images is None and text is None and videos is None:
            raise ValueError("Nothing to process: give text, images or videos.")
        if isinstance(text, (list, tuple)) and not text:
            raise ValueError("text is an empty list: give at least one text, or leave it out.")
        if text is not None and not kwargs.get("is_split_into_words"):
            refuse_other_texts("text", list(text) if isinstance(text, (list, tuple)) else [text])
        kwargs, num_frames = _without_num_frames(kwargs)
        batch = BatchFeature()
        if images is not None or text is not None:
            batch.update(super().__call__(**self._converted(images, kwargs), text=text))
        if videos is not None:
            one = isinstance(videos, (str, Path)) or is_valid_video(videos)
            batch.update(self._videos([videos] if one else videos, num_frames, **kwargs))
        return batch

    def _converted(self, images, kwargs: dict) -> dict:
        """The arguments of a call, with its images as PIL images in RGB."""
        if images is None:
            return kwargs
        images = [load_rgb(image) if isinstance(image, (str, Path)) else image for image in flat(images)]
        if not images:
            raise ValueError("images is an empty list: give at least one image, or leave it out.")
        given = {**kwargs, **kwargs.get("images_kwargs", {})}
        changed = {"images": rgb_pictures(images, given.get("input_data_format"))}
        if not given.get("do_rescale", getattr(self.image_processor, "do_rescale", True)):
            # The caller means values that range from 0 to 1 already. Converted, they range from 0 to 255 like all others.
            unit = [in_unit_range(image) for image in images]
            if any(unit) and not all(unit):
                raise ValueError("do_rescale=False, and only some images range from 0 to 1: give images of one range.")
            changed |= {"do_rescale": True} if all(unit) else {}
        others = {name: value for name, value in kwargs.items() if name not in {"input_data_format", *changed}}
        if "images_kwargs" in others:
            nested = others["images_kwargs"].items()
            others["images_kwargs"] = {name: x for name, x in nested if name not in {"input_data_format", *changed}}
        return others | changed

    def _videos(self, videos: list, num_frames: int, **kwargs) -> dict[str, torch.Tensor]:
        """Process the frames of B videos as images, and pad the videos to T frames."""
        if "spatial_shapes" in self.image_processor.model_input_names:
            raise ValueError(NO_VIDEOS_IN_PATCHES)
        videos = [video_frames(video, num_frames) if isinstance(video, (str, Path)) else video for video in videos]
        lengths = [len(frames) for frames in videos]
        if 0 in lengths:
            empty = [i for i, length in enumerate(lengths) if length == 0]
            raise ValueError(f"The videos {empty} have no frame. Leave them out, or give each at least one frame.")
        frames = self._converted(list(videos), kwargs)
        pixels = torch.as_tensor(super().__call__(**frames)["pixel_values"])  # (sum of lengths, C, H, W)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, T)
        padded = pixels.new_zeros(*mask.shape, *pixels.shape[1:])  # (B, T, C, H, W)
        padded[mask] = pixels
        return {"pixel_values_videos": padded, "frame_mask": mask.long()}

    def save_pretrained(self, save_directory, *args, **kwargs) -> list[str]:
        """Save as the base class does, without the padding and truncation of the last call, which the tokenizer remembers.

        The length that texts are cut to is written to `sentence_bert_config.json` too.
        """
        if self.tokenizer.is_fast:
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_input_kinds(save_directory, self.tokenizer.model_max_length)
        with saved_as_shipped(self):
            return super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id: str, files_timestamps: dict, *args, **kwargs):
        # Every push passes through this private method of transformers. The model writes the card, so the form is not pushed.
        if CARD not in files_timestamps and is_form(card_in(working_dir)):
            Path(working_dir, CARD).unlink()
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that `__call__` can return."""
        own = ["input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "frame_mask"]
        return own + [name for name in self.image_processor.model_input_names if name not in own]


def _without_num_frames(kwargs: dict) -> tuple[dict, int]:
    """The arguments of a call without `num_frames`, and its value."""
    of_videos = dict(kwargs.get("videos_kwargs", {}))
    given = {name: value for name, value in kwargs.items() if name not in ("num_frames", "videos_kwargs")}
    num_frames = kwargs.get("num_frames", of_videos.pop("num_frames", None))
    return given | ({"videos_kwargs": of_videos} if of_videos else {}), NUM_FRAMES if num_frames is None else num_frames


MPCLIPProcessor.register_for_auto_class()  # so that `save_pretrained` writes the code beside the weights
