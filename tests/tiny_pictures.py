"""Tiny pictures with captions, as files or as bytes, and a check that they came out right."""

import io
import json
from pathlib import Path

import datasets
import pandas
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


def picture(i: int, mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> PIL.Image.Image:
    """A picture of one colour, which `i` sets."""
    return PIL.Image.new("RGB", size, (20 * i % 256, 100, 200 - i)).convert(mode)


def write_folder(folder: Path, records: list[dict], metadata: str = "metadata.jsonl") -> Path:
    """A folder with a picture for every file name and the metadata beside them."""
    for i, name in enumerate(dict.fromkeys(record["file_name"] for record in records)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
    if metadata.endswith("csv"):
        pandas.DataFrame(records).to_csv(folder / metadata, index=False)
    else:
        (folder / metadata).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def records(count: int = 4, split: str | None = None) -> list[dict]:
    added = {"split": split} if split else {}
    return [{"file_name": f"images/{i}.png", "captions": [f"a {i}", f"b {i}"], "label": i} | added for i in range(count)]
