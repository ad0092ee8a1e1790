"""The result of a task: its metrics, their intervals, and the scores of single items."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
    """

    task: str
    primary: str
    metrics: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    items: dict[str, np.ndarray] = field(default_factory=dict)
    origin: dict = field(default_factory=dict)

    def to_json(self) -> dict:
        """Everything but the items, as the JSON file holds it."""
        own = {"task": self.task, "primary": self.primary, "metrics": self.metrics, "intervals": self.intervals}
        return own | self.counts | self.origin

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

    def table(self) -> str:
        """A line for each metric, with its interval; the primary metric is marked."""
        names = {name: name.replace("_", " ") + (" *" if name == self.primary else "") for name in self.metrics}
        width = max(map(len, names.values()))
        lines = [", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items())]
        for name, value in self.metrics.items():
            low, high = self.intervals.get(name, (None, None))
            interval = "" if low is None else f"   ({low:.1f} to {high:.1f})"
            lines.append(f"{names[name]:<{width}} {value:>7.1f}{interval}")
        return "\n".join([*(line for line in lines if line), "", "* primary metric; in brackets: 95% interval"])


def load_items(path: str | Path) -> dict[str, np.ndarray]:
    """The items of a saved result.

    Args:
        path: the JSON file.

    Returns:
        name -> (items,) array; {} if the result has no items.
    """
    name = json.loads(Path(path).read_text(encoding="utf-8")).get("items")
    if name is None:
        return {}
    with np.load(Path(path).with_name(name), allow_pickle=False) as items:
        return dict(items)
