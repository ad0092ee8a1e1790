"""Which pictures an index has embedded already: recognised by content, and where possible without reading their files."""

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mpclip.data.identity import picture_key
from mpclip.progress import track
from mpclip.search.chunks import ROW_BITS, Chunks
from mpclip.search.places import Places


class Known:
    """What earlier builds of an index have embedded.

    Args:
        index: its folder.
        settings: content of its index.json.

    Attributes:
        ids: key of a picture -> its id.
        names: name -> id of every picture in the index as it was last finished.
    """

    def __init__(self, index: Path, settings: dict):
        chunks = Chunks(index / "chunks")
        places = Places(index / settings["places"]).all() if settings.get("places") else []
        self._first_format = {(name, stamp): i for name, stamp, i in chunks.pictures(first_format=True)}
        # Keys of pictures in chunks of the first format: a data set's stamps were keys, those of files stand in the places.
        numbers = {i >> ROW_BITS for i in self._first_format.values()}
        self.ids = {stamp: i for (_, stamp), i in self._first_format.items() if _is_key(stamp)}
        self.ids |= {place.key: place.id for place in places if place.id >> ROW_BITS in numbers}
        self._key_of_stamp = {}
        for key, stamp, i in chunks.pictures():
            self.ids[key], self._key_of_stamp[stamp] = i, key
        self._key_of_stamp |= {place.stamp: place.key for place in places}
        self.names = {place.name: place.id for place in places}
        if settings["vectors"] and not places:  # of the first format: a chunk may also hold pictures that are gone
            finished = set(np.load(index / settings["vectors"] / "ids.npy").tolist())
            self.names = {name: i for (name, _), i in self._first_format.items() if i in finished}

    def recognise(self, pictures, read_all: bool = False) -> dict[str, str]:
        """Name -> key of the pictures whose key is known: table rows, and files that have the size and the date of last time.

        Files that an index of the first format holds are read once, for their keys.

        Args:
            pictures: from `open_pictures`.
            read_all: read the other files too. What cannot be read is left out.
        """
        found: dict[str, str] = {}
        earlier: dict[str, int] = {}  # name -> id in a chunk of the first format
        for name, stamp in pictures.stamps.items():
            if key := stamp if _is_key(stamp) else self._key_of_stamp.get(stamp):
                found[name] = key
            elif not read_all and (i := self._first_format.get((name, _size_and_date(stamp)))) is not None:
                earlier[name] = i
        hashed = hash_pictures(pictures, pictures.stamps.keys() - found.keys() if read_all else earlier)
        self.ids |= {key: earlier[name] for name, key in hashed.items() if name in earlier}
        return found | hashed


def hash_pictures(pictures, names: Collection[str]) -> dict[str, str]:
    """Name -> key of those pictures that can be read."""

    def key(name: str) -> str | None:
        try:
            return picture_key(pictures.content(name))
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        keys = track(pool.map(key, names), "Recognising pictures", len(names), "picture")
        return {name: key for name, key in zip(names, keys, strict=True) if key}


def _is_key(stamp: str) -> bool:
    return " " not in stamp


def _size_and_date(stamp: str) -> str:
    return " ".join(stamp.split(" ", 2)[:2])
