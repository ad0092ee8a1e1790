"""Where the pictures of an index come from: a plain folder, or a data set."""

import hashlib
import io
import os
from pathlib import Path

import datasets
import PIL.Image
import PIL.ImageOps

from mpclip.data.image_text import load_image_text, to_rgb
from mpclip.files import stamp

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def open_pictures(data: str, split: str | None = None) -> "FolderPictures | DatasetPictures":
    """The pictures of a folder, or with a split those of a data set.

    Args:
        data: a folder, searched for pictures at any depth; with a split, whatever `load_image_text` opens.
        split: as in `load_image_text`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no picture in it.
    """
    if split is not None:
        return DatasetPictures(data, split)
    if not Path(data).is_dir():
        raise FileNotFoundError(f"no folder {data}: expected a folder of pictures; a data set is opened with --split")
    return FolderPictures(data)


class FolderPictures:
    """Every picture file below a folder. Names that begin with a dot are skipped, linked folders are not followed.

    Attributes:
        stamps: path of each picture, relative to the folder and with "/" -> its size and date. A changed file has others.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.stamps: dict[str, str] = {}
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = Path(place, name)
                if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                    self.stamps[path.relative_to(folder).as_posix()] = _file_stamp(path)
        if not self.stamps:
            raise ValueError(f"no picture in {folder}: expected files {', '.join(sorted(SUFFIXES))}, or --split for a data set")

    def read(self, key: str) -> tuple[PIL.Image.Image, str]:
        """The picture, upright and in RGB, and "" for its caption. Raises whatever Pillow raises: a dozen types."""
        return read_picture(self.folder / key), ""


class DatasetPictures:
    """The pictures of a data set, with captions or without, under the numbers of their rows.

    Attributes:
        stamps: key of each row -> SHA-256 of its picture. A row with another picture than before has another.
    """

    def __init__(self, data: str, split: str):
        self.rows = load_image_text(data, split, need_captions=False)
        cells = self.rows.with_format(None).select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        names = self.rows["file_name"][:] if "file_name" in self.rows.column_names else [""] * len(self.rows)
        self.stamps: dict[str, str] = {}
        self._row: dict[str, int] = {}
        for i, (row, name) in enumerate(zip(cells, names, strict=True)):
            key = f"{split} {i} {name}".strip()
            self._row[key] = i
            content, path = row["image"]["bytes"], row["image"]["path"]
            self.stamps[key] = hashlib.sha256(content).hexdigest() if content is not None else _file_stamp(path)

    def read(self, key: str) -> tuple[PIL.Image.Image, str]:
        """The picture and its first caption, "" where it has none."""
        row = self.rows[self._row[key]]
        return row["image"], next(iter(row["captions"]), "")


def read_picture(file) -> PIL.Image.Image:
    """A picture file (path or opened), upright and in RGB."""
    with PIL.Image.open(file) as picture:
        return to_rgb(PIL.ImageOps.exif_transpose(picture))


def thumbnail(picture: PIL.Image.Image, side: int) -> bytes:
    """A JPEG of at most `side` pixels each way."""
    small = picture.copy()
    small.thumbnail((side, side))
    small.save(written := io.BytesIO(), "JPEG", quality=82)
    return written.getvalue()


def _file_stamp(path: str | Path) -> str:
    try:
        return " ".join(map(str, stamp(path)))
    except OSError:
        return "unreadable"  # a link to nowhere: reading it will say so
