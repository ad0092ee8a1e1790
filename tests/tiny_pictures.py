"""Three tiny pictures with captions, as files or as bytes, and a check that they came out right."""

import io
from pathlib import Path

import datasets
import PIL.Image

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
CAPTIONS = [["a dog, running", "one dog"], ["two cats", "cats"], ["a bird", "this bird flies"]]
PAIRS = [(name, caption) for name, captions in zip(NAMES, CAPTIONS, strict=True) for caption in captions]


def jpeg(i: int) -> bytes:
    PIL.Image.new("RGB", (12, 8), (60 * i, 100, 200)).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


def write_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(jpeg(i))
    return folder


def contents(rows: datasets.Dataset) -> list[tuple[bytes, list[str]]]:
    """The bytes of each picture's file, and its captions."""
    cells = rows.with_format(None).cast_column("image", datasets.Image(decode=False))
    files = [cell["bytes"] or Path(cell["path"]).read_bytes() for cell in cells["image"]]
    return list(zip(files, cells["captions"][:], strict=True))


def check(rows: datasets.Dataset, captions: list[list[str]] = CAPTIONS) -> None:
    assert contents(rows) == [(jpeg(i), row) for i, row in enumerate(captions)]
