"""Embeds pictures into chunks: read and hashed by all cores, embedded in batches, written down every few hundred."""

import io

import numpy as np
import PIL.Image

from modeling_mpclip.picture_files import open_rgb
from mpclip.data.identity import picture_key
from mpclip.data.picture_size import MAX_MEGAPIXELS
from mpclip.encoding.decoding import PIXELS_AHEAD, decoded, pixels_of
from mpclip.progress import progress
from mpclip.search.chunks import chunk_files, write_chunk
from mpclip.search.integrity import Integrity
from mpclip.search.pictures import thumbnail
from mpclip.search.queries import QueryEncoder

CHUNK = 512  # pictures whose embeddings a kill may cost
THUMBNAIL = 256  # pixels of its longer side
NAMES_SHOWN = 20


class ChunkWriter:
    """Collects pictures, embeds them in batches and writes chunks.

    Args:
        encoder: of the index.
        integrity: of the index; it learns of the new files.
        batch_size: pictures at a time.
    """

    def __init__(self, encoder: QueryEncoder, integrity: Integrity, batch_size: int):
        self.encoder, self.integrity, self.batch_size = encoder, integrity, batch_size
        self.folder = integrity.index / "chunks"
        self._number = max(chunk_files(self.folder), default=-1) + 1
        self._rows: dict[str, list] = {"key": [], "stamp": [], "thumbnail": []}
        self._waiting: list[tuple[str, PIL.Image.Image]] = []
        self._embeddings: list[np.ndarray] = []

    def add(self, name: str, picture: PIL.Image.Image, key: str, stamp: str, small: bytes) -> None:
        """Takes a picture; embeds a batch and writes a chunk when they are full."""
        self._waiting.append((name, picture))
        for column, value in zip(self._rows.values(), (key, stamp, small), strict=True):
            column.append(value)
        if len(self._waiting) == self.batch_size or sum(pixels_of(picture) for _, picture in self._waiting) > PIXELS_AHEAD:
            self._embed()
        if len(self._rows["key"]) == CHUNK:
            self.write()

    def write(self) -> None:
        """Writes a chunk of the pictures taken since the last one."""
        self._embed()
        if self._embeddings:
            self.integrity.accept([write_chunk(self.folder, self._number, self._rows, np.concatenate(self._embeddings))])
            self._number += 1
            for part in (self._embeddings, *self._rows.values()):
                part.clear()

    def _embed(self) -> None:
        if not self._waiting:
            return
        names, pictures = zip(*self._waiting, strict=True)
        self._waiting.clear()
        batch = self.encoder.embed_pictures(pictures).numpy()  # (B, D)
        finite = np.isfinite(batch).all(axis=1)  # (B,)
        if not finite.all():
            bad = [name for name, whole in zip(names, finite, strict=True) if not whole]
            raise ValueError(f"{self.encoder.name} gives embeddings that are not finite, of {', '.join(bad[:NAMES_SHOWN])}")
        self._embeddings.append(batch)


def embed_pictures(
    pictures,
    names: list[str],
    known: set[str],
    writer: ChunkWriter,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> tuple[dict[str, str], dict[str, str]]:
    """Reads pictures and embeds those that are new. A picture with several names is embedded once.

    Args:
        pictures: from `open_pictures`.
        names: of those to read.
        known: keys of pictures that are embedded already; gets those that are embedded now.
        writer: embeds and writes.
        max_megapixels: larger pictures are left out.

    Returns:
        name -> key of every picture that was read, and name -> what is wrong with each that could not be.
    """

    def read(name: str) -> tuple[str, PIL.Image.Image | None, bytes]:
        content = pictures.content(name)
        key = picture_key(content)
        if key in known:
            return key, None, b""
        picture = open_rgb(io.BytesIO(content))
        return key, picture, thumbnail(picture, THUMBNAIL)

    keys: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    with progress("Embedding pictures", len(names), "picture") as shown:
        for name, made, wrong in decoded(names, read, 2 * writer.batch_size, max_megapixels):
            shown.update(1)
            if wrong is not None:
                unreadable[name] = wrong
                continue
            key, picture, small = made
            keys[name] = key
            if key not in known:
                known.add(key)
                writer.add(name, picture, key, pictures.stamps[name], small)
        writer.write()
    return keys, unreadable
