"""95% intervals, by scipy.stats: Student's t over seeds, bootstrap over test items."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


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
