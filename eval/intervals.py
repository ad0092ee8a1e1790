"""95% intervals: over seeds by Student's t, over test items by bootstrap. scipy.stats does the work."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95% interval of a mean over seeds (Student's t), from one value per seed.

    Returns:
        [low, high]; None for fewer than three values, since two that happen to be close would look certain.
    """
    if len(values) < 3:
        return None
    if np.ptp(values) == 0:
        return [float(values[0])] * 2  # scipy gives nan for a scale of 0
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return [float(low), float(high)]


def bootstrap_interval(values: np.ndarray, seed: int = 0, samples: int = 2000) -> list[float]:
    """95% interval of a mean over test items (percentile bootstrap).

    Args:
        values: (items,); where two models are compared, the differences of their items: the bootstrap is then paired.

    Returns:
        [low, high]
    """
    return share_interval(values, np.ones(len(values)), seed, samples)


def share_interval(found: np.ndarray, total: np.ndarray, seed: int = 0, samples: int = 1000) -> list[float]:
    """95% interval of sum(found) / sum(total) (percentile bootstrap); items are drawn with all that belongs to them.

    Args:
        found, total: (items,), such as the captions of an image that were found, and all its captions.

    Returns:
        [low, high]
    """
    if np.ptp(found) == 0 and np.ptp(total) == 0:
        return [float(found[0] / total[0])] * 2  # every draw is the same, for which scipy gives nan
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
