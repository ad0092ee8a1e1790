"""Pairs of sentences with a similarity score, as of STS-B."""

from pathlib import Path

import datasets

COLUMNS = ("sentence1", "sentence2", "score")


def load_sts(source: str | Path, split: str) -> datasets.Dataset:
    """One split with the columns sentence1, sentence2 and score.

    Args:
        source: a folder with SPLIT.csv files without a header (sentence1, sentence2, score), or a Hub id whose columns have
            these names, such as sentence-transformers/stsb.
        split: name of the split.

    Raises:
        FileNotFoundError: a folder without that file.
        ValueError: other columns, or a score that is no number.
    """
    if Path(source).is_dir():
        file = Path(source, f"{split}.csv")
        if not file.exists():
            found = ", ".join(sorted(path.stem for path in Path(source).glob("*.csv"))) or "no CSV file"
            raise FileNotFoundError(f"There is no {file}; {source} holds {found}.")
        rows = datasets.load_dataset("csv", data_files=str(file), column_names=list(COLUMNS), split="train")
    else:
        rows = datasets.load_dataset(str(source), split=split)
    if missing := [name for name in COLUMNS if name not in rows.column_names]:
        raise ValueError(f"{source} has the columns {', '.join(rows.column_names)}; it lacks {', '.join(missing)}.")
    kind = rows.features["score"]
    if not isinstance(kind, datasets.Value) or not kind.dtype.startswith(("float", "int")):
        raise ValueError(f"The scores of {source}, split {split!r}, are not all numbers.")
    return rows
