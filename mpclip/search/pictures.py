"""Where the pictures of an index come from: a plain folder, or a data set."""

import io
from pathlib import Path

import datasets
import PIL.Image

from mpclip.data.identity import picture_key, place_stamp
from mpclip.data.image_text import load_image_text
from mpclip.data.picture_folder import find_pictures, read_file


def open_pictures(data: str, split: str | None = None, **reading) -> "FolderPictures | DatasetPictures":
    """The pictures of a folder, or with a split those of a data set.

    Args:
        data: a folder, searched for pictures at any depth; with a split, whatever `load_image_text` opens.
        split: as in `load_image_text`.
        reading: its further options. A plain folder takes `follow_links` alone.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no picture in it.
    """
    if split is not None:
        return DatasetPictures(data, split, **reading)
    if not Path(data).is_dir():
        raise FileNotFoundError(f"no folder {data}: expected a folder of pictures; a data set is opened with --split")
    return FolderPictures(data, reading.get("follow_links", False))


class FolderPictures:
    """Every picture file below a folder; see `find_pictures`.

    Attributes:
        stamps: name -> `place_stamp` of every picture. The name is the path in the folder, with "/".
        refused: path -> reason for what looks like a picture and is left out.
    """

    def __init__(self, folder: str, follow_links: bool = False):
        self.folder = Path(folder)
        names, self.refused = find_pictures(folder, follow_links)
        self.stamps = {name: place_stamp(self.folder / name) for name in names}
        if not self.stamps:
            left_out = ", ".join(f"{name} ({reason})" for name, reason in list(self.refused.items())[:3])
            hint = f"; left out: {left_out}" if left_out else ""
            expected = "expected files that Pillow reads, such as .jpg, .png or .webp, or --split for a data set"
            raise ValueError(f"no picture in {folder}: {expected}{hint}")

    def content(self, name: str) -> bytes:
        """The bytes of a picture file. Raises OSError or ValueError."""
        return read_file(self.folder / name)

    def caption(self, name: str) -> str:
        """A picture in a plain folder has no caption."""
        return ""


class DatasetPictures:
    """The pictures of a data set, with captions or without.

    Attributes:
        stamps: name -> `place_stamp` of its file; where the table holds the picture, its `picture_key`. The name is made of the
            split, the number of the row and the file's name.
        refused: empty; what cannot be read was left out when the table was opened.
    """

    def __init__(self, data: str, split: str, **reading):
        rows = load_image_text(data, split, need_captions=False, **reading).with_format(None)
        self.refused: dict[str, str] = {}
        self.stamps: dict[str, str] = {}
        self._row: dict[str, int] = {}
        self._cells = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        self._captions = [next(iter(captions), "") for captions in rows["captions"][:]]
        files = rows["file_name"][:] if "file_name" in rows.column_names else [""] * len(rows)
        for i, (row, file) in enumerate(zip(self._cells, files, strict=True)):
            name = f"{split} {i} {file}".strip()
            self._row[name] = i
            content, path = row["image"]["bytes"], row["image"]["path"]
            self.stamps[name] = picture_key(content) if content is not None else place_stamp(path)

    def content(self, name: str) -> bytes:
        """The bytes of a picture, from the table or from its file. Raises OSError or ValueError."""
        cell = self._cells[self._row[name]]["image"]
        return read_file(cell["path"]) if cell["bytes"] is None else cell["bytes"]

    def caption(self, name: str) -> str:
        """The first caption of a picture, "" where it has none."""
        return self._captions[self._row[name]]


def thumbnail(picture: PIL.Image.Image, side: int) -> bytes:
    """A JPEG of at most `side` pixels each way."""
    small = picture.copy()
    small.thumbnail((side, side))
    small.save(written := io.BytesIO(), "JPEG", quality=82)
    return written.getvalue()
