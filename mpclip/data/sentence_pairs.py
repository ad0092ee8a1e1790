"""Pairs of sentences with a score of how similar they are, such as STS-B."""

from pathlib import Path

import datasets

COLUMNS = ("sentence1", "sentence2", "score")


def load_sts(source: str | Path, split: str) -> datasets.Dataset:
    """Open one split of a data set of sentence pairs.

    Args:
        source: a folder with a file SPLIT.csv for each split, with the columns sentence1, sentence2, score and no header; or
            the id of a data set on the Hub with columns of these names, such as sentence-transformers/stsb.
        split: name of the split.

    Returns:
        A table with `sentence1` (str), `sentence2` (str), `score` (a number) and, from the Hub, its other columns.

    Raises:
        FileNotFoundError: the folder has no file for this split.
        ValueError: a column is missing, or a score is not a number.
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
        raise ValueError(f"{source} has the columns {', '.join(rows.column_names)}, but not {', '.join(missing)}.")
    kind = rows.features["score"]
    if not isinstance(kind, datasets.Value) or not kind.dtype.startswith(("float", "int")):
        raise ValueError(f"The scores of {source}, split {split!r}, are not all numbers: the column has the type {kind}.")
    return rows
