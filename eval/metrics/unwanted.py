"""What the first k pictures of a query show: what it wants, and what it does not want.

**A tie counts against the model**: among pictures of equal score, those that show what is not wanted come first, and those that
show only what is wanted come last. Scores are equal if they differ by less than 1e-6, the rounding error of inner products in
float32.
"""

from typing import NamedTuple

import numpy as np

DIGITS = 6  # scores are rounded to so many decimals; the rest is rounding error


class Found(NamedTuple):
    """How many of the first k pictures of P queries show what.

    Attributes:
        wanted: (P,) int64, those that show X, with or without Y.
        pure: (P,) int64, those that show X and not Y.
        unwanted: (P,) int64, those that show Y.
    """

    wanted: np.ndarray
    pure: np.ndarray
    unwanted: np.ndarray


def found_first(scores: np.ndarray, shows_wanted: np.ndarray, shows_unwanted: np.ndarray, k: int) -> Found:
    """Count what the first k pictures show (ours).

    Args:
        scores: (P, I) float, of P queries with I pictures; higher is better.
        shows_wanted, shows_unwanted: (P, I) bool, whether a picture shows X, and Y.
        k: number of pictures; more than I means all.

    Raises:
        ValueError: shapes differ, scores are not finite, or k is below 1.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not scores.shape == shows_wanted.shape == shows_unwanted.shape or scores.ndim != 2:
        raise ValueError(
            f"scores {scores.shape}, shows_wanted {shows_wanted.shape}, shows_unwanted {shows_unwanted.shape}: "
            "expected one shape, (queries, pictures)"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite; look for NaN weights in the checkpoint")
    if k < 1:
        raise ValueError(f"k={k}: expected 1 or more pictures")
    pure = shows_wanted & ~shows_unwanted  # (P, I)
    goodness = pure.astype(np.int8) - shows_unwanted  # (P, I) 1 for X alone, -1 for Y, 0 for neither
    first = np.lexsort((goodness, -scores.round(DIGITS)), axis=1)[:, :k]  # (P, k)
    return Found(*(np.take_along_axis(shown, first, axis=1).sum(axis=1) for shown in (shows_wanted, pure, shows_unwanted)))
