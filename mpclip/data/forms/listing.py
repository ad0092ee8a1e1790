"""A file that names pictures and their captions, as a table."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from mpclip.data.captions import captions_of_table
from mpclip.data.links import Bounds
from mpclip.data.reading import ReadingOptions

# In which columns the paths of pictures are looked for.
PATH_COLUMNS = (
    *("file_name", "filename", "image", "img", "jpg", "image_path", "img_path", "image_name", "filepath", "file_path"),
    *("file", "path", "picture", "photo"),
)
PROBED = 20  # pictures by which the folder of all is found


@dataclass
class Listing:
    """What a reader of this package makes of a file. Nothing in it is checked.

    Attributes:
        file: the file.
        columns: name -> cells, of any types; all of one length.
    """

    file: Path
    columns: dict[str, list]

    @classmethod
    def of_records(cls, file: Path, records: Sequence[dict[str, Any]]) -> "Listing":
        """From a dict per row. What a row lacks is None."""
        names = dict.fromkeys(name for record in records for name in record)
        return cls(file, {name: [record.get(name) for record in records] for name in names})

    def place(self, i: int) -> str:
        """Row `i` as messages name it."""
        return f"{self.file}, row {i + 1}"

    @property
    def path_column(self) -> str:
        return next((name for name in PATH_COLUMNS if name in self.columns), PATH_COLUMNS[0])


def table_of(listing: Listing, bounds: Bounds, reading: ReadingOptions, need_captions: bool) -> datasets.Dataset:
    """The table with `image` (the files, not opened), `captions` and `file_name`, and the listing's other columns.

    A column that nothing here needs is never a reason to stop: where its cells are of several types, they become text.

    Raises:
        ValueError: a picture lies elsewhere, or a column or cell is not what it should be; the message has file and row.
    """
    if not next(iter(listing.columns.values()), []):
        raise ValueError(f"{listing.file} has no rows: expected one per image, with file_name and captions")
    path_column = reading.image_column or listing.path_column
    names = _names(listing, path_column)
    described = {name: cells for name, cells in listing.columns.items() if name != path_column} or {path_column: names}
    try:
        found, captions = captions_of_table(described, reading, need_captions, first=1)
    except ValueError as error:
        raise ValueError(f"{listing.file}: {error}") from error
    folder = picture_folder(listing.file.parent, names, reading.image_folder)
    paths = []
    for i, name in enumerate(names):
        try:
            paths.append(str(bounds.path_of(name, folder).absolute()))
        except ValueError as error:
            raise ValueError(f"{listing.place(i)}: {error}") from error
    others = described.keys() - {"file_name", "image", "captions", path_column, *found}
    columns = {name: _storable(cells) for name, cells in described.items() if name in others}
    rows = datasets.Dataset.from_dict({"file_name": names, **columns, "image": paths})
    rows = rows.add_column("captions", captions, feature=datasets.List(datasets.Value("string")))
    return rows.cast_column("image", datasets.Image())


def picture_folder(folder: Path, names: Sequence[str], given: str | None) -> Path:
    """The folder that the names of pictures begin in: `given`, `folder`, or the one below it that has the first of them.

    Args:
        folder: of the listing.
        names: of the pictures.
        given: `image_folder`.

    Raises:
        FileNotFoundError: there is no folder `given`.
        ValueError: several folders have these pictures.
    """
    if given is not None:
        return given_folder(folder, given)
    probed = [name for name in names[:PROBED] if ".." not in re.split(r"[\\/]", name)]

    def has_some(place: Path) -> bool:
        return any(os.path.isfile(place / name) for name in probed)

    if has_some(folder):
        return folder
    level = [_set_folder(folder)]
    for _ in range(2):
        level = [below for place in level for below in _folders(place)]
        having = [place for place in level if has_some(place)]
        if len(having) > 1:
            raise ValueError(
                f"{probed[0]!r} and the like are in several folders: {', '.join(map(str, having))}. Set image_folder to one"
            )
        if having:
            return having[0]
    return folder


def given_folder(folder: Path, given: str) -> Path:
    """The folder that `image_folder` names: from the data set's folder, or from the working directory.

    Args:
        folder: of the listing.
        given: `image_folder`.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in (folder / given, _set_folder(folder) / given, Path(given)):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"no folder {given} (image_folder), neither in {folder} nor in the working directory")


def _set_folder(folder: Path) -> Path:
    """The data set's folder, from that of its listing: COCO's pictures lie beside annotations/."""
    return folder.parent if folder.name == "annotations" else folder


def _folders(above: Path) -> list[Path]:
    with os.scandir(above) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir())


def _names(listing: Listing, path_column: str) -> list[str]:
    names = listing.columns.get(path_column, [None] * len(next(iter(listing.columns.values()))))
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"{listing.place(i)}: {path_column} is {name!r}, expected the path of an image in {listing.file.parent}. The "
                f"row has the columns {list(listing.columns)}: set image_column to the one with the path"
            )
        if not name.isprintable() and re.search("[\ud800-\udfff]", name):
            raise ValueError(f"{listing.place(i)}: {path_column} is {name!r}, which is no text: rename the file")
    return names


def _storable(cells: list) -> list:
    """The cells, or their text where they have several types or text that cannot be stored."""
    try:
        datasets.Dataset.from_dict({"cells": cells})
        return cells
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        return [_text(cell) for cell in cells]


def _text(cell: Any) -> str | None:
    """A cell as text; half a character in it becomes the sign for one that is unknown."""
    if cell is None or cell != cell:  # NaN
        return None
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
