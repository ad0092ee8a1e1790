"""Tables of images and captions in one form: the columns `image` and `captions`, and one row per image file."""

import contextlib
import json
from typing import Any

import datasets
import pyarrow.compute

IMAGE_COLUMNS = ("image", "img", "jpg")
CAPTION_COLUMNS = ("captions", "caption", "text", "sentences", "raw")


def canonical_columns(
    rows: datasets.Dataset, source: str, image_column: str | None, caption_column: str | None, need_captions: bool
) -> datasets.Dataset:
    """The table with its image and caption columns renamed to `image` and `captions`.

    Args:
        rows: a table as it was opened.
        source: where it comes from, for error messages.
        image_column, caption_column, need_captions: as in `load_image_text`.

    Returns:
        The table with `image` (`datasets.Image`), `captions` (list of non-empty str) and its other columns.

    Raises:
        ValueError: a column is not found or has another type.
    """
    image = _find_column(rows, source, "image_column", image_column, IMAGE_COLUMNS)
    caption = None
    if need_captions or caption_column or set(CAPTION_COLUMNS) & set(rows.column_names):
        caption = _find_column(rows, source, "caption_column", caption_column, CAPTION_COLUMNS)
    if rows.features[image] in (datasets.Value("string"), datasets.Value("large_string")):
        raise ValueError(
            f"{source}: column {image!r} holds text, expected pictures (datasets.Image). "
            "Paths are read only from the metadata.jsonl or metadata.csv of a folder of images"
        )
    captions = [_as_captions(cell) for cell in rows[caption][:]] if caption else [[] for _ in range(len(rows))]
    rows = rows.remove_columns({caption, "captions"} & set(rows.column_names))
    rows = rows.add_column("captions", captions, feature=datasets.List(datasets.Value("string")))
    if image != "image":
        rows = rows.remove_columns({"image"} & set(rows.column_names)).rename_column(image, "image")
    return rows.cast_column("image", datasets.Image())


def merge_same_file(rows: datasets.Dataset) -> datasets.Dataset:
    """Make one row of all rows that refer to the same image file: the first of them, with the captions of all.

    Rows whose image lies in the table itself stay as they are.
    """
    place: dict[str | int, int] = {}  # image file, or number of a row with its own image -> place among the rows kept
    kept: list[int] = []
    captions: list[list[str]] = []
    for i, (path, row_captions) in enumerate(zip(paths_referred(rows), rows["captions"][:], strict=True)):
        at = place.setdefault(path or i, len(kept))
        if at == len(kept):
            kept.append(i)
            captions.append([])
        captions[at] += row_captions
    if len(kept) == len(rows):
        return rows
    feature = rows.features["captions"]
    return rows.select(kept).remove_columns("captions").add_column("captions", captions, feature=feature)


def paths_referred(rows: datasets.Dataset) -> list[str | None]:
    """For each row the file that holds its image, or None where the table itself holds it."""
    paths = []
    for table in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=1000):
        embedded, path = (pyarrow.compute.struct_field(table["image"], name) for name in ("bytes", "path"))
        paths += pyarrow.compute.if_else(pyarrow.compute.is_valid(embedded), None, path).to_pylist()
    return paths


def _find_column(rows: datasets.Dataset, source: str, option: str, given: str | None, usual: tuple[str, ...]) -> str:
    """`given`, or else the first of the usual names that the table has."""
    candidates = (given,) if given else usual
    for name in candidates:
        if name in rows.column_names:
            return name
    wanted = f"no column {given!r}" if given else f"no column is named {', '.join(usual)}"
    raise ValueError(f"{source}: {wanted}; it has {rows.column_names}. Set {option} to one of these, or rename one")


def _as_captions(cell: Any) -> list[str]:
    """The captions in a cell of any form that `load_image_text` lists. Empty ones are left out."""
    if isinstance(cell, str) and cell.startswith('["'):
        with contextlib.suppress(json.JSONDecodeError):  # then it is a plain caption that begins with a bracket
            cell = json.loads(cell)
    if isinstance(cell, dict) and "raw" in cell:
        cell = cell["raw"]
    if cell is None or isinstance(cell, str):
        cell = [cell]
    if not isinstance(cell, list):
        raise ValueError(f"a caption cell is {cell!r} ({type(cell).__name__}), expected a str or a list of them")
    captions = [caption["raw"] if isinstance(caption, dict) and "raw" in caption else caption for caption in cell]
    if wrong := [caption for caption in captions if not isinstance(caption, str | None)]:
        raise ValueError(f"a caption is {wrong[0]!r} ({type(wrong[0]).__name__}), expected a str")
    return [caption for caption in captions if caption and caption.strip()]
