"""`MPCLIPCollator`: examples of `ImageTextDataset` -> a batch of tensors, from pixels and token ids or from cached states."""

import hashlib
from collections.abc import Callable, Sequence

import torch

from mpclip.data.absence_texts import AbsenceTexts

from .state_cache import ClipStates, ImageStates, TextStates


class MPCLIPCollator:
    """Makes a batch of pairs of an image, or a clip, and its caption.

    Args:
        processor: an [`MPCLIPProcessor`].
        text_states: cached states to use in place of token ids, or None.
        image_states: cached states to use in place of pixels of pictures or clips, or None.
        words: whether the model reads words, so that token ids come with cached states too.
        absences: texts on what pictures do not show, which some examples bring.
    """

    def __init__(
        self,
        processor,
        text_states: TextStates | None = None,
        image_states: ImageStates | ClipStates | None = None,
        words: bool = False,
        absences: AbsenceTexts | None = None,
    ):
        self.processor, self.words, self.absences = processor, words, absences
        self.text_states, self.image_states = text_states, image_states

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Make a batch of B pairs.

        Args:
            examples: B dicts with `captions`, of which the first is used, and `image`; `index` with cached image states; with
                `absences` also `index` and `without`.

        Returns:
            Arguments of `MPCLIPModel.forward`, as `text_inputs` and `image_inputs` return them. T examples that bring a text on
            what is absent add it behind the B captions, and `without_true` (T, B) bool: of which pictures these are true.
        """
        which = "image" if self.image_states is None else "index"
        texts, known = [example["captions"][0] for example in examples], {}
        if self.absences is not None and (pairs := [e["without"] for e in examples if e["without"] is not None]):
            texts += map(self.absences.text, pairs)
            true = self.absences.true_of(pairs, [example["index"] for example in examples])
            known["without_true"] = torch.from_numpy(true)  # (T, B)
        return {**self.text_inputs(texts), **self.image_inputs([example[which] for example in examples]), **known}

    def text_inputs(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """B texts -> `attention_mask` (B, N), and `input_ids` (B, N) or cached `text_hidden_states` (B, N + T, H), or both."""
        if self.text_states is not None:
            return self.with_words(self.text_states.batch(list(texts)), texts)
        return dict(self.processor(text=list(texts), truncation=True))

    def with_words(self, batch: dict[str, torch.Tensor], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Add the `input_ids` (B, N) of B texts to their cached states, for a model that reads words."""
        if not self.words:
            return batch
        mask = batch["attention_mask"]  # (B, N), padded on the left
        ids = torch.zeros_like(mask)
        token_ids = self.processor.tokenizer(list(texts), truncation=True)["input_ids"]
        ids[mask.bool()] = torch.tensor([one for row in token_ids for one in row], dtype=ids.dtype)
        return batch | {"input_ids": ids}

    def image_inputs(self, images: Sequence) -> dict[str, torch.Tensor]:
        """B pictures -> `pixel_values` (B, C, H, W). With cached states: B row numbers -> `vision_hidden_states` (B, N, C).

        B clips, lists of pictures -> `pixel_values_videos` (B, T, C, H, W) and `frame_mask` (B, T); from cached states
        `vision_hidden_states` (B, T, N, C) and the mask.
        """
        if self.image_states is not None:
            return self.image_states.batch(list(images))
        if isinstance(images[0], list):
            return dict(self.processor(videos=list(images)))
        return dict(self.processor(images=list(images)))


class WithIds:
    """A collator whose batches also tell which examples and captions are in them.

    Added are `row` (B,), the `index` of each example, where examples have one, and with an [`MPCLIPCollator`] `caption_id` (B,)
    int64, equal for captions of equal token ids and, but for a chance below one in a billion, different for others.
    """

    def __init__(self, collator: Callable[[list[dict]], dict[str, torch.Tensor]]):
        self.collator = collator

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.collator(examples)
        if "captions" in examples[0] and isinstance(self.collator, MPCLIPCollator):
            batch["caption_id"] = self.caption_ids(batch, [example["captions"][0] for example in examples])  # (B,)
        if "index" in examples[0]:
            batch["row"] = torch.tensor([example["index"] for example in examples])  # (B,)
        return batch

    def caption_ids(self, batch: dict[str, torch.Tensor], texts: list[str]) -> torch.Tensor:
        """B captions -> (B,), hashes of their token ids."""
        if "input_ids" in batch:
            captions = slice(len(texts))  # texts on what is absent come behind
            rows = zip(batch["input_ids"][captions], batch["attention_mask"][captions], strict=True)
            token_ids = [ids[mask.bool()].tolist() for ids, mask in rows]
        else:  # cached states
            token_ids = self.collator.processor.tokenizer(texts, truncation=True)["input_ids"]
        hashes = [hashlib.blake2b(str(ids).encode(), digest_size=8).digest() for ids in token_ids]
        return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in hashes])
