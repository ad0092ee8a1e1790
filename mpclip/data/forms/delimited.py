"""Tables as spreadsheets write them: a header, then a row per picture or per caption; commas, tabs or semicolons between.

file_name,caption
1.jpg,"a red car, parked"
"""

import csv
import io
import re
from pathlib import Path

import pandas

from mpclip.data.captions import CLASS_COLUMNS, caption_columns
from mpclip.data.forms.listing import PATH_COLUMNS, Listing
from mpclip.data.reading import ReadingOptions

DELIMITERS = (",", "\t", ";", "|")


def read_delimited(file: Path, text: str, reading: ReadingOptions) -> Listing:
    """The rows of a file with a header.

    Columns of paths, captions, classes and splits are text, whatever they look like. Others become numbers if all their cells
    are numbers, and True or False likewise.

    Args:
        file: the file, for messages.
        text: its content.
        reading: names the columns of paths and captions.

    Raises:
        ValueError: a row has more cells than the header.
    """
    text = text.lstrip()
    first, _, rest = text.partition("\n")
    delimiter = next((delimiter for delimiter in DELIMITERS if delimiter in first), ",")
    if said := re.fullmatch(r"sep=(.)\s*", first):  # as Excel writes it
        delimiter, text = said[1], rest
    header, rows = _cells(file, text, delimiter)
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    try:
        captions = caption_columns(header, reading.caption_column)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    text_columns = {*PATH_COLUMNS, *captions, *CLASS_COLUMNS[1:], reading.image_column, "split"}
    return Listing(file, {name: cells if name in text_columns else _typed(cells) for name, cells in columns.items()})


def _cells(file: Path, text: str, delimiter: str, strict: bool = True) -> tuple[list[str], list[list[str | None]]]:
    """The header and the rows, all of its length: what a row lacks is None. A second column `a` is named `a.1`."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    rows: list[list[str | None]] = []
    try:
        named = [name.strip() for name in next(reader, [])]
        header = [f"{name}.{count}" if (count := named[:i].count(name)) else name for i, name in enumerate(named)]
        for row in reader:
            if any(row[len(header) :]):
                raise ValueError(
                    f"{file}, row {len(rows) + 1} (line {reader.line_num}): {len(row)} cells, but the header has {len(header)} "
                    f"({', '.join(header)}): found {delimiter.join(row)[:80]!r}. Write a cell that has {delimiter!r} in it in "
                    'double quotes: "a dog, running"'
                )
            if any(row):
                rows.append(row[: len(header)] + [None] * (len(header) - len(row)))
    except csv.Error as error:
        if strict and "end of data" not in str(error):  # such as: a.jpg,"Stop" says the sign
            return _cells(file, text, delimiter, strict=False)
        raise ValueError(f"{file}, row {len(rows) + 1}: a cell that begins with a quote does not end ({error})") from error
    return header, rows


def _typed(cells: list[str | None]) -> list:
    """Numbers or truth values where all cells are such; else the text as it is."""
    if "" in cells or None in cells:
        return cells
    if set(cells) <= {"True", "False"}:
        return [cell == "True" for cell in cells]
    try:
        return pandas.to_numeric(pandas.Series(cells, dtype=object)).tolist()
    except (ValueError, TypeError):
        return cells
