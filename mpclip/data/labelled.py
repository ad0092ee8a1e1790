"""Pictures with class labels, from any source that `mpclip.data.image_text` opens.

    data = load_labelled("photos", "train")                            # a folder for each class
    data = load_labelled("photos.csv", "train", classes="names.json")  # columns file_name and label
    data.rows["image"], data.labels, data.classes

The label is in the column `label`, `class` or `category`, in the only `ClassLabel` column, or in the one that is given. It is
text, a `ClassLabel` of `datasets`, or a whole number. The classes are those of the whole table, whatever part of it is
measured: a part with fewer classes would be an easier test.
"""

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from mpclip.data.captions import CLASS_COLUMNS
from mpclip.data.forms.text_files import read_text
from mpclip.data.image_checks import undecodable
from mpclip.data.image_sources import open_table
from mpclip.data.left_out import leave_out
from mpclip.data.picture_size import read_pictures_of
from mpclip.data.reading import ReadingOptions
from mpclip.data.same_pictures import merge_same_pictures
from mpclip.data.splits import part_of_split

SHOWN = 10  # labels or names that a message lists


@dataclass
class LabelledPictures:
    """Pictures, each of one class.

    Attributes:
        rows: I rows with `image`, and the other columns of the source.
        labels: (I,) int64, the class of each picture.
        classes: C names. Some classes may have no picture.
    """

    rows: datasets.Dataset
    labels: np.ndarray
    classes: list[str]


def load_labelled(
    source: str | Path,
    split: str,
    *,
    label_column: str | None = None,
    classes: str | Path | None = None,
    limit: int | None = None,
    **reading,
) -> LabelledPictures:
    """Open one split of a classification data set. Every picture of it decodes and has one label.

    Args:
        source: a folder for each class, a table beside the pictures, parquet, a saved data set or a Hub id.
        split: name of the split, or a part of it such as "test[:50%]".
        label_column: column of the label; None for the usual ones.
        classes: file of class names, see `read_class_names`; None takes the names from the data.
        limit: number of pictures, from the start of the split; None for all.
        reading: the options of `ReadingOptions`.

    Returns:
        The pictures. Rows of one picture are one row. Pictures without a label, with labels of several classes, or that cannot
        be decoded are left out with a warning that names them; with `bad_images="fail"` they are an error.

    Raises:
        FileNotFoundError: there is nothing at `source`, or no file `classes`.
        ValueError: no such split or column, labels without a name, or no picture is left.
    """
    how, place = ReadingOptions(**reading), f"{source}, split {split!r}"
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1, or None for all pictures")
    rows, numbers = open_table(str(source), split.partition("[")[0], how, need_captions=False)
    column = _label_column(rows, str(source), label_column)
    labels = [_label(cell, f"{source}, row {i}, column {column!r}") for i, cell in enumerate(rows[column][:])]
    class_of, names = _classes(rows.features[column], labels, classes, f"{source}, column {column!r}")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        warnings.warn(
            f"{source}: several classes have one name ({', '.join(repeated[:SHOWN])}). Their pictures count as mistakes, "
            "because a tie counts against the model",
            stacklevel=2,
        )

    # Rows of one picture become one row, with all their labels in the place of captions.
    feature = datasets.List(datasets.Value("string"))
    held = [[] if label is None else [_key(label, rows.features[column])] for label in labels]
    rows = rows.remove_columns("captions").add_column("captions", held, feature=feature)
    rows = part_of_split(merge_same_pictures(rows, numbers, str(source)), str(source), split)
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    told = [sorted(set(row)) for row in rows["captions"][:]]  # labels of each picture
    of_rows = [{class_of[label] for label in row} for row in told]
    faults = {
        "without a label": {i: "no label" for i, row in enumerate(told) if not row},
        "of one picture with several classes": {i: " and ".join(told[i]) for i, found in enumerate(of_rows) if len(found) > 1},
        "with an image that cannot be decoded": undecodable(rows, how.max_megapixels),
    }
    read_pictures_of(how.max_megapixels)
    rows, good = leave_out(rows, faults, place, how.bad_images)
    labels_of_good = np.array([min(of_rows[i]) for i in good], dtype=np.int64)  # each has one
    return LabelledPictures(rows.remove_columns("captions"), labels_of_good, names)


