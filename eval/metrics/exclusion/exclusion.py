"""What the first k pictures of queries such as "a dog without a ball" show, as a module of `evaluate`. See README.md."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
For queries that want one thing and exclude another: how many of the first k pictures show what. A tie counts against the model:
among pictures of equal score those that show the unwanted thing come first, and those that show the wanted one alone come last.
"""

INPUTS = """
predictions: of each query the scores of all pictures; higher is better.
shows_wanted: of each query, for every picture, whether it shows the wanted thing.
shows_unwanted: likewise, whether it shows the thing to leave out.
k: number of pictures that are looked at; default 5.

Returns, in percent, means over the queries:
    "pure": pictures among the first k that show the wanted thing alone, of as many as there can be.
    "recall": pictures among the first k that show the wanted thing, of as many as there can be.
    "unwanted": share of the first k that show the thing to leave out; lower is better.
"""

DIGITS = 6  # scores are rounded to so many decimals; the rest is the rounding error of cosines in float32


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class Exclusion(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        shown = datasets.Sequence(datasets.Value("bool"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "shows_wanted": shown, "shows_unwanted": shown}
            ),
        )

    def _compute(self, predictions, shows_wanted, shows_unwanted, k=5) -> dict[str, float]:
        if k < 1:
            raise ValueError(f"k={k}: expected 1 or more pictures")
        rows = zip(predictions, shows_wanted, shows_unwanted, strict=True)
        shares = [100.0 * shares_of(*map(np.asarray, row), k) for row in rows]
        return dict(zip(("pure", "recall", "unwanted"), np.mean(shares, axis=0).tolist(), strict=True))


def shares_of(scores: np.ndarray, wanted: np.ndarray, unwanted: np.ndarray, k: int) -> np.ndarray:
    """The three shares of one query, from 0 to 1: (3,).

    Args:
        scores: (I,) float.
        wanted, unwanted: (I,) bool.
        k: number of pictures; more than I means all.

    Raises:
        ValueError: lengths differ, scores are not finite, or no picture shows the wanted thing alone.
    """
    if not scores.shape == wanted.shape == unwanted.shape:
        raise ValueError(f"{len(scores)} scores, {len(wanted)} and {len(unwanted)} pictures: expected one number")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite")
    pure = wanted & ~unwanted  # (I,)
    if not pure.any():
        raise ValueError("a query for which no picture shows the wanted thing alone has no right answer: leave it out")
    goodness = pure.astype(int) - unwanted  # (I,) 1 for the wanted thing alone, -1 for the unwanted, 0 for neither
    first = np.lexsort((goodness, -scores.astype(np.float64).round(DIGITS)))[:k]  # (k,)
    possible = [min(len(first), pure.sum()), min(len(first), wanted.sum()), len(first)]
    return np.array([pure[first].sum(), wanted[first].sum(), unwanted[first].sum()]) / possible
