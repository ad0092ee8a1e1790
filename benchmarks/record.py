"""What every benchmark writes beside its numbers, and how it prints them."""

import datetime
import json
import shlex
import statistics
from pathlib import Path

import numpy as np
from scipy import stats

from mpclip.hardware import describe_machine


def provenance(module: str, argv: list[str], device: str = "cpu") -> dict:
    """`command`, `date` and `machine` of a measurement."""
    return {
        "command": shlex.join(["python", "-m", module, *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
    }


def write_json(path: str | Path, result: dict) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def t_interval(values: list[float]) -> list[float] | None:
    """95% interval of the mean (Student's t), of one value per seed.

    None of fewer than three: two that happen to be close would pass for certainty.
    """
    if len(values) < 3:
        return None
    mean = statistics.mean(values)
    margin = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return [mean - margin, mean + margin]


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """95% interval of the mean over test items (bootstrap); paired, where `values` are differences between two models."""
    if np.ptp(values) == 0:
        return [float(values[0])] * 2  # nothing to draw from: scipy gives nan
    drawn = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed))
    return [float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)]