def read_class_names(file: str | Path) -> list[str] | dict[str, str]:
    """Class names from a file.

    Args:
        file: a text file with a name per line, a JSON list of names, or a JSON mapping of label -> name. Labels of one name are
            one class.

    Returns:
        The names in their order, or label -> name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, or a name is empty.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"no file {file}: expected class names, one per line, or as a JSON list or mapping label -> name"
        )
    text = read_text(file)
    content = text.rstrip().splitlines()
    if file.suffix.lower() == ".json":
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, list | dict) or len(content) < 2:
        raise ValueError(f"{file}: expected at least two class names, one per line, or as a JSON list or mapping label -> name")
    pairs = content.items() if isinstance(content, dict) else enumerate(content, start=1)
    for place, name in pairs:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{file}: the class name of {place!r} is {name!r}, expected text that is not empty")
    if isinstance(content, dict):
        return {label.strip(): name.strip() for label, name in content.items()}
    return [name.strip() for name in content]


def _label_column(rows: datasets.Dataset, source: str, given: str | None) -> str:
    """`given`, or the first of the usual names, or the only `ClassLabel` column."""
    if given is not None:
        if given in rows.column_names:
            return given
        raise ValueError(f"{source}: no column {given!r}; it has {rows.column_names}. Set label_column to one of these")
    usual = [name for name in CLASS_COLUMNS if name in rows.column_names][:1]
    found = usual or [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) != 1:
        why = (
            f"several columns hold classes ({', '.join(found)})" if found else f"no column is named {', '.join(CLASS_COLUMNS)}"
        )
        raise ValueError(
            f"{source}: {why}; it has {rows.column_names}. Set label_column to the one with the label, or lay the pictures in "
            "a folder for each class"
        )
    return found[0]


def _label(cell, place: str) -> int | str | None:
    """A whole number, or text that is not empty; None where there is no label. A list of one label is that label."""
    if isinstance(cell, list) and len(cell) <= 1:
        cell = cell[0] if cell else None
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):  # NaN is not itself
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, int) and not isinstance(cell, bool):
        return None if cell == -1 else cell  # -1 marks the hidden labels of public test sets
    if not isinstance(cell, str):
        raise ValueError(f"{place}: a label is {cell!r} ({type(cell).__name__}), expected one text or one whole number")
    return cell.strip()


def _key(label: int | str, feature) -> str:
    """What a label is known by: its text; of a `ClassLabel` the name."""
    return feature.names[label] if isinstance(feature, datasets.ClassLabel) else str(label)


def _classes(feature, labels: Sequence, file: str | Path | None, place: str) -> tuple[dict[str, int], list[str]]:
    """Label, as `_key` gives it, -> number of its class; and the names of the classes.

    Args:
        feature: of the column of labels.
        labels: of all rows, as from `_label`.
        file: with class names, or None.
        place: for messages.
    """
    declared = feature.names if isinstance(feature, datasets.ClassLabel) else None
    used = sorted(
        {_key(label, feature) for label in labels if label is not None}, key=lambda key: (len(key) * key.isdecimal(), key)
    )
    if not used:
        raise ValueError(f"{place}: no row has a label")
    numbered = all(key.isdecimal() for key in declared or used)
    if file is None:
        if numbered and not declared:
            raise ValueError(f"{place} holds numbers, such as {used[0]}. Give their names: a file for --classes")
        keys = declared or used
        if len(keys) < 2:
            raise ValueError(f"{place} has one class, {keys[0]!r}: classification needs at least two. Name more by --classes")
        return {key: i for i, key in enumerate(keys)}, [key.replace("_", " ") for key in keys]

    given = read_class_names(file)
    if isinstance(given, list):
        names, known = given, [str(i) if numbered else _plain(name) for i, name in enumerate(given)]
        number = {key: i for i, key in reversed(list(enumerate(known)))}  # how a file has a label -> number of its class
        written = {key: str(int(key)) if numbered else _plain(key) for key in used}  # label -> how the file has it
    else:
        names = list(dict.fromkeys(given.values()))  # labels of one name are one class
        number = {key: names.index(name) for key, name in given.items()}
        by_number = declared and not numbered and all(key.isdecimal() for key in given)  # such as id2label of a config
        written = {key: str(declared.index(key)) if by_number else key for key in used}
    if missing := [key for key in used if written[key] not in number]:
        shown = ", ".join(map(repr, missing[:SHOWN])) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        raise ValueError(
            f"{file} has {len(given)} names, such as {names[0]!r}, and none for {len(missing)} of the {len(used)} labels in "
            f'{place}: {shown}. Name each label by a JSON mapping: {{{json.dumps(missing[0])}: "a name", ...}}'
        )
    return {key: number[written[key]] for key in used}, names


def _plain(name: str) -> str:
    """A name as names are compared: without case, and with spaces for underscores."""
    return " ".join(name.replace("_", " ").casefold().split())
