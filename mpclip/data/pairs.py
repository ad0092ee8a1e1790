"""Files of scored sentence pairs with a header: csv, tsv and jsonl with the columns sentence1, sentence2 and score.

    rows = load_pairs("sick.tsv", "test")     # datasets.Dataset: sentence1, sentence2, score

A folder or an id on the Hub is opened by `sentence_pairs.load_sts`.
"""

import math
from pathlib import Path

from mpclip.data.sentence_pairs import COLUMNS

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json")
WHOLE = ("all", "test")  # splits that a file without a column `split` has, beside the one it is named for


def load_pairs(source: str | Path, split: str, limit: int | None = None):
    """Open one split of a data set of sentence pairs.

    Args:
        source: a file with a header, or what `load_sts` takes: a folder with SPLIT.csv, or a Hub id.
        split: name of the split. In a file it is a value of the column `split`. A file without this column has the splits
            "all" and "test", which are the whole file, and one of its own name, such as "dev" for dev.csv.
        limit: number of pairs to take, from the start of the split; None for all.

    Returns:
        A `datasets.Dataset` with `sentence1` (str), `sentence2` (str), `score` (float) and the other columns.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: no such split, a missing column, an empty sentence or a score that is no number; the message has the row.
    """
    from mpclip.data.sentence_pairs import load_sts

    path = Path(source)
    if path.suffix.lower() in ENDINGS:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        rows = _read_file(path, split)
    else:
        rows = load_sts(source, split)
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    _refuse_faulty(rows, str(source))
    return rows


def _read_file(path: Path, split: str):
    """The rows of a file with a header."""
    import datasets

    from mpclip.data.forms.delimited import read_delimited
    from mpclip.data.forms.json_rows import read_json_lines
    from mpclip.data.forms.text_files import read_text
    from mpclip.data.reading import ReadingOptions

    text = read_text(path)
    json_rows = path.suffix.lower() in (".jsonl", ".json")
    columns = (read_json_lines(path, text) if json_rows else read_delimited(path, text, ReadingOptions())).columns
    if missing := [name for name in COLUMNS if name not in columns]:
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or 'none'}, but not {', '.join(missing)}. Name its columns "
            f"{', '.join(COLUMNS)} in the first line"
        )
    scores = []
    for i, score in enumerate(columns["score"], start=1):
        try:
            scores.append(float(score))
        except (TypeError, ValueError):
            raise ValueError(f"{path}, row {i}: the score is {score!r}, expected a number") from None
    columns = {"sentence1": columns["sentence1"], "sentence2": columns["sentence2"], "score": scores} | {
        "split": columns.get("split", [split if split in WHOLE else path.stem] * len(scores))
    }
    chosen = [i for i, name in enumerate(columns["split"]) if name == split]
    if not chosen:
        found = ", ".join(map(repr, dict.fromkeys(columns["split"])))
        raise ValueError(f"{path} has no split {split!r}; found {found or 'no row'}. A file without a column `split` has 'all'")
    return datasets.Dataset.from_dict({name: [cells[i] for i in chosen] for name, cells in columns.items()})


def _refuse_faulty(rows, source: str) -> None:
    for i, (first, second, score) in enumerate(zip(*(rows[name][:] for name in COLUMNS), strict=True), start=1):
        for sentence in (first, second):
            if not isinstance(sentence, str) or not sentence.strip():
                raise ValueError(f"{source}, row {i}: a sentence is {sentence!r}, expected words")
        if score is None or not math.isfinite(score):
            raise ValueError(f"{source}, row {i}: the score is {score}, expected a number")
