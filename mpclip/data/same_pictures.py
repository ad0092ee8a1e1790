"""Which rows of a table show the same picture: the same file, or files and cells with the same bytes.

Rows of one picture must be one row. As several they would compete with one another as wrong answers, and parts of a split would
share pictures. Pictures are compared by size first. Only where sizes are equal, their bytes are hashed.
"""

import logging
import os
import stat
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import datasets
import pyarrow
import pyarrow.compute
import xxhash

from mpclip.files import hash_files, xxh128_file
from mpclip.progress import progress

logger = logging.getLogger(__name__)

BATCH = 100  # pictures in memory at a time
NAMES_SHOWN = 3


def merge_same_pictures(rows: datasets.Dataset, numbers: Sequence[int], source: str) -> datasets.Dataset:
    """Take rows of a table, and make one row of all with the same picture: the first of them, with the captions of all.

    Files that are equal under several names are told by a warning, since their rows may have meant different pictures.

    Args:
        rows: a table with `image` and `captions`.
        numbers: of the rows to take. They are selected last, since `datasets` would copy a selection to change a column of it.
        source: where the table comes from, for the warning.
    """
    chosen = rows.select(numbers)
    paths, sizes = _paths_and_sizes(rows, numbers)
    contents = _contents(chosen, paths, sizes, _repeated(paths, sizes))
    first: dict[Hashable, int] = {}  # picture -> its first row among those chosen
    captions: dict[int, list[str]] = {}  # that row -> the captions of the picture
    equal_files: dict[str, str] = {}  # file -> the first file that is equal
    for i, (path, row_captions) in enumerate(zip(paths, chosen["captions"][:], strict=True)):
        at = first.setdefault(contents[i], i)
        captions.setdefault(at, []).extend(row_captions)
        if path and path != paths[at]:
            equal_files[path] = paths[at] or "a picture in the table"
    if len(captions) == len(chosen):
        return chosen
    if equal_files:
        shown = ", ".join(f"{Path(a).name} = {Path(b).name}" for a, b in list(equal_files.items())[:NAMES_SHOWN])
        warnings.warn(
            f"{source}: {len(equal_files)} files show a picture that another file shows ({shown}). Each picture is one row, "
            "with the captions of all its files",
            stacklevel=3,
        )
    logger.info("%s: %d rows of %d pictures", source, len(chosen), len(captions))
    merged = {numbers[i]: row for i, row in captions.items()}
    column = [merged.get(number, []) for number in range(len(rows))]
    rows = rows.remove_columns("captions").add_column("captions", column, feature=rows.features["captions"])
    return rows.select(list(merged))


def shared_pictures(first: datasets.Dataset, second: datasets.Dataset) -> int:
    """The number of rows of `second` whose picture is in `first`, too.

    Args:
        first, second: tables with `image`.
    """
    (paths, sizes), (other_paths, other_sizes) = (_paths_and_sizes(rows, range(len(rows))) for rows in (first, second))
    common = set(sizes) & set(other_sizes) - {0}
    known = set(_contents(first, paths, sizes, common).values())
    known -= set(range(len(first)))  # a row number says nothing of the other table
    return sum(content in known for content in _contents(second, other_paths, other_sizes, common).values())


def warn_of_shared_pictures(trained: datasets.Dataset, evaluated: datasets.Dataset, train_split: str, eval_split: str) -> None:
    """Warn if pictures to evaluate on are also trained on: the evaluation then rewards what was learned by heart.

    Args:
        trained, evaluated: tables with `image`.
        train_split, eval_split: their names, for the warning.
    """
    if count := shared_pictures(trained, evaluated):
        warnings.warn(
            f"{count} of {len(evaluated)} pictures of {eval_split!r} are also in {train_split!r}: the evaluation is too good "
            "by them. Remove them from one of the two",
            stacklevel=3,
        )


def _paths_and_sizes(rows: datasets.Dataset, numbers: Sequence[int]) -> tuple[list[str | None], list[int]]:
    """For rows of a table their files (None where the table holds the picture) and the bytes of their pictures (0 for none).

    Args:
        rows: the table; of pictures that it holds, only the lengths are read.
        numbers: of the rows.
    """
    held: list[int | None] = []
    files: list[str | None] = []
    for cells in _cells(rows, 1000):
        content, path = (pyarrow.compute.struct_field(cells, name) for name in ("bytes", "path"))
        held += pyarrow.compute.binary_length(content).to_pylist()
        files += path.to_pylist()
    paths = [files[number] if held[number] is None else None for number in numbers]
    of_file = {path: _size(path) for path in dict.fromkeys(paths) if path}
    return paths, [of_file[path] if path else held[number] or 0 for path, number in zip(paths, numbers, strict=True)]


def _repeated(paths: list[str | None], sizes: list[int]) -> set[int]:
    """The sizes that several pictures have. A file that several rows name is one picture."""
    once = {path or i: size for i, (path, size) in enumerate(zip(paths, sizes, strict=True))}
    return {size for size, count in Counter(once.values()).items() if count > 1} - {0}


def _contents(rows: datasets.Dataset, paths: list[str | None], sizes: list[int], hashed: set[int]) -> dict[int, Hashable]:
    """Row number -> what is equal for rows with the same picture.

    Args:
        rows, paths, sizes: the table, and what `_paths_and_sizes` made of it.
        hashed: the sizes of pictures that are told apart by their bytes. Of others, the file or the row number tells.
    """
    contents: dict[int, Hashable] = {i: path or i for i, path in enumerate(paths)}
    files = [path for path in dict.fromkeys(filter(None, paths)) if _size(path) in hashed]
    digests = hash_files([Path(file) for file in files], xxh128_file, title="Comparing pictures")
    of_file = {file: digests[Path(file)] for file in files}
    held = [i for i, path in enumerate(paths) if path is None and sizes[i] in hashed]
    contents |= {i: (sizes[i], of_file[path]) for i, path in enumerate(paths) if path in of_file}
    with progress("Comparing pictures", len(held), "picture") as shown:
        numbers = iter(held)
        for cells in _cells(rows.select(held), BATCH) if held else ():
            for content, i in zip(pyarrow.compute.struct_field(cells, "bytes"), numbers, strict=False):
                contents[i] = (sizes[i], xxhash.xxh3_128_hexdigest(content.as_buffer()))
            shown.update(len(cells))
    return contents


def _cells(rows: datasets.Dataset, batch_size: int):
    """The column `image` in batches, as Arrow holds it: structs of `bytes` and `path`."""
    rows = rows.with_format(None).select_columns(["image"]).with_format("arrow")
    for table in rows.iter(batch_size=batch_size):
        yield from table["image"].chunks


def _size(path: str) -> int:
    """The bytes of a file; 0 for what is no file, such as a pipe, which never ends."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
