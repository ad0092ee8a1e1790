"""Compare two results of one task on the same data: paired differences with their intervals.

    mpclip eval compare results/single_prompt.json results/multi_prompt.json
    mpclip eval compare results/single_prompt.json results/multi_prompt.json --plot differences.png
    mpclip eval compare monday.json tuesday.json

Each metric's difference, second minus first, with its 95% interval: a paired bootstrap over the task's units, such as pictures.
Both models are measured on the same draws, so what makes a picture hard for both of them cancels out. An interval without zero
is a difference that the choice of test data does not explain. It says nothing about other seeds of training.

Refused are results of another task, other data or another split, and results without the scores of single items, which
`python -m eval` writes beside the JSON.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.intervals import Items, bootstrap
from eval.result import load_items, load_result
from eval.tables import decimals_of, text_table, with_interval
from mpclip.data.reading import READING_NAMES

# What two results must share: which data were measured, and how they were read.
SAME = ("task", "data", "split", "limit", "left_out", "folds", "captions_joined", "build", "seed", *READING_NAMES)
# Settings that may differ, but are then told.
TOLD = ("dtype", "quantize", "batch_size")


@dataclass
class Differences:
    """Paired differences of two models: one minus the other.

    Attributes:
        values: metric -> difference.
        intervals: metric -> [low, high], 95%.
        units: how many units the bootstrap draws from.
    """

    values: dict[str, float]
    intervals: dict[str, list[float]]
    units: int

    def to_json(self) -> dict:
        """`differences` and `intervals`, as `against` of a result holds them."""
        return {"differences": self.values, "intervals": self.intervals}

    def shown(self, metric: str, decimals: int) -> str:
        """A difference and its interval, such as "+3.1 (+1.0 to +5.2)"; "-" for a metric that one of the two lacks."""
        if metric not in self.values:
            return "-"
        return with_interval(self.values[metric], self.intervals[metric], decimals, signed=True)


def paired_differences(cls: type, items: Items, against: Items) -> Differences:
    """The differences of all metrics that both models have.

    Args:
        cls: the task.
        items, against: the items of two results on the same data; the differences are items minus against.

    Raises:
        ValueError: the numbers of items differ.
    """
    units = cls.units(items)
    lengths = {name: (len(items[name]), len(against[name])) for name in items.keys() & against.keys()}
    different = [f"{name} {other} and {own}" for name, (own, other) in sorted(lengths.items()) if own != other]
    if different or cls.units(against) != units:
        numbers = ", ".join(different) or f"{cls.units(against)} and {units} units"
        raise ValueError(f"the results have different numbers of items ({numbers}): they are not of the same data")
    ones = np.ones(units, dtype=int)
    found, other = cls.metrics_of(items, ones), cls.metrics_of(against, ones)
    intervals = bootstrap(cls.metrics_of, items, units, against)
    shared = [name for name in found if name in other]
    return Differences({n: found[n] - other[n] for n in shared}, {n: intervals[n] for n in shared}, units)


def refuse_other_data(first: dict, second: dict) -> None:
    """Raise ValueError if two results (JSON) are not of one task on the same data and split. The message says what differs."""
    differ = [f"{name} {first.get(name)!r} and {second.get(name)!r}" for name in SAME if first.get(name) != second.get(name)]
    if differ:
        raise ValueError(
            f"the results differ in {', '.join(differ)}. Compare results of one task on the same data and split, or measure "
            "one of them again with the options of the other"
        )


# The command ------------------------------------------------------------------------------------------------------


def compare(first: str, second: str, task_class, plot: str | None = None) -> str:
    """Compare two saved results.

    Args:
        first, second: JSON files.
        task_class: name of a task -> its class.
        plot: PNG to write.

    Returns:
        The table, for the terminal.

    Raises:
        ValueError: the results cannot be compared; the message says why.
        FileNotFoundError: a file is missing.
    """
    from eval.evaluate import short_names

    paths = [first, second]
    one, two = (load_result(path) for path in paths)
    refuse_other_data(one, two)
    cls = task_class(one["task"])
    items = [load_items(path) for path in paths]
    for path, of_one in zip(paths, items, strict=True):
        if not of_one:
            raise ValueError(f"{path} has no scores of single items. Measure again: python -m eval {one['task']}.")
    found = paired_differences(cls, items[1], items[0])
    named = (
        [one["model"], two["model"]] if one["model"] != two["model"] else [str(Path(path).with_suffix("")) for path in paths]
    )
    names = short_names(named) if named[0] != named[1] else ["first", "second"]
    if plot:
        plot_differences(found, f"{names[1]} minus {names[0]}", plot)
    return _table(one, two, names, found)


def _table(one: dict, two: dict, names: list[str], found: Differences) -> str:
    primary = one["primary"]
    rows = []
    for name in list(dict.fromkeys([*one["metrics"], *two["metrics"]])):
        values = [result["metrics"].get(name, float("nan")) for result in (one, two)]
        decimals = decimals_of(values)
        shown = [with_interval(value, None, decimals) for value in values]
        rows.append([name.replace("_", " ") + (" *" if name == primary else ""), *shown, found.shown(name, decimals)])
    told = [f"{name}: {one.get(name)} and {two.get(name)}" for name in TOLD if one.get(name) != two.get(name)]
    lines = [
        f"{one['task']} on {one['data']}, split {one['split']}: {found.units:,} units, drawn in pairs",
        "",
        text_table(["", *names, f"{names[1]} minus {names[0]}"], rows),
        "",
        "* primary metric; in brackets: 95% interval of the difference",
        *(f"The results also differ in {line}" for line in told),
    ]
    return "\n".join(lines)


def plot_differences(found: Differences, title: str, path: str | Path) -> None:
    """Draw the differences into a PNG: a point and its interval for each metric, and a line at zero.

    Ranks, which are no percentages, have a part of the picture with a scale of their own.

    Args:
        found: the differences.
        title: what is subtracted from what.
        path: the file to write; its folder is created.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mpclip.files import aside

    drawn = [name for name, interval in found.intervals.items() if np.isfinite([found.values[name], *interval]).all()]
    parts = {
        "difference in percentage points": [name for name in drawn if "rank" not in name.split("_")],
        "difference in rank (below zero: better)": [name for name in drawn if "rank" in name.split("_")],
    }
    parts = {label: names for label, names in parts.items() if names}
    heights = [0.7 + 0.3 * len(names) for names in parts.values()]
    figure = Figure(figsize=(7, 0.5 + sum(heights)), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=11)
    many = figure.subplots(len(parts), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (label, names) in zip(many, parts.items(), strict=True):
        places = np.arange(len(names))[::-1]  # (metrics,) first metric on top
        values = np.array([found.values[name] for name in names])  # (metrics,)
        low, high = np.array([found.intervals[name] for name in names]).T  # (metrics,) each
        axes.axvline(0, color="#888888", linewidth=1)
        axes.hlines(places, low, high, color="#2b6cb0", linewidth=2)
        axes.plot(values, places, "o", color="#1a3f73", markersize=5)
        axes.set_yticks(places, [name.replace("_", " ") for name in names], fontsize=9)
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.set_xlabel(label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    with aside(path) as written:
        FigureCanvasAgg(figure).print_png(str(written))
