"""Batches of row numbers in place of cached states: the states of a chunk are read when it is computed.

The states of a pair take about 180 KB, so those of a large batch take more memory than a chunk of it with all its graphs. Where
batches are computed in chunks (`gradient_cache.py`), the loader's workers need not read them: the chunk is read from the
memory-mapped store while the one before is computed.
"""

from collections.abc import Sequence

import torch

from .collator import MPCLIPCollator


class LateStates(MPCLIPCollator):
    """A collator whose batches have row numbers of cached states, and a function that reads those states.

    Args:
        collator: an [`MPCLIPCollator`]; what it does not take from cached states stays as it is.
    """

    def __init__(self, collator: MPCLIPCollator):
        super().__init__(collator.processor, collator.text_states, collator.image_states, collator.words)
        self.text_of = {} if self.text_states is None else {row: text for text, row in self.text_states.row_of.items()}

    def text_inputs(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """B texts -> `text_row` (B,), and `text_tokens` (B,), the tokens of each, where states of texts are cached.

        Raises:
            KeyError: a text is not in the cache.
        """
        if self.text_states is None:
            return super().text_inputs(texts)
        token_ids = self.processor.tokenizer(list(texts), truncation=True)["input_ids"]
        return {
            "text_row": torch.tensor([self.text_states.row_of[text] for text in texts]),
            "text_tokens": torch.tensor(list(map(len, token_ids))),
        }

    def image_inputs(self, images: Sequence) -> dict[str, torch.Tensor]:
        """B row numbers -> `image_row` (B,), where states of pictures or clips are cached."""
        if self.image_states is None:
            return super().image_inputs(images)
        return {"image_row": torch.tensor(list(images))}

    def read(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Some rows of a batch -> arguments of `MPCLIPModel.forward`, in which row numbers have become states, on the CPU."""
        inputs = dict(rows)
        if "text_row" in inputs:
            texts = [self.text_of[row] for row in inputs.pop("text_row").tolist()]
            inputs |= self.with_words(self.text_states.batch(texts), texts)
        if "image_row" in inputs:
            inputs |= self.image_states.batch(inputs.pop("image_row").tolist())
        return inputs
