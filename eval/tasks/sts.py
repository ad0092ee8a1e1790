"""Correlation of the similarity of two sentences with human scores (STS).

    mpclip eval sts --model runs/demo/multi_prompt --data data/stsb --split dev --json sts.json
    mpclip eval sts --model sentence-transformers/all-MiniLM-L6-v2 runs/mine_text --data data/stsb --split dev \\
        --json results
    mpclip eval sts --model runs/demo/multi_prompt --data my_pairs.csv --split all --json mine.json

Both sentences of a pair are embedded, and the cosine of the two embeddings is compared with the pair's score. No picture is
needed, so text-only models are measured too. The metrics are correlations in percent:

    spearman   of the ranks (the primary metric): only the order of the cosines counts
    pearson    of the values

They equal `spearman_cosine` and `pearson_cosine` of sentence-transformers' EmbeddingSimilarityEvaluator, times 100. If a model
gives all pairs the same cosine, a correlation is undefined. It is then reported as 0, with a warning: such a model tells
nothing apart. The items are `cosine` and `score` of each pair.
"""

import argparse
import warnings

import numpy as np

from eval.result import Result

SAME = 1e-6  # cosines that differ by less are equal: rounding of fp32


class SentencePairs:
    """The task; see `eval.task.Task`."""

    name = "sts"
    takes = "sentence pairs: a csv, tsv or jsonl file with sentence1, sentence2 and score; a folder with SPLIT.csv; a Hub id"
    texts_only = True

    def __init__(self, options: argparse.Namespace | None = None):
        pass

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        pass

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The pairs, with columns `sentence1`, `sentence2` and `score`; see `mpclip.data.pairs.load_pairs`.

        Raises:
            ValueError: there are fewer than three pairs, or all have one score.
        """
        from mpclip.data.pairs import load_pairs

        rows = load_pairs(source, split, limit)
        if len(rows) < 3 or len(set(rows["score"][:])) == 1:
            raise ValueError(f"{source}, split {split!r}: {len(rows)} pairs, expected at least three and two different scores")
        return rows

    def run(self, encoder, rows, batch_size: int = 64, cache: str | None = None, **encoding) -> Result:
        """Embed the sentences and measure; see `eval.task.Task.run`."""
        from mpclip.encoding import encode_texts

        sentences = rows["sentence1"][:] + rows["sentence2"][:]
        first, second = encode_texts(encoder, sentences, batch_size, cache, **encoding).chunk(2)  # (P, D) each
        return measure((first * second).sum(dim=1).numpy(), np.asarray(rows["score"][:], dtype=np.float32))

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of pairs."""
        return len(items["cosine"])

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """See `eval.task.Task.metrics_of`. nan if all drawn pairs have one score."""
        from scipy.stats import rankdata

        drawn = np.repeat(np.arange(len(counts)), counts)
        cosines, scores = items["cosine"][drawn].astype(float), items["score"][drawn].astype(float)
        return {
            "spearman": 100.0 * _correlation(rankdata(cosines), rankdata(scores), constant=np.ptp(cosines) < SAME),
            "pearson": 100.0 * _correlation(cosines, scores, constant=np.ptp(cosines) < SAME),
        }


def measure(cosines: np.ndarray, scores: np.ndarray) -> Result:
    """The result, from the cosines of pairs.

    Args:
        cosines, scores: (P,) float32.

    Raises:
        ValueError: a cosine is not a finite number.
    """
    from eval.intervals import bootstrap

    if not np.isfinite(cosines).all():
        raise ValueError(f"{(~np.isfinite(cosines)).sum()} of {len(cosines)} cosines are not finite: the model is damaged")
    items = {"cosine": cosines, "score": scores}
    result = Result(
        task=SentencePairs.name,
        primary="spearman",
        metrics=SentencePairs.metrics_of(items, np.ones(len(cosines), dtype=int)),
        intervals=bootstrap(SentencePairs.metrics_of, items, len(cosines)),
        counts={"pairs": len(cosines)},
        items=items,
    )
    if np.ptp(cosines) < SAME:
        result.origin["undefined"] = "All pairs have the same cosine. The correlations are undefined and reported as 0."
        warnings.warn(result.origin["undefined"], stacklevel=2)
    return result


def _correlation(first: np.ndarray, second: np.ndarray, constant: bool) -> float:
    """Pearson's correlation; 0 where the model's values are constant, nan where the scores are."""
    if np.ptp(second) == 0:
        return float("nan")
    return 0.0 if constant else float(np.corrcoef(first, second)[0, 1])
