"""Where the pictures of an index lie and what is said of them: names and captions. The embeddings are in chunks.py.

A picture is embedded once, however many names it has. Names and captions are written anew by every build, which takes seconds:
a picture that was moved, or whose caption was corrected, is not embedded again.

The file is places/names-SHA256.arrow, with a row per name: id of the picture, name, caption, key and stamp of the file. Rows
are sorted by id, and names of one picture stand in the order in which its source has them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mpclip.search.chunks import names_from_arrow, names_to_arrow, read_arrow, write_arrow


class Place(NamedTuple):
    """A name of a picture.

    Attributes:
        id: of the picture; see `mpclip.search.chunks.ROW_BITS`.
        name: of its file or row.
        caption: "" for none.
        key, stamp: of the file; see mpclip/data/identity.py.
    """

    id: int
    name: str
    caption: str
    key: str
    stamp: str


def write_places(index: Path, places: pa.RecordBatch) -> Path:
    """Writes the places of all pictures of an index, whole or not at all. Returns the file."""
    return write_arrow(index / "places", "names", places)


def places_to_arrow(places: list[Place]) -> pa.RecordBatch:
    """Places as the rows of the file."""
    ids, names, captions, keys, stamps = zip(*sorted(places, key=lambda place: place.id), strict=True)
    columns = {"id": pa.array(ids, pa.int64()), "name": names_to_arrow(names), "stamp": names_to_arrow(stamps)}
    columns |= {"caption": pa.array(captions, pa.large_string()), "key": pa.array(keys, pa.large_string())}
    return pa.record_batch(columns)


class Places:
    """The places of an index, read from the file."""

    def __init__(self, file: Path):
        self._table = read_arrow(file)
        self._ids = self._table["id"].to_numpy()  # (names,) sorted

    def of(self, i: int) -> list[tuple[str, str]]:
        """(name, caption) of every place of a picture. What is no text in a name is shown as U+FFFD."""
        first, end = (int(np.searchsorted(self._ids, i, side)) for side in ("left", "right"))
        rows = self._table.slice(first, end - first)
        names = [name.decode("utf-8", "replace") for name in rows["name"].to_pylist()]
        return list(zip(names, rows["caption"].to_pylist(), strict=True))

    def all(self) -> list[Place]:
        """Every place."""
        columns = (names_from_arrow(self._table["name"]), self._table["caption"].to_pylist())
        keys, stamps = self._table["key"].to_pylist(), names_from_arrow(self._table["stamp"])
        return [Place(*row) for row in zip(self._ids.tolist(), *columns, keys, stamps, strict=True)]
