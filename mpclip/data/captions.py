"""Captions: in which columns of a table they stand, and what is in a cell."""

import contextlib
import io
import json
import math
import re
import tokenize
from ast import literal_eval
from collections.abc import Mapping, Sequence
from typing import Any

from mpclip.data.reading import WHOLE, ReadingOptions

CAPTION_COLUMNS = ("captions", "caption", "text", "sentences", "raw", "txt")
NUMBERED_COLUMNS = (*CAPTION_COLUMNS, "sentence", "comment", "description")  # with a number behind, such as sentence1
CLASS_COLUMNS = ("label", "class", "category")
SEPARATORS = ("|", ";")  # a column in which nearly every caption has one of these is refused without caption_separator
NEARLY_EVERY, FEWEST = 0.9, 3


def caption_columns(names: Sequence[str], given: str | None) -> list[str]:
    """The columns of captions.

    Args:
        names: of all columns.
        given: `caption_column`: the name of one column, or names with commas between.

    Returns:
        The names, in the order in which a picture's captions are put; [] if there is none.

    Raises:
        ValueError: a given column is not there.
    """
    if given is not None:
        chosen = [given] if given in names else [name.strip() for name in given.split(",")]
        if missing := [name for name in chosen if name not in names]:
            raise ValueError(
                f"no column {missing[0]!r}; it has {list(names)}. Set caption_column to one of these, or rename one"
            )
        return chosen
    plain = [name for name in CAPTION_COLUMNS if name in names][:1]
    for stem in plain or NUMBERED_COLUMNS:
        numbered = {int(found[1]): name for name in names if (found := re.fullmatch(rf"{stem}[ _.-]?(\d+)", name))}
        if plain or len(numbered) > 1:
            return plain + [numbered[number] for number in sorted(numbered)]
    return []


def captions_of_table(
    columns: Mapping[str, Sequence], reading: ReadingOptions, need_captions: bool, first: int
) -> tuple[list[str], list[list[str]]]:
    """The captions of each row of a table.

    Args:
        columns: name -> cells, of any types.
        reading: which columns, what separates the captions of a cell, and captions of classes.
        need_captions: whether a table without captions is refused. If not, each row has an empty list.
        first: number of the first row in messages: 1 in a file of rows, 0 in a table of `datasets`.

    Returns:
        The names of the columns that the captions are from, and the captions of each row.

    Raises:
        ValueError: there are no captions, or a cell holds something else; the message has the row.
    """
    names = caption_columns(list(columns), reading.caption_column)
    if names and reading.class_caption is not None:
        raise ValueError(f"class_caption is for data without captions, but there are some in {', '.join(names)}: leave it out")
    if names:
        captions = []
        for i, cells in enumerate(zip(*(columns[name][:] for name in names), strict=True), first):
            try:
                captions.append([caption for cell in cells for caption in captions_of_cell(cell, reading.separator)])
            except ValueError as error:
                raise ValueError(f"row {i}: {error}") from error
    elif reading.class_caption is not None:
        captions = _class_captions(columns, reading.class_caption)
    elif need_captions:
        raise ValueError(_no_captions(columns))
    else:
        captions = [[] for _ in next(iter(columns.values()), [])]
    if need_captions:
        refuse_joined(captions, reading)
    return names, captions


def captions_of_cell(cell: Any, separator: str | None = None) -> list[str]:
    """The captions in a cell: one, a list of them, a list written as text, or what Karpathy's files and the Hub call `raw`.

    Args:
        cell: of a table.
        separator: what stands between captions, if a text holds several.

    Returns:
        The captions that are not empty.

    Raises:
        ValueError: the cell holds something else, or half a character.
    """
    if isinstance(cell, str):
        cell = _written_list(cell)
    cell = _raw(cell)
    if cell is None or isinstance(cell, str | float):
        cell = [cell]
    if not isinstance(cell, list):
        raise ValueError(f"a caption cell is {cell!r} ({type(cell).__name__}), expected a str or a list of them")
    captions = []
    for caption in map(_raw, cell):
        if caption is None or (isinstance(caption, float) and math.isnan(caption)):
            continue
        if not isinstance(caption, str):
            raise ValueError(f"a caption is {caption!r} ({type(caption).__name__}), expected a str, in quotes")
        if re.search("[\ud800-\udfff]", caption):  # a surrogate: what is left of an emoji that was cut in two
            raise ValueError(f"a caption is {caption!r}, with half a character in it: write the whole one, or remove the half")
        captions += [part.strip() for part in caption.split(separator)] if separator else [caption]
    return [caption for caption in captions if caption.strip()]


def refuse_joined(rows: list[list[str]], reading: ReadingOptions, separators: tuple[str, ...] = SEPARATORS) -> None:
    """Refuse captions of which nearly every one has a separator in it, unless `caption_separator` says what it means."""
    captions = [row[0] for row in rows if len(row) == 1]
    if reading.caption_separator is not None or len(captions) < FEWEST:
        return
    for separator in separators:
        having = [caption for caption in captions if separator in caption.strip()]
        if len(having) >= NEARLY_EVERY * len(captions):
            raise ValueError(
                f"{len(having)} of {len(captions)} captions have a {separator!r} in them, such as {having[0][:80]!r}. If it "
                f"separates captions, set caption_separator={separator!r}; if each is one caption, set it to {WHOLE!r}"
            )


def _class_captions(columns: Mapping[str, Sequence], template: str) -> list[list[str]]:
    """A caption for each row: `template` with the name of its class in place of {}."""
    name = next((name for name in CLASS_COLUMNS if name in columns), None)
    if name is None:
        raise ValueError(f"class_caption needs a column {' or '.join(CLASS_COLUMNS)}; it has {list(columns)}")
    classes = columns[name][:]
    if unnamed := [cell for cell in classes if not isinstance(cell, str)]:
        raise ValueError(f"column {name!r} has {unnamed[0]!r}, but class_caption needs names of classes: write these")
    return [[template.replace("{}", cell.replace("_", " "))] for cell in classes]


def _no_captions(columns: Mapping[str, Sequence]) -> str:
    name = next((name for name in CLASS_COLUMNS if name in columns), None)
    classes = f"To make captions of its column {name!r}, set class_caption='a photo of a {{}}'. " if name else ""
    return (
        f"no column is named {', '.join(CAPTION_COLUMNS)}; it has {list(columns)}. Set caption_column to one of these, or "
        f"rename one. {classes}Captions of picture files stand beside them, in a metadata.csv with file_name and caption"
    )


def _raw(cell: Any) -> Any:
    """The caption in a dict, such as {"raw": caption, "tokens": ...}; anything else as it is."""
    for key in ("raw", "caption"):
        if isinstance(cell, dict) and key in cell:
            return cell[key]
    return cell


def _written_list(text: str) -> str | list:
    """The list that `text` is, if it is one: '["a", "b"]' of JSON, "['a', 'b']" of Python, "['a' 'b']" of numpy."""
    if not re.match(r"""\s*[\[(]\s*["']""", text):
        return text
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text)
    strings, rest = [], ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
            if token.type == tokenize.STRING:
                strings.append(literal_eval(token.string))
            elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER) and token.string not in (",", "None"):
                rest += token.string
    except (tokenize.TokenError, SyntaxError, ValueError):
        return text  # a plain caption that begins with a bracket
    is_list = rest == "[]" or (rest == "()" and len(strings) > 1)  # '("Stop")' is a plain caption
    return strings if is_list and all(isinstance(string, str) for string in strings) else text
