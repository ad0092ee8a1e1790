"""Checks of a table of images and captions: images that do not decode, rows without a caption, paths that lead elsewhere."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import PIL.Image

from modeling_mpclip.pictures import to_rgb
from mpclip.data.image_columns import paths_referred
from mpclip.data.links import Bounds
from mpclip.data.picture_folder import NOT_A_FILE
from mpclip.data.picture_size import MAX_MEGAPIXELS, pixel_limit, too_large
from mpclip.progress import progress

_DECODER = datasets.Image()
NAMES_SHOWN = 20  # bad rows that a message names; it only counts the rest


def refuse_paths_outside(rows: datasets.Dataset, source: str, bounds: Bounds) -> None:
    """Refuse a table that refers to image files elsewhere than within `bounds`.

    Raises:
        ValueError: it does; the message has the first such path.
    """
    for i, path in enumerate(paths_referred(rows)):
        if path and (fault := bounds.fault(path)):
            raise ValueError(
                f"{source}, row {i}: refused the image path {path!r}, {fault}. "
                "Save the table with its images in it (Dataset.save_to_disk does so)"
            )


def without_captions(rows: datasets.Dataset) -> dict[int, str]:
    """{row number: what is wrong} for rows that have no caption."""
    return {i: "no caption" for i, captions in enumerate(rows["captions"][:]) if not captions}


def undecodable(rows: datasets.Dataset, max_megapixels: float = MAX_MEGAPIXELS) -> dict[int, str]:
    """{row number: what is wrong} for images that do not decode to RGB. Decodes every image, with a thread per core.

    Args:
        rows: a table with `image`.
        max_megapixels: larger images are not decoded.
    """
    cells = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))

    def fault(i: int) -> str | None:
        return picture_or_fault(cells[i]["image"], max_megapixels)[1]

    reasons = {}
    shown = progress("Checking images", len(rows), "image")
    with pixel_limit(max_megapixels), shown, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), 1000):  # in parts, since map takes all of its input at once
            numbers = range(start, min(start + 1000, len(rows)))
            reasons |= {i: reason for i, reason in zip(numbers, pool.map(fault, numbers), strict=True) if reason}
            shown.update(len(numbers))
    return reasons


def picture_or_fault(cell: dict | None, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[PIL.Image.Image | None, str | None]:
    """Decode a picture, or say what is wrong with it. Call it within `pixel_limit`.

    Args:
        cell: `bytes` and `path` of a file, as `datasets.Image(decode=False)` has them; None where there is no picture.
        max_megapixels: the limit, for the message.

    Returns:
        The picture, RGB and upright, and None; or None, and what is wrong in a few words.
    """
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        return None, "no image"
    if cell["bytes"] is None and os.path.exists(cell["path"]) and not os.path.isfile(cell["path"]):
        return None, NOT_A_FILE  # opening a pipe could wait for ever
    try:
        return to_rgb(_DECODER.decode_example(cell)), None
    except FileNotFoundError:
        return None, "no such file"
    except PIL.UnidentifiedImageError:
        return None, "not an image"
    except Exception as error:  # Pillow's decoders raise a dozen types, SyntaxError and struct.error among them
        return None, too_large(error, max_megapixels) or str(error) or type(error).__name__


def named(rows: datasets.Dataset, reasons: dict[int, str]) -> str:
    """The first bad rows by name, each with what is wrong with it, as a part of a message."""
    shown = sorted(reasons)[:NAMES_SHOWN]
    if "file_name" in rows.column_names:
        names = rows.select(shown)["file_name"][:]
    else:
        cells = rows.select(shown).cast_column("image", datasets.Image(decode=False))["image"][:]
        names = [cell and cell["path"] and Path(cell["path"]).name for cell in cells]
    listed = [f"{name or f'row {i}'} ({reasons[i]})" for i, name in zip(shown, names, strict=True)]
    return ", ".join(listed) + (f" and {len(reasons) - len(shown)} more" if len(reasons) > len(shown) else "")
