"""Tables with the pictures in them: parquet, `Dataset.save_to_disk`, and all else that `datasets.load_dataset` opens."""

import glob
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets

from mpclip.data.splits import files_by_split

Opener = Callable[[], datasets.Dataset]


def parquet_parts(pattern: str) -> dict[str, Opener]:
    """Parquet files by split; see `split_of_file`.

    Raises:
        FileNotFoundError: no file matches.
    """
    files = files_by_split([Path(file) for file in glob.glob(pattern)] or ([Path(pattern)] if Path(pattern).exists() else []))
    if not files:
        raise FileNotFoundError(f"no parquet file at {pattern}")
    return {name: partial(_load, "parquet", name, data_files={name: list(map(str, files[name]))}) for name in files}


def saved_parts(folder: Path) -> dict[str, Opener]:
    """The parts of a folder that `save_to_disk` wrote; {} for another folder."""
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        return {name: partial(datasets.load_from_disk, str(folder / name)) for name in names}
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(str(folder))
        return {str(rows.split or "train"): lambda: rows}
    return {}


def loaded_parts(source: str) -> dict[str, Opener]:
    """The parts of a folder, or of a data set of the Hub, that `datasets` opens.

    Raises:
        ValueError: it does not.
    """
    try:
        names = datasets.get_dataset_split_names(source)
    except Exception as error:  # of many types: the network, the Hub, or a folder without data
        raise ValueError(f"datasets.load_dataset could not open {source} ({type(error).__name__}: {error})") from error
    return {name: partial(_load, source, name) for name in names}


def _load(source: str, split: str, **files) -> datasets.Dataset:
    try:
        return datasets.load_dataset(source, split=split, **files)
    except Exception as error:  # of many types: damaged files, columns that differ between files
        told = files or source
        reason = error.__cause__ or error
        raise ValueError(f"datasets.load_dataset could not read {told} ({type(reason).__name__}: {reason})") from error
