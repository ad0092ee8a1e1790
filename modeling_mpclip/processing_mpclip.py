"""MPCLIPProcessor: texts, images and video frames -> tensors. Needs no torchvision."""

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

# Not from the top level: there transformers 5.17 puts a stand-in that demands torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .prompt_tree import add_adaptive_tokens

MAX_TEXT_LENGTH = 256  # tokens; LLM tokenizers come with the LLM's context length, far more than a caption


class MPCLIPProcessor(ProcessorMixin):
    """Tokenizer and image processor as one.

    Args:
        image_processor: of the vision encoder.
        tokenizer: of the LLM, with the [APT-i] tokens. The prompts are not its business: the model appends them.
    """

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

    def __call__(self, images=None, text=None, videos=None, return_tensors: str = "pt", **kwargs) -> BatchFeature:
        """
        Args:
            images: one image or a list of B (PIL, numpy or torch).
            text: one string or a list of them.
            videos: a list of B videos, each a list or array of frames; frames need not be equally many.
            kwargs: for the tokenizer (`padding` is on by default) or the image processor.

        Returns:
            `input_ids`, `attention_mask` (B, N); `pixel_values` (B, C, H, W); `pixel_values_videos` (B, T, C, H, W) with
            `frame_mask` (B, T) - for whichever input was given.
        """
        if images is None and text is None and videos is None:
            raise ValueError("Nothing to process: give text, images or videos.")
        data = {}
        if text is not None:
            names = ("padding", "truncation", "max_length", "add_special_tokens", "pad_to_multiple_of", "padding_side")
            text_kwargs = {"padding": True, **{name: kwargs.pop(name) for name in names if name in kwargs}}
            data |= self.tokenizer(text, return_tensors=return_tensors, **text_kwargs)
        if images is not None:
            data |= self.image_processor(images, return_tensors=return_tensors, **kwargs)
        if videos is not None:
            data |= self._videos(videos, **kwargs)
        return BatchFeature(data)

    def _videos(self, videos, **kwargs) -> dict[str, torch.Tensor]:
        empty = [i for i, frames in enumerate(videos) if len(frames) == 0]
        if empty:
            raise ValueError(f"The videos {empty} have no frame.")
        pixels = [self.image_processor(list(v), return_tensors="pt", **kwargs)["pixel_values"] for v in videos]
        T = max(len(frames) for frames in pixels)
        padded = [torch.cat([p, p.new_zeros(T - len(p), *p.shape[1:])]) for p in pixels]  # (T, C, H, W) each
        mask = torch.tensor([[1] * len(p) + [0] * (T - len(p)) for p in pixels])  # (B, T)
        return {"pixel_values_videos": torch.stack(padded), "frame_mask": mask}

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "frame_mask"]
