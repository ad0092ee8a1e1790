"""Tables that hold their pictures, in one form: the columns `image` and `captions`."""

import datasets
import pyarrow.compute

from mpclip.data.captions import CLASS_COLUMNS, captions_of_table
from mpclip.data.reading import ReadingOptions

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "jpeg", "webp")


def canonical_columns(rows: datasets.Dataset, source: str, reading: ReadingOptions, need_captions: bool) -> datasets.Dataset:
    """The table with its image and caption columns made into `image` and `captions`.

    Args:
        rows: a table as it was opened.
        source: where it comes from, for error messages.
        reading, need_captions: as in `open_table`.

    Returns:
        The table with `image` (`datasets.Image`), `captions` (list of non-empty str) and its other columns.

    Raises:
        ValueError: a column is not found or has another type.
    """
    image = _image_column(rows, source, reading.image_column)
    if rows.features[image] in (datasets.Value("string"), datasets.Value("large_string")):
        raise ValueError(
            f"{source}: column {image!r} holds text, expected pictures (datasets.Image). Paths are read from tables beside the "
            "pictures: metadata.jsonl, metadata.csv and the other forms that mpclip/data/image_text.py lists"
        )
    if not _may_hold_pictures(rows.features[image]):
        raise ValueError(
            f"{source}: column {image!r} holds {rows.features[image]}, expected one picture per row (datasets.Image)"
        )
    columns = {name: rows[name] for name in rows.column_names}  # read when they are used
    for name in CLASS_COLUMNS:
        if isinstance(rows.features.get(name), datasets.ClassLabel):
            columns[name] = rows.features[name].int2str(rows[name][:])
    try:
        found, captions = captions_of_table(columns, reading, need_captions, first=0)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    rows = rows.remove_columns({*found, "captions"} & set(rows.column_names))
    rows = rows.add_column("captions", captions, feature=datasets.List(datasets.Value("string")))
    if image != "image":
        rows = rows.remove_columns({"image"} & set(rows.column_names)).rename_column(image, "image")
    return rows.cast_column("image", datasets.Image())


def paths_referred(rows: datasets.Dataset) -> list[str | None]:
    """For each row the file that holds its image, or None where the table itself holds it."""
    paths = []
    for table in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=1000):
        embedded, path = (pyarrow.compute.struct_field(table["image"], name) for name in ("bytes", "path"))
        paths += pyarrow.compute.if_else(pyarrow.compute.is_valid(embedded), None, path).to_pylist()
    return paths


def _may_hold_pictures(feature) -> bool:
    """Whether a column of this type can be read as pictures: `datasets.Image`, the bytes of files, or structs with `bytes`."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary", "null")
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _image_column(rows: datasets.Dataset, source: str, given: str | None) -> str:
    """`given`, or else the first of the usual names that the table has."""
    for name in (given,) if given else IMAGE_COLUMNS:
        if name in rows.column_names:
            return name
    wanted = f"no column {given!r}" if given else f"no column is named {', '.join(IMAGE_COLUMNS)}"
    raise ValueError(f"{source}: {wanted}; it has {rows.column_names}. Set image_column to one of these, or rename one")
