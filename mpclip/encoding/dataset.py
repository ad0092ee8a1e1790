"""Embeds texts, pictures, and all pictures and captions of a data set, with a cache on disk if wanted (cache.py).

Pictures are known by their content. So a copy of a data set finds what was computed for the first, and a picture that has
been changed in place is embedded again.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from torch import Tensor

from mpclip.data.identity import identity_of_images

from .batches import by_length
from .cache import kept_parts
from .encoder import Encoder

Folder = str | Path | None


def encode_texts(
    encoder: Encoder,
    texts: Sequence[str],
    batch_size: int = 64,
    cache: Folder = None,
    title: str = "Embedding texts",
    **options,
) -> Tensor:
    """Embed texts. Equal texts are embedded once.

    Args:
        encoder: the model.
        texts: T texts, in any order. The cache of a collection serves any order of it.
        batch_size: texts per batch.
        cache: folder in which finished parts are stored. A killed run resumes from them, and a later run reuses them. The
            encoder must have been loaded from a checkpoint. None: nothing is stored.
        title: what the progress line says.
        options: of `in_batches`, such as `shared` and `quiet`.

    Returns:
        (T, D) float32 on the CPU, L2-normalised.
    """
    parts = kept_parts(encoder, cache, batch_size, texts=by_length(texts))
    return encoder.texts(texts, batch_size, title=title, resume=parts, **options)


def encode_images(
    encoder: Encoder,
    rows: datasets.Dataset,
    batch_size: int = 64,
    cache: Folder = None,
    title: str = "Embedding images",
    **options,
) -> Tensor:
    """Embed the pictures of a table.

    Args:
        encoder: the model.
        rows: a table with the column `image`, as from `load_image_text`.
        batch_size, cache, title, options: as for `encode_texts`.

    Returns:
        (I, D) float32 on the CPU, L2-normalised, in the order of the rows.
    """
    parts = kept_parts(encoder, cache, batch_size, images=cache and identity_of_images(rows))
    return encoder.images(rows["image"], batch_size, title=title, resume=parts, **options)


def encode_dataset(
    encoder: Encoder,
    rows: datasets.Dataset,
    batch_size: int = 64,
    images: Sequence | None = None,
    cache: Folder = None,
    **options,
) -> dict[str, Tensor]:
    """Embed every picture and every caption of a table.

    Args:
        encoder: the model.
        rows: a table with the columns `image` and `captions`, as from `load_image_text`.
        images: inputs of the encoder in place of the column `image`, such as row numbers of cached states; these are not
            stored in `cache`.
        batch_size, cache, options: as for `encode_texts`.

    Returns:
        `image_embeds` (I, D) and `text_embeds` (T, D), float32 on the CPU, L2-normalised, in the order of the rows;
        `caption_image` (T,) int64, the row that each caption belongs to.
    """
    captions = rows.with_format(None)["captions"][:]
    texts = [caption for row in captions for caption in row]
    return {
        "text_embeds": encode_texts(encoder, texts, batch_size, cache, **options),
        "image_embeds": encode_images(encoder, rows, batch_size, cache, **options)
        if images is None
        else encoder.images(images, batch_size, **options),
        "caption_image": torch.tensor([i for i, row in enumerate(captions) for _ in row], dtype=torch.int64),
    }
