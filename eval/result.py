"""The result of a task: its metrics, their intervals, and the scores of single items."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.tables import decimals_of, with_interval
from mpclip.files import aside, write_json


@dataclass
class Result:
    """What a task measured.

    Attributes:
        task: name of the task.
        primary: name of the metric to compare models by.
        metrics: name -> value, in percent unless the name says otherwise.
        intervals: name -> [low, high], the 95% interval of a metric; not all have one.
        counts: name -> number of the things measured, such as images and captions.
        items: name -> (items,) array of the scores of single items, to compare two results item by item.
        origin: how the measurement is repeated: model, data, split, command, date, machine.
        left_out: what is wrong -> number of rows of the data that were left out for it.
        against: the paired differences to another model; see `eval.compare.Differences.to_json`.
    """

    task: str
    primary: str
    metrics: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    items: dict[str, np.ndarray] = field(default_factory=dict)
    origin: dict = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    against: dict = field(default_factory=dict)

    def to_json(self) -> dict:
        """Everything but the items, as the JSON file holds it."""
        own = {"task": self.task, "primary": self.primary, "metrics": self.metrics, "intervals": self.intervals}
        more = {"left_out": self.left_out, "against": self.against}
        return own | {name: value for name, value in more.items() if value} | self.counts | self.origin

    def save(self, path: str | Path) -> None:
        """Write the JSON file `path`, and the items beside it as `<name>.items.npz`. Neither is ever left half-written."""
        path = Path(path)
        written = self.to_json()
        if self.items:
            beside = path.with_suffix(".items.npz")
            with aside(beside) as part, open(part, "wb") as file:
                np.savez_compressed(file, **self.items)
            written["items"] = beside.name
        write_json(path, written, indent=2)

    def head(self) -> str:
        """One line: how many things were measured, and how many were left out."""
        measured = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items())
        missing = ", ".join(f"{count:,} {what}" for what, count in self.left_out.items())
        return measured + (f"; left out: {missing}" if missing else "")

    def table(self) -> str:
        """A line for each metric, with its interval; the primary metric is marked."""
        names = {name: name.replace("_", " ") + (" *" if name == self.primary else "") for name in self.metrics}
        width = max(map(len, names.values()))
        lines = [self.head()]
        for name, value in self.metrics.items():
            shown = with_interval(value, self.intervals.get(name), decimals_of([value]), width=7)
            lines.append(f"{names[name]:<{width}} {shown}")
        return "\n".join([*(line for line in lines if line), "", "* primary metric; in brackets: 95% interval"])


def load_result(path: str | Path) -> dict:
    """The JSON of a saved result, with at least `task`, `primary`, `metrics`, `intervals`, `model`, `data` and `split`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no result of `python -m eval`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). Give a file that `python -m eval TASK --json` wrote.") from error
    needed = ("task", "primary", "metrics", "intervals", "model", "data", "split")
    missing = needed if not isinstance(content, dict) else [name for name in needed if name not in content]
    if missing:
        raise ValueError(f"{path} is no result of `python -m eval TASK --json`: it has no {', '.join(missing)}.")
    return content


def load_items(path: str | Path) -> dict[str, np.ndarray]:
    """The items of a saved result.

    Args:
        path: the JSON file.

    Returns:
        name -> (items,) array; {} if the result has no items.

    Raises:
        FileNotFoundError: the result has items, but their file is not beside it.
        ValueError: the file is damaged.
    """
    name = json.loads(Path(path).read_text(encoding="utf-8")).get("items")
    if name is None:
        return {}
    beside = Path(path).with_name(name)
    if not beside.is_file():
        raise FileNotFoundError(f"{path} names its items in {name}, which is not beside it. Copy both, or measure again.")
    try:
        with np.load(beside, allow_pickle=False) as items:
            return dict(items)
    except Exception as error:  # zipfile, zlib and numpy raise their own types
        raise ValueError(f"{beside} is damaged ({error}). Measure again: python -m eval.") from error
