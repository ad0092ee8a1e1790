"""Splits of a data set: which one a file belongs to by its name, which one a row belongs to, and parts of a split."""

import re
import warnings
from pathlib import Path

import datasets

# Words in the name of a data file and the split they stand for, as in `datasets`.
SPLIT_OF_WORD = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
SPLIT_OF_WORD |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}

PART_HINT = "A split can also be a part of one: 'train[:90%]' to train on, 'train[90%:]' to evaluate on"
ROWS_SHOWN = 10


def split_of_file(file: str | Path) -> str:
    """The split of a data file, by a word in its name: `train-00000.parquet`, `captions_val2017.json`. Without one: train."""
    words = re.split(r"[^a-z]+", Path(file).stem.lower())
    return next((SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD), "train")


def files_by_split(files: list[Path]) -> dict[str, list[Path]]:
    """Files in the order of their names, by `split_of_file`."""
    found: dict[str, list[Path]] = {}
    for file in sorted(files):
        found.setdefault(split_of_file(file), []).append(file)
    return found


def rows_of_split(rows: datasets.Dataset, source: str, split: str) -> list[int]:
    """The numbers of the rows whose column `split` names one split. Rows that name none belong to none: a warning counts them.

    Raises:
        ValueError: no row is of this split.
    """
    cells, feature = rows["split"][:], rows.features["split"]
    if isinstance(feature, datasets.ClassLabel):
        cells = [None if cell is None else feature.int2str(cell) for cell in cells]
    named = [value if value in (None, "") or value != value else str(value) for value in cells]
    unnamed = [i for i, value in enumerate(named) if not isinstance(value, str) or not value.strip()]
    if unnamed:
        shown = rows.select(unnamed[:ROWS_SHOWN])["file_name"][:] if "file_name" in rows.column_names else unnamed[:ROWS_SHOWN]
        rest = f" and {len(unnamed) - len(shown)} more" if len(unnamed) > len(shown) else ""
        warnings.warn(
            f"{source}: {len(unnamed)} of {len(named)} rows have an empty `split` and are in no split: "
            f"{', '.join(map(str, shown))}{rest}. Write train, validation or test there",
            stacklevel=4,
        )
    if split not in named:
        found = sorted(set(named) - {named[i] for i in unnamed})
        raise ValueError(f"{source} has no split {split!r}; splits found in its column `split`: {found}. {PART_HINT}")
    return [i for i, value in enumerate(named) if value == split]


def part_of_split(rows: datasets.Dataset, source: str, split: str) -> datasets.Dataset:
    """The part of a split that `split` writes as `datasets` does, such as "train[:90%]" or "train[100:200]".

    Args:
        rows: the whole split, a row per picture: parts then share no picture.
        source: where it comes from, for messages.
        split: name of the split, and of the part of it.

    Raises:
        ValueError: the part is written otherwise, or holds no picture.
    """
    name, bracket, _ = split.partition("[")
    if not bracket:
        return rows
    try:
        span = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows)})[0]
    except (ValueError, AssertionError) as error:
        raise ValueError(f"split {split!r}: expected a part such as 'train[:90%]' or 'train[100:200]' ({error})") from error
    part = range(span.from_ or 0, len(rows) if span.to is None else span.to)
    if not part:
        raise ValueError(f"{source}: {split!r} holds no picture, since {name!r} has {len(rows)}")
    return rows.select(part)
