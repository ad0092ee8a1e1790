"""Opening a source of images and captions: image folders, saved data sets, parquet, the Hub. One split of it, unchecked."""

import glob
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path, PureWindowsPath

import datasets
import numpy as np
import pandas

from mpclip.data.image_columns import canonical_columns

METADATA_FILES = ("metadata.jsonl", "metadata.csv")

# Words in the name of a data file and the split they stand for, as in `datasets`.
SPLIT_OF_WORD = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
SPLIT_OF_WORD |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}

PART_HINT = "A split can also be a part of one: 'train[:90%]' to train on, 'train[90%:]' to evaluate on"


def open_split(
    source: str, split: str, image_column: str | None, caption_column: str | None, need_captions: bool = True
) -> datasets.Dataset:
    """The rows of one split with the columns `image` and `captions`. No image is decoded and no path is checked.

    Args:
        source: one of the forms that `mpclip.data.image_text` lists.
        split: name of the split.
        image_column, caption_column, need_captions: as in `load_image_text`.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: the source has no such split, or not the columns needed.
    """
    parts = _parts(source, image_column)
    if len(parts) > 1 and split not in parts:
        raise ValueError(f"{source} has no split {split!r}; splits found: {sorted(parts)}. {PART_HINT}")
    name = split if split in parts else next(iter(parts))
    rows = canonical_columns(parts[name](), source, image_column, caption_column, need_captions)
    if len(parts) == 1 and "split" in rows.column_names:
        split_of_row = np.array(rows["split"][:], dtype=str)  # (rows,)
        if split not in split_of_row:
            found = np.unique(split_of_row).tolist()
            raise ValueError(f"{source} has no split {split!r}; splits found in its column `split`: {found}. {PART_HINT}")
        return rows.select(np.flatnonzero(split_of_row == split))
    if name != split:
        raise ValueError(f"{source} has no split {split!r}; splits found: [{name!r}], and no column `split`. {PART_HINT}")
    return rows


def _parts(source: str, image_column: str | None) -> dict[str, Callable[[], datasets.Dataset]]:
    """For each part of a source, by name, the function that opens it. A table without a name is "train", as in `datasets`."""
    path = Path(source)
    if metadata := _metadata_file(path):
        return {"train": partial(_read_metadata, metadata, image_column)}
    if path.is_dir():
        split_files = {folder.name: _metadata_file(folder) for folder in path.iterdir()}
        if any(split_files.values()):
            return {name: partial(_read_metadata, file, image_column) for name, file in split_files.items() if file}
    if (path / "dataset_dict.json").is_file():
        names = json.loads((path / "dataset_dict.json").read_text())["splits"]
        return {name: partial(datasets.load_from_disk, str(path / name)) for name in names}
    if (path / "state.json").is_file():
        rows = datasets.load_from_disk(source)
        return {str(rows.split or "train"): lambda: rows}
    if source.endswith(".parquet"):
        return {
            name: partial(datasets.load_dataset, "parquet", data_files={name: files}, split=name)
            for name, files in _parquet_files(source).items()
        }
    # A Hub id has at most one slash and does not begin with a dot or a slash. Anything else was meant as a path.
    if not path.exists() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise FileNotFoundError(f"nothing at {source}: expected a folder, a parquet file, or the id of a Hub data set")
    try:
        names = datasets.get_dataset_split_names(source)
    except Exception as error:  # of many types: the network, the Hub, or a folder without data
        error.add_note(
            f"{source!r} has no metadata.jsonl or metadata.csv, so datasets.load_dataset was asked to open it, and failed"
        )
        raise
    return {name: partial(datasets.load_dataset, source, split=name) for name in names}


def _parquet_files(pattern: str) -> dict[str, list[str]]:
    """Parquet files by split. A word in a file's name says the split: `train-00000.parquet`, `flickr_val.parquet`."""
    files: dict[str, list[str]] = {}
    for file in sorted(glob.glob(pattern)):
        words = re.split(r"[^a-z]+", Path(file).stem.lower())
        split = next((SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD), "train")
        files.setdefault(split, []).append(file)
    if not files:
        raise FileNotFoundError(f"no parquet file at {pattern}")
    return files


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def _read_metadata(file: Path, image_column: str | None) -> datasets.Dataset:
    """The rows of metadata.jsonl or metadata.csv with a column of images.

    The column is `image`, beside the column `file_name` of paths. With `image_column`, images replace the paths in it.
    """
    if file.suffix == ".csv":
        # Without keep_default_na=False the captions "none" and "NA" would become missing values.
        records = pandas.read_csv(file, keep_default_na=False).to_dict("records")
    else:
        records = []
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: not JSON ({error})") from error
    if not records:
        raise ValueError(f"{file} has no rows: expected one per image, with file_name and captions")

    path_column = image_column or "file_name"
    images = []
    for number, record in enumerate(records, start=1):
        name = record.get(path_column)
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"{file}, row {number}: {path_column} is {name!r}, expected the path of an image in {file.parent}. The row "
                f"has the columns {list(record)}: set image_column to the one with the path"
            )
        path = PureWindowsPath(name)  # knows both kinds of slash, and drive letters
        if path.anchor or ".." in path.parts:
            raise ValueError(f"{file}, row {number}: refused {name!r}: images must lie within {file.parent}")
        images.append(str(file.parent.absolute() / name))
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names} | {image_column or "image": images}
    return datasets.Dataset.from_dict(columns).cast_column(image_column or "image", datasets.Image())
