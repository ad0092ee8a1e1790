"""The files of published sets of right and wrong texts, read as they are published.

    SugarCrepe   data/swap_att.json ...: {"0": {"filename", "caption", "negative_caption"}, ...}
    VALSE        data/existence.json ...: {id: {"image_file", "caption", "foil", "mturk": {"caption": 3, ...}, ...}, ...}.
                 Rows that fewer than two of three annotators found right are left out, as in the paper
    ARO          visual_genome_relation.json, visual_genome_attribution.json: [{"image_path", "true_caption", "false_caption",
                 "bbox_x", "bbox_y", "bbox_w", "bbox_h", ...}, ...]; the box alone is shown
    Winoground   examples.jsonl, or a table with pictures: image_0, image_1, caption_0, caption_1
    NegBench     multiple choice, csv: image_path, caption_0, ..., correct_answer, correct_answer_template
    ours         jsonl: {"file_name", "kind", "right", "wrong": [...]}; `python -m mpclip.data.composition` writes it

What a file is, its first row says. The kind of a choice is the name of the file (SugarCrepe, VALSE, ARO), its template
(NegBench) or what the row says (ours). NegBench's retrieval csv has no wrong texts: it is data of `python -m eval retrieval`.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mpclip.data.composition.choices import Box, Choice
from mpclip.data.forms.delimited import read_delimited
from mpclip.data.forms.json_rows import parse_json, read_json_lines
from mpclip.data.forms.text_files import read_text
from mpclip.data.reading import ReadingOptions

ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
EXPECTED = (
    "expected SugarCrepe, VALSE, ARO, Winoground, a multiple-choice csv of NegBench, or rows of file_name, kind, right, wrong; "
    "of other pictures with captions, --build makes wrong texts"
)
AGREEING = 2  # of VALSE's three annotators
INVALID = "choices found right by fewer than two annotators"
Row = dict[str, Any]


class Read(NamedTuple):
    """What one file holds.

    Attributes:
        file: the file.
        choices: with the names of their pictures.
        paired: as in `ChoiceSet`.
        invalid: number of choices of VALSE that its annotators doubted; they are not among `choices`.
    """

    file: Path
    choices: list[Choice]
    paired: bool
    invalid: int


class Form(NamedTuple):
    """A published form: the columns by which it is known, and the reader of a row: file, row -> choices."""

    columns: frozenset[str]
    choices: Callable[[Path, Row], list[Choice]]
    paired: bool = False


def read_published(source: str | Path) -> list[Read]:
    """Read a file, or all files of a folder that are of a published form.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: no file is of a form that is known, or a row is not as published; the message has file and row.
    """
    path = Path(source)
    if path.is_file():
        return [read_file(path)]
    if not path.is_dir():
        raise FileNotFoundError(f"nothing at {source}: {EXPECTED}")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS and not file.name.startswith("."))
    known = [file for file in files if form_of(rows_of(file)) is not None]
    if not known:
        raise ValueError(f"{source} has no file of a known form among {[file.name for file in files]}: {EXPECTED}")
    if others := [file.name for file in files if file not in known]:
        warnings.warn(f"{source}: {', '.join(others)} are of no known form and are not read", stacklevel=3)
    return [read_file(file) for file in known]


def read_file(file: Path) -> Read:
    """The choices of one file.

    Raises:
        ValueError: as `read_published`.
    """
    rows = rows_of(file)
    form = form_of(rows)
    if form is None:
        found = f"begins with {str(rows[0][1])[:80]!r}" if rows else "has no rows"
        raise ValueError(f"{file} {found}: {EXPECTED}")
    choices: list[Choice] = []
    invalid = 0
    for name, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{file}, {name}: found {str(row)[:80]!r}, expected an object as in the first row")
        try:
            if form is FORMS["VALSE"] and not _is_valid(row):
                invalid += 1
                continue
            choices += form.choices(file, row)
        except KeyError as error:
            raise ValueError(f"{file}, {name}: there is no {error}; the row has {list(row)}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}, {name}: {error}") from error
    return Read(file, choices, form.paired, invalid)


def rows_of(file: Path) -> list[tuple[str, Row]]:
    """(name for messages, columns) of each row of a file, whatever its form. Other JSON may have rows that are no dicts."""
    text, ending = read_text(file), file.suffix.lower()
    if ending == ".json":
        content = parse_json(file, text)
        if not isinstance(content, dict | list):
            return []
        named = content.items() if isinstance(content, dict) else enumerate(content, start=1)
        return [(f"row {name}", row) for name, row in named]
    listing = read_json_lines(file, text) if ending == ".jsonl" else read_delimited(file, text, ReadingOptions())
    cells = zip(*listing.columns.values(), strict=True)
    return [(f"row {i}", dict(zip(listing.columns, row, strict=True))) for i, row in enumerate(cells, start=1)]


def form_of(rows: list[tuple[str, Row]]) -> Form | None:
    """The form of a file, by the columns of its first row; None if there is no row or its form is not known."""
    if not rows or not isinstance(rows[0][1], dict):
        return None
    return next((form for form in FORMS.values() if form.columns <= rows[0][1].keys()), None)


def choices_of_pair(kind: str, pictures: tuple[str | int, str | int], captions: tuple[str, str]) -> list[Choice]:
    """Two pictures with a caption each, such as Winoground has: each caption is right for its own picture."""
    first, second = captions
    return [Choice(kind, pictures[0], first, (second,)), Choice(kind, pictures[1], second, (first,))]


def _sugarcrepe(file: Path, row: Row) -> list[Choice]:
    return [Choice(file.stem, row["filename"], row["caption"], (row["negative_caption"],))]


def _valse(file: Path, row: Row) -> list[Choice]:
    return [Choice(file.stem, row["image_file"], row["caption"], (row["foil"],))]


def _is_valid(row: Row) -> bool:
    return row["mturk"]["caption"] >= AGREEING


def _aro(file: Path, row: Row) -> list[Choice]:
    kind = file.stem.removeprefix("visual_genome_")
    return [Choice(kind, row["image_path"], row["true_caption"], (row["false_caption"],), _box(row))]


def _box(row: Row) -> Box | None:
    if "bbox_x" not in row:
        return None
    left, upper, width, height = (int(row[f"bbox_{name}"]) for name in "xywh")
    if width < 1 or height < 1:
        raise ValueError(f"a box of {width} x {height} pixels; expected at least 1 x 1")
    return left, upper, left + width, upper + height


def _winoground(file: Path, row: Row) -> list[Choice]:
    names = [row[f"image_{i}"] for i in (0, 1)]
    names = [name if Path(name).suffix else f"{name}.png" for name in names]  # examples.jsonl leaves the ending out
    return choices_of_pair("winoground", tuple(names), (row["caption_0"], row["caption_1"]))


def _negbench(file: Path, row: Row) -> list[Choice]:
    numbered = sorted((int(name.removeprefix("caption_")), name) for name in row if name.startswith("caption_"))
    texts = {number: row[name] for number, name in numbered if row[name]}
    right = int(row["correct_answer"])
    if right not in texts:
        raise ValueError(f"correct_answer is {right}, expected the number of a caption: {', '.join(map(str, texts))}")
    wrong = tuple(text for number, text in texts.items() if number != right)
    return [Choice(row.get("correct_answer_template") or file.stem, row["image_path"], texts[right], wrong)]


def _ours(file: Path, row: Row) -> list[Choice]:
    wrong = row["wrong"] if isinstance(row["wrong"], list) else [row["wrong"]]
    return [Choice(row["kind"], row["file_name"], row["right"], tuple(wrong))]


FORMS = {
    "SugarCrepe": Form(frozenset({"filename", "caption", "negative_caption"}), _sugarcrepe),
    "VALSE": Form(frozenset({"image_file", "caption", "foil", "mturk"}), _valse),
    "ARO": Form(frozenset({"image_path", "true_caption", "false_caption"}), _aro),
    "Winoground": Form(frozenset({"image_0", "image_1", "caption_0", "caption_1"}), _winoground, paired=True),
    "NegBench": Form(frozenset({"image_path", "caption_0", "caption_1", "correct_answer"}), _negbench),
    "ours": Form(frozenset({"file_name", "kind", "right", "wrong"}), _ours),
}
