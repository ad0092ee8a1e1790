"""Examples of `ImageTextDataset` -> tensors, from pixels and token ids or from cached states."""

from collections.abc import Sequence

import torch

from .state_cache import ImageStates, TextStates


class MPCLIPCollator:
    """Batches (image, caption) pairs.

    Args:
        processor: an `MPCLIPProcessor`.
        text_states, image_states: cached states to use in place of token ids and of pixels.
    """

    def __init__(self, processor, text_states: TextStates | None = None, image_states: ImageStates | None = None):
        self.processor = processor
        self.text_states, self.image_states = text_states, image_states

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Arguments of `MPCLIPModel.forward` for B pairs.

        Args:
            examples: dicts with `captions`, of which the first is taken, and `index` (with cached image states) or `image`.
        """
        which = "image" if self.image_states is None else "index"
        return {
            **self.text_inputs([example["captions"][0] for example in examples]),
            **self.image_inputs([example[which] for example in examples]),
        }

    def text_inputs(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` or `text_hidden_states`, and `attention_mask`."""
        if self.text_states is not None:
            return self.text_states.batch(list(texts))
        return dict(self.processor(text=list(texts), truncation=True))

    def image_inputs(self, images: Sequence) -> dict[str, torch.Tensor]:
        """`pixel_values` of pictures, or `vision_hidden_states` of the rows with these numbers."""
        if self.image_states is not None:
            return self.image_states.batch(list(images))
        return dict(self.processor(images=list(images)))
