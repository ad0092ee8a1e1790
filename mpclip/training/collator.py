"""Examples of `ImageTextDataset` -> tensors, from pixels and token ids or from cached states."""

import torch

from .state_cache import ImageStates, TextStates


class MPCLIPCollator:
    """Batches (image, caption) pairs for training, or images with all their captions for evaluation.

    Args:
        processor: an `MPCLIPProcessor`.
        text_states, image_states: cached states to use in place of token ids and of pixels.
        all_captions: evaluation: each image has C captions, padded with empty texts; adds `caption_mask` (B, C).
    """

    def __init__(
        self,
        processor,
        text_states: TextStates | None = None,
        image_states: ImageStates | None = None,
        all_captions: bool = False,
    ):
        self.processor = processor
        self.text_states, self.image_states = text_states, image_states
        self.all_captions = all_captions

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: dicts with `index`, `image` (unless image states are cached) and `captions`.

        Returns:
            arguments of `MPCLIPModel.forward`; for evaluation the captions of all images in one row, (B * C, N).
        """
        batch = {}
        captions = [example["captions"] for example in examples]
        if self.all_captions:
            C = max(map(len, captions))
            # The first caption stands in for those that are missing; `caption_mask` leaves it out of the count.
            # Integers: Trainer pads shorter batches with -100, which as a boolean would read True.
            batch["caption_mask"] = torch.tensor([[1] * len(row) + [0] * (C - len(row)) for row in captions])  # (B, C)
            captions = [[*row, *[row[0]] * (C - len(row))] for row in captions]
        texts = [caption for row in captions for caption in row]
        if self.text_states is not None:
            batch |= self.text_states.batch(texts)
        else:
            batch |= self.processor(text=texts, truncation=True)
        if self.image_states is not None:
            batch |= self.image_states.batch([example["index"] for example in examples])
        else:
            batch |= self.processor(images=[example["image"] for example in examples])
        return batch
