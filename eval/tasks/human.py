"""Human judgement: does a model's score of a picture and a caption rise with the ratings that people gave?

    mpclip eval human --model runs/demo/multi_prompt --data flickr8k --split expert --json expert.json
    mpclip eval human --model runs/demo/multi_prompt --data flickr8k --split crowdflower --json crowdflower.json
    mpclip eval human --model runs/demo/multi_prompt --data flickr8k --split expert --prefix '' --json no_prefix.json

The score is CLIPScore's: w * max(cos, 0), with a prefix before the caption. It is compared with the ratings by Kendall's tau,
times 100. Each rating is a data point: a pair that three experts rated counts three times, with one score. --split says which
of the two published sets is measured:

    expert         three ratings of each pair, compared by tau_c; a picture's own captions are left out
    crowdflower    one rating of each pair, the share of yes, compared by tau_b

Tau is the primary metric. Beside it stands `mean_clipscore`, the mean score in percent: how large scores are, not how good.

Scores that differ by less than the rounding of float32 are ties. A model that gives all pairs one score has no tau; it gets 0,
with a warning. The items are, of each pair, `score`, `ratings` (as many columns as ratings) and `image`, the number of its
picture.
"""

import argparse
import warnings

import numpy as np

from eval.result import Result

W, PREFIX = 2.5, "A photo depicts "  # CLIPScore's (Hessel et al. 2021)
DECIMALS = 6  # of a cosine in float32


def _positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is out of range: expected a number above 0")
    return value


class Human:
    """The task; see `eval.task.Task`."""

    name = "human"
    takes = "a folder with ExpertAnnotations.txt or CrowdFlowerAnnotations.txt, Flickr8k.token.txt and the pictures"

    def __init__(self, options: argparse.Namespace | None = None):
        self.w: float = getattr(options, "w", W)
        self.prefix: str = getattr(options, "prefix", PREFIX)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--w", type=_positive, default=W, help="factor of the score (default: %(default)s)")
        parser.add_argument(
            "--prefix", default=PREFIX, help="text before each caption, '' for none (default: %(default)r, CLIPScore's)"
        )

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The rated pairs, as from `load_rated`. `split` is the set: "expert" or "crowdflower"."""
        from mpclip.data.rated_captions import load_rated

        return load_rated(source, split, limit, **reading)

    def run(self, encoder, data, **encoding) -> Result:
        """Embed pictures and captions and measure; see `eval.task.Task.run`."""
        from mpclip.encoding import encode_images, encode_texts

        space = " " if self.prefix and not self.prefix[-1].isspace() else ""
        texts = [self.prefix + space + caption for caption in data.captions]
        images = encode_images(encoder, data.rows, **encoding)  # (I, D)
        captions = encode_texts(encoder, texts, title="Embedding captions", **encoding)  # (P, D)
        cosine = (images[data.image] * captions).sum(dim=1).numpy()  # (P,)
        result = measure(cosine, data.ratings, data.image, self.w)
        result.counts |= data.left_out
        result.origin |= {"w": self.w, "prefix": self.prefix}
        return result

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The pictures."""
        return int(items["image"].max()) + 1

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """The metrics, if picture u counts `counts[u]` times, with all its pairs; nan if all ratings are equal."""
        times = counts[items["image"]]  # (P,)
        scores = np.repeat(items["score"], times)  # (N,) a pair as often as its picture was drawn
        ratings = np.repeat(items["ratings"], times, axis=0)  # (N, R)
        given = ~np.isnan(ratings)  # (N, R)
        points = np.broadcast_to(scores[:, None], ratings.shape)[given]  # (ratings,)
        variant = variant_for(ratings)
        return {
            f"tau_{variant}": 100.0 * kendall(points, ratings[given], variant),
            "mean_clipscore": 100.0 * float(scores.mean(dtype=np.float64)),
        }


def variant_for(ratings: np.ndarray) -> str:
    """The published variant of tau for (P, R) ratings: "c" for several of each pair, "b" for one."""
    return "c" if ratings.shape[1] > 1 else "b"


def kendall(scores: np.ndarray, ratings: np.ndarray, variant: str) -> float:
    """Kendall's tau of two rankings with ties, by scipy.

    Args:
        scores, ratings: (N,) without nan.
        variant: "b" or "c".

    Returns:
        -1 to 1. 0 if all scores are equal: they order nothing (ours; tau is undefined there). nan if all ratings are equal.
    """
    from scipy.stats import kendalltau

    if np.ptp(ratings) == 0:
        return float("nan")
    if np.ptp(scores) == 0:
        return 0.0
    return float(kendalltau(scores, ratings, variant=variant, method="asymptotic").statistic)


def measure(cosine: np.ndarray, ratings: np.ndarray, image: np.ndarray, w: float = W) -> Result:
    """The result, from cosines.

    Args:
        cosine: (P,) of each pair.
        ratings: (P, R); nan where a rating is missing.
        image: (P,) int, the picture of each pair, from 0 on.
        w: factor of the score.

    Raises:
        ValueError: a cosine is not finite.
    """
    from eval.intervals import bootstrap

    if bad := int((~np.isfinite(cosine)).sum()):
        raise ValueError(f"{bad} of {len(cosine)} pairs have a score that is not finite: check the checkpoint for NaN weights")
    score = w * np.maximum(np.round(cosine.astype(np.float64), DECIMALS), 0)  # (P,)
    items = {"score": score.astype(np.float32), "ratings": ratings.astype(np.float32), "image": image.astype(np.int32)}
    distinct = len(np.unique(items["score"]))
    if distinct == 1:
        warnings.warn("all pairs have one score, which orders nothing: tau is undefined, and is reported as 0", stacklevel=2)
    units = Human.units(items)
    return Result(
        task=Human.name,
        primary=f"tau_{variant_for(ratings)}",
        metrics=Human.metrics_of(items, np.ones(units, dtype=np.int64)),
        intervals=bootstrap(Human.metrics_of, items, units),
        counts={
            "images": units,
            "pairs": len(score),
            "ratings": int((~np.isnan(ratings)).sum()),
            "missing_ratings": int(np.isnan(ratings).sum()),
            "distinct_scores": distinct,
        },
        items=items,
    )
