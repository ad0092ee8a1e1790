"""95% intervals, by scipy.stats: Student's t over seeds, bootstrap over test items."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Items = dict[str, np.ndarray]  # the scores of single items; see `eval.result.Result`
Measured = dict[str, float]  # metric -> value


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95% interval of a mean over seeds (Student's t).

    Args:
        values: one per seed.

    Returns:
        [low, high]. None for fewer than three values: two that are close by chance would look certain.
    """
    if len(values) < 3:
        return None
    if np.ptp(values) == 0:
        return [float(values[0])] * 2  # scipy would give nan for a scale of 0
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return [float(low), float(high)]


def bootstrap_interval(values: np.ndarray, seed: int = 0, samples: int = 2000) -> list[float]:
    """95% interval of a mean over test items (percentile bootstrap).

    Args:
        values: (items,). To compare two models, give the differences of their items; the bootstrap is then paired.
        seed: of the random draws.
        samples: number of draws.

    Returns:
        [low, high]
    """
    return share_interval(values, np.ones(len(values)), seed, samples)


def share_interval(found: np.ndarray, total: np.ndarray, seed: int = 0, samples: int = 1000) -> list[float]:
    """95% interval of the share sum(found) / sum(total) (percentile bootstrap over items).

    Args:
        found, total: (items,). For recall of captions the items are images: `found` counts an image's captions that were found,
            `total` counts all its captions. An image is drawn with all of them.
        seed: of the random draws.
        samples: number of draws.

    Returns:
        [low, high]
    """
    if np.ptp(found) == 0 and np.ptp(total) == 0:
        return [float(found[0] / total[0])] * 2  # every draw is the same; scipy would give nan
    drawn = stats.bootstrap(
        (found, total),
        lambda found, total, axis: found.sum(axis=axis) / total.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=samples,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return [float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)]


def bootstrap(
    metrics_of: Callable[[Items, np.ndarray], Measured],
    items: Items,
    units: int,
    against: Items | None = None,
    seed: int = 0,
    samples: int = 1000,
) -> dict[str, list[float]]:
    """95% intervals of any metrics of a task (percentile bootstrap over its units, such as pictures or pairs).

    Args:
        metrics_of: items and (units,) int counts, how often each unit is drawn -> metrics. A task's own method.
        items: the scores of single items.
        units: how many units there are.
        against: the items of another model on the same units. The intervals are then those of the difference, items minus
            against; both models are measured on the same draws.
        seed: of the random draws.
        samples: number of draws.

    Returns:
        Metric -> [low, high]; nan where a metric is undefined in every draw.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(samples):
        counts = np.bincount(generator.integers(units, size=units), minlength=units)  # (units,)
        found = metrics_of(items, counts)
        other = metrics_of(against, counts) if against is not None else {}
        for name, value in found.items():
            drawn.setdefault(name, []).append(value - other.get(name, 0.0))
    return {
        name: [float(end) for end in np.nanpercentile(values, [2.5, 97.5])] if np.isfinite(values).any() else [np.nan, np.nan]
        for name, values in drawn.items()
    }
