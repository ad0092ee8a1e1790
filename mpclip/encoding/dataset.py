"""Embeds all pictures and captions of a data set."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from torch import Tensor

from mpclip.data.identity import identity_of_images

from .batches import Parts
from .encoder import Encoder


def encode_dataset(
    encoder: Encoder,
    rows: datasets.Dataset,
    batch_size: int = 64,
    images: Sequence | None = None,
    cache: str | Path | None = None,
    **options,
) -> dict[str, Tensor]:
    """Embed every picture and every caption of a table.

    Args:
        encoder: the model.
        rows: a table with the columns `image` and `captions`, as from `load_image_text`.
        batch_size: pictures or captions per batch.
        images: inputs of the encoder in place of the column `image`, such as row numbers of cached states.
        cache: folder in which finished parts are stored. A killed run resumes from them, and a later run reuses them. The
            encoder must have been loaded from a checkpoint.
        options: of `in_batches`.

    Returns:
        `image_embeds` (I, D) and `text_embeds` (T, D), float32 on the CPU, L2-normalised, in the order of the rows;
        `caption_image` (T,) int64, the row that each caption belongs to.
    """
    captions = rows.with_format(None)["captions"][:]
    texts = [caption for row in captions for caption in row]
    parts: dict[str, Parts | None] = {"texts": None, "images": None}
    if cache is not None:
        key = {"model": encoder.fingerprint(), "batch_size": batch_size}
        told = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        parts["texts"] = Parts(cache, key | {"texts": told})
        parts["images"] = Parts(cache, key | {"images": identity_of_images(rows)})
    return {
        "text_embeds": encoder.texts(texts, batch_size, resume=parts["texts"], **options),
        "image_embeds": encoder.images(
            rows["image"] if images is None else images, batch_size, resume=parts["images"], **options
        ),
        "caption_image": torch.tensor([i for i, row in enumerate(captions) for _ in row], dtype=torch.int64),
    }
