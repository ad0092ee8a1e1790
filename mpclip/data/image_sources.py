"""Opening a source of images and captions, whatever its form (mpclip/data/forms). One split of it; no image is decoded."""

import glob
import re
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import huggingface_hub

from mpclip.data.forms.clip_benchmark import caption_per_line, shards_by_split
from mpclip.data.forms.coco import is_coco, read_coco
from mpclip.data.forms.delimited import read_delimited
from mpclip.data.forms.flickr import is_flickr, read_flickr
from mpclip.data.forms.json_rows import parse_json, read_json_lines, read_json_list, read_json_mapping
from mpclip.data.forms.karpathy import is_karpathy, read_karpathy
from mpclip.data.forms.listing import Listing, given_folder, table_of
from mpclip.data.forms.saved import Opener, loaded_parts, parquet_parts, saved_parts
from mpclip.data.forms.tars import rows_of_tars
from mpclip.data.forms.text_files import read_text
from mpclip.data.image_checks import refuse_paths_outside
from mpclip.data.image_columns import canonical_columns
from mpclip.data.links import Bounds
from mpclip.data.reading import ReadingOptions
from mpclip.data.splits import PART_HINT, files_by_split, rows_of_split, split_of_file

HUB_ID = r"[\w-][\w.-]*(/[\w.-]+)?"  # at most one slash; begins with neither a dot nor a slash
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
# What else names pictures, by the names that such files usually have. Any other name is opened when it is given itself.
LISTING_FILES = (
    *("captions*.csv", "captions*.tsv", "captions*.jsonl", "captions*.json", "captions*.txt", "dataset*.json"),
    *("results*.csv", "results*.token", "Flickr*.token.txt"),
)
ALBEF_FILES = ("flickr30k_*.json", "*karpathy*.json")  # lists of ALBEF and BLIP, read where none of the above is there
HOLD_PICTURES = ("*.parquet", "*/*.parquet", "*.tar", "state.json", "dataset_dict.json")  # these are read instead
# In names that would match: of `datasets`, Flickr8k's captions in base forms, and BLIP's captions for scoring.
NO_LISTINGS = ("dataset_info", ".lemma.", "_gt.")
TABLE_SUFFIXES = (".csv", ".tsv", ".token", ".jsonl", ".json")
LISTING_SUFFIXES = (*TABLE_SUFFIXES, ".txt")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
DATA_SUFFIXES = (".parquet", ".arrow", *TAR_SUFFIXES, *LISTING_SUFFIXES)


def open_table(
    source: str, split: str, reading: ReadingOptions | None = None, need_captions: bool = True
) -> tuple[datasets.Dataset, list[int]]:
    """A table with the columns `image` and `captions`, as many rows for a picture as the source has, and the rows of one split.

    Args:
        source: one of the forms that `mpclip.data.image_text` lists.
        split: name of the split.
        reading: how it is read; None for the defaults.
        need_captions: as in `load_image_text`.

    Returns:
        The table, and the numbers of those of its rows that are in the split.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: the source has no such split, not the columns needed, or files that lie elsewhere.
    """
    parts = _parts(source, reading or ReadingOptions(), need_captions)
    if len(parts) > 1 and split not in parts:
        raise ValueError(f"{source} has no split {split!r}; splits found: {sorted(parts)}. {PART_HINT}")
    name = split if split in parts else next(iter(parts))
    rows = parts[name]()
    if len(parts) == 1 and "split" in rows.column_names:
        return rows, rows_of_split(rows, source, split)
    if name != split:
        raise ValueError(f"{source} has no split {split!r}; splits found: [{name!r}], and no column `split`. {PART_HINT}")
    return rows, list(range(len(rows)))


def _parts(source: str, reading: ReadingOptions, need_captions: bool) -> dict[str, Opener]:
    """For each part of a source, by name, the function that opens it. A table without a name is "train", as in `datasets`."""
    path = Path(source)
    listings = _listings(path)
    if listings:
        return {name: partial(_read_listing, file, path, reading, need_captions) for name, file in listings.items()}
    if tars := tar_files(source):
        if reading.caption_separator is None and caption_per_line(next(iter(tars.values()))[0]):
            reading = replace(reading, caption_separator="\n")
        opened = {name: partial(rows_of_tars, files, reading, need_captions) for name, files in tars.items()}
        reading = replace(reading, caption_column=None)  # it named a file of the shards, whose rows have `captions`
    elif source.endswith(".parquet"):
        opened = parquet_parts(source)
    elif path.is_dir():
        Bounds([path], reading.follow_links).refuse_linked_files(path, DATA_SUFFIXES)
        opened = saved_parts(path) or _loaded_folder(path)
    elif re.fullmatch(HUB_ID, source) and not path.exists() and not source.endswith(DATA_SUFFIXES):
        opened = loaded_parts(source)
    else:
        what = "something else" if path.exists() else "nothing"
        raise FileNotFoundError(
            f"{what} at {source}: expected a folder, a file (.parquet, .tar, {', '.join(LISTING_SUFFIXES)}), or the id of a "
            "Hub data set"
        )
    return {name: partial(_canonical, open_part, source, reading, need_captions) for name, open_part in opened.items()}


def _canonical(open_part: Opener, source: str, reading: ReadingOptions, need_captions: bool) -> datasets.Dataset:
    """A table that was opened by `datasets`, with its columns as they must be. Its pictures lie in it, or in the source."""
    caches = [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    try:
        rows = canonical_columns(open_part(), source, reading, need_captions)
    except ValueError as error:
        raise ValueError(f"{error}{_or_another_table(Path(source))}") from error
    refuse_paths_outside(rows, source, Bounds([source, *caches], reading.follow_links))
    return rows


def _listings(path: Path) -> dict[str, Path]:
    """The files that name the pictures of a source, by split; {} if there is none."""
    if path.is_file() and path.suffix.lower() in LISTING_SUFFIXES:
        return {split_of_file(path): path}
    if not path.is_dir():
        return {}
    if metadata := _metadata_file(path):
        return {"train": metadata}
    split_files = {folder.name: _metadata_file(folder) for folder in path.iterdir() if folder.is_dir()}
    if any(split_files.values()):
        return {name: file for name, file in split_files.items() if file}
    if any(next(path.glob(pattern), None) for pattern in HOLD_PICTURES):
        return {}
    places = (path, path / "annotations")
    for patterns in (LISTING_FILES, ALBEF_FILES):
        found = {file: None for place in places for pattern in patterns for file in place.glob(pattern)}
        by_split = files_by_split([file for file in found if not any(part in file.name for part in NO_LISTINGS)])
        if by_split:
            break
    for name, files in by_split.items():
        if len(files) > 1:
            raise ValueError(
                f"{path} has several tables for the split {name!r}: {', '.join(map(str, files))}. Give one as the data set"
            )
    return {name: files[0] for name, files in by_split.items()}


def _metadata_file(folder: Path) -> Path | None:
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(found) > 1:
        warnings.warn(f"{found[0]} is read, and {found[1]} beside it is not: remove the one that is not meant", stacklevel=5)
    return next(iter(found), None)


def _read_listing(file: Path, source: Path, reading: ReadingOptions, need_captions: bool) -> datasets.Dataset:
    """The table of a file that names pictures, opened by what it is: by its ending, and by what is in it."""
    folder = source if source.is_dir() else file.parent.parent if file.parent.name == "annotations" else file.parent
    bounds = Bounds([folder], reading.follow_links)
    if file != source and (fault := bounds.fault(file)):
        raise ValueError(f"refused {file}, {fault}")
    if reading.image_folder is not None:
        bounds = Bounds([given_folder(file.parent, reading.image_folder)], reading.follow_links)
    return table_of(_listing(file, reading), bounds, reading, need_captions)


def _listing(file: Path, reading: ReadingOptions) -> Listing:
    text, ending = read_text(file), file.suffix.lower()
    if ending == ".jsonl":
        return read_json_lines(file, text)
    if ending == ".json":
        content = parse_json(file, text)
        if is_coco(content):
            return read_coco(file, content)
        if is_karpathy(content):
            return read_karpathy(file, content)
        if isinstance(content, list):
            return read_json_list(file, content)
        if isinstance(content, dict) and all(isinstance(captions, str | list | None) for captions in content.values()):
            return read_json_mapping(file, content)
        raise ValueError(
            f"{file}: found {str(content)[:80]!r}. Expected a list of objects with file_name and captions, "
            "COCO's captions_*.json, Karpathy's dataset_*.json, or a mapping of file names to captions"
        )
    return read_flickr(file, text) if is_flickr(text) else read_delimited(file, text, reading)


def tar_files(source: str) -> dict[str, list[Path]]:
    """Shards by split: of a pattern, a file, CLIP_benchmark's folders, or the top of a folder."""
    if source.endswith(TAR_SUFFIXES):
        found = [Path(file) for file in glob.glob(source)] or ([Path(source)] if Path(source).is_file() else [])
        if not found:
            raise FileNotFoundError(f"no tar file at {source}; several are written with a star, such as data/train-*.tar")
        return files_by_split(found)
    path = Path(source)
    if not path.is_dir():
        return {}
    return shards_by_split(path) or files_by_split([file for file in path.iterdir() if file.name.endswith(TAR_SUFFIXES)])


def _loaded_folder(path: Path) -> dict[str, Opener]:
    """A folder without metadata, as `datasets` opens it: class folders, parquet and others."""
    try:
        return loaded_parts(str(path))
    except ValueError as error:
        raise ValueError(f"{path} has no {' or '.join(METADATA_FILES)}{_or_another_table(path)}, and {error}") from error


def _or_another_table(path: Path) -> str:
    """For a message: the files in a folder that may be tables under another name; "" if there is none."""
    names = sorted(path.glob("*")) if path.is_dir() else []
    names = [str(file) for file in names if file.suffix.lower() in TABLE_SUFFIXES and "dataset_info" not in file.name]
    return f" (if {', '.join(names[:3])} names its pictures, give that file as the data set)" if names else ""
