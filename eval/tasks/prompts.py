"""What each prompt adds: recall by each segment alone, without each, by the first m, and what each segment stands for.

    mpclip eval prompts --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json prompts.json \\
        --grid prompts.png
    mpclip eval prompts --model runs/demo/multi_prompt --data runs/demo/scenes --split 'test[50%:]' \\
        --fit_split 'test[:50%]' --json fitted.json
    mpclip eval prompts --model runs/mine --data photos --split test --limit 500 --json quick_look.json

Captions search all pictures of the split and pictures all captions. The metrics are mean recalls (of R@1, R@5 and R@10, both
ways) in percent; a tie counts against the model:

    all              by all K segments (the primary metric)
    alone_k          by segment k alone
    without_k        by all segments but k
    first_m          by the first m segments, as with num_prompts=m
    fitted           by all, with the aspect weights that were best on --fit_split
    fitted_gain      fitted minus all, in points

Pictures and texts are normalised over the segments that are used. With --fit_split, the weights are searched on that split
alone: each is varied, the best single change is kept, and so on (eval/weight_search.py).

The JSON file also holds, under `prompts`: their names; `share`, each segment's part in the score of captions with their own
pictures; the mean cosine of two segments for texts and for pictures, and the correlation of their scores over all pairs of a
caption and a picture (K x K each); and `highest`, the captions and pictures that lean most to each prompt (see
eval/segment_profile.py). --grid draws these. The items are ranks, 1 is best, for each metric: `text_rank_METRIC` of each
caption, `image_rank_METRIC` of each picture; and `caption_image`, the picture of each caption. Intervals are over pictures.
"""

import argparse
import warnings
from typing import TYPE_CHECKING

import numpy as np

from eval.fit_split import BothSplits, both_splits
from eval.result import Result

if TYPE_CHECKING:
    pass

SHOWN = 5  # captions and pictures that are listed for each prompt
TEXT, IMAGE = "text_rank_", "image_rank_"  # before the name of a metric


class Prompts:
    """The task; see `eval.task.Task`."""

    name = "prompts"
    takes = "pictures with captions: whatever --dataset of training takes, such as a folder, a table, parquet or a Hub id"
    writes = ("grid",)
    writes = ("grid",)

    def __init__(self, options: argparse.Namespace | None = None):
        self.grid: str | None = getattr(options, "grid", None)
        self.fit_split: str | None = getattr(options, "fit_split", None)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--fit_split", metavar="SPLIT", help="also fit aspect weights on this other split")
        parser.add_argument("--grid", metavar="OUT.png", help=f"also draw the {SHOWN} pictures that lean most to each prompt")

    def load(self, source: str, split: str, limit: int | None = None, **reading) -> BothSplits:
        """The pictures of both splits. Those that cannot be read are named and left out.

        Raises:
            ValueError: both splits have a picture in common.
        """
        from mpclip.data.image_text import load_image_text

        return both_splits(lambda one: load_image_text(source, one, limit=limit, **reading), split, self.fit_split)

    def run(self, encoder, data: BothSplits, **encoding) -> Result:
        """Embed pictures and captions and measure; see `eval.task.Task.run`.

        Raises:
            ValueError: the model is none of MP-CLIP's, so it has no prompts.
        """
        from eval.aspects import names_of_aspects
        from mpclip.encoding import encode_dataset

        K = encoder.segments
        if not hasattr(getattr(encoder.model, "config", None), "num_prompts"):
            raise ValueError(f"{encoder.name} has no prompts, so there is nothing to compare. Give an MP-CLIP checkpoint.")
        if K == 1:
            warnings.warn(
                f"{encoder.name} has a single prompt, or segments that read all prompts (joint_projection). Its recall is "
                "measured; there is nothing to leave out, compare or fit.",
                stacklevel=2,
            )
        embeds = encode_dataset(encoder, data.rows, **encoding)
        fit = encode_dataset(encoder, data.fit, **encoding) if data.fit is not None and K > 1 else None
        result, names = measure(embeds, K, fit), names_of_aspects(encoder)
        result.origin["prompts"] = {"names": names} | profile(embeds, K, data.rows)
        if self.grid:
            write_grid(names, result.origin["prompts"]["highest"], data.rows, self.grid)
        return result

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of pictures; each is drawn with its captions."""
        return len(items[f"{IMAGE}all"])

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """The metrics, if each picture and its captions count `counts` times; see `eval.task.Task.metrics_of`."""
        from eval.metrics import RECALLS

        texts = counts[items["caption_image"]]  # (T,)
        metrics = {}
        for name in (key.removeprefix(TEXT) for key in items if key.startswith(TEXT)):
            recalls = [
                ((items[way + name] <= k) @ weights) / weights.sum()
                for way, weights in ((TEXT, texts), (IMAGE, counts))
                for k in RECALLS
            ]
            metrics[name] = 100.0 * float(np.mean(recalls))
        return metrics | ({"fitted_gain": metrics["fitted"] - metrics["all"]} if "fitted" in metrics else {})


def variants_of(K: int) -> dict[str, list[int]]:
    """The sets of segments that are measured: name -> segments, numbered from 0."""
    every = list(range(K))
    if K == 1:
        return {"all": every}
    return {
        "all": every,
        **{f"alone_{k + 1}": [k] for k in every},
        **{f"without_{k + 1}": [other for other in every if other != k] for k in every if K > 2},
        **{f"first_{m}": every[:m] for m in range(2, K)},
    }


def measure(embeds: dict, K: int, fit: dict | None = None) -> Result:
    """The result, from embeddings.

    Args:
        embeds: as from `encode_dataset`.
        K: number of segments.
        fit: embeddings of the split that weights are fitted on; None fits none.
    """
    import torch

    from eval.intervals import bootstrap
    from eval.metrics import retrieval_ranks
    from eval.weight_search import WEIGHTS, choose, retrieval_score
    from modeling_mpclip.segments import normalized, weighted

    owner = embeds["caption_image"]  # (T,)
    text, image = (embeds[name].unflatten(1, (K, -1)) for name in ("text_embeds", "image_embeds"))  # (T, K, d), (I, K, d)
    ranks = {
        name: retrieval_ranks(normalized(image[:, used]), normalized(text[:, used]), owner)
        for name, used in variants_of(K).items()
    }
    origin = {}
    if fit is not None:
        weights, curves = choose(lambda weights: float(retrieval_score(fit, weights).mean()), K)
        ranks["fitted"] = retrieval_ranks(embeds["image_embeds"], weighted(embeds["text_embeds"], torch.tensor(weights)), owner)
        origin["fit"] = {"weights": weights, "values": list(WEIGHTS), "curves": curves, "pictures": len(fit["image_embeds"])}
    items = {"caption_image": owner.numpy().astype(np.int32)}
    for name, of_sides in ranks.items():
        items |= {side + name: rank.astype(np.int32) for side, rank in zip((TEXT, IMAGE), of_sides, strict=True)}
    return Result(
        task=Prompts.name,
        primary="all",
        metrics=Prompts.metrics_of(items, np.ones(len(image), dtype=np.int64)),
        intervals=bootstrap(Prompts.metrics_of, items, len(image)),
        counts={"images": len(image), "captions": len(text), "segments": K},
        items=items,
        origin=origin,
    )


def profile(embeds: dict, K: int, rows) -> dict:
    """What the segments have in common and stand for, as the JSON file holds it.

    Args:
        embeds: of `rows`, as from `encode_dataset`.
        K: number of segments.
        rows: the pictures, with columns `image` and `captions`.
    """
    from eval.segment_profile import cosines, leanings, score_correlations

    leaning = leanings(embeds["text_embeds"], embeds["image_embeds"], embeds["caption_image"], K)
    captions = rows.with_format(None)["captions"][:]
    flat = [caption for row in captions for caption in row]
    owner, shown = embeds["caption_image"].tolist(), min(SHOWN, len(captions))
    highest = []
    for k in range(K):
        top = leaning.captions[:, k].topk(min(SHOWN, len(flat))).indices.tolist()
        highest.append(
            {
                "captions": [
                    {"caption": flat[t], "row": owner[t], "leaning": round(float(leaning.captions[t, k]), 3)} for t in top
                ],
                "pictures": [
                    {"row": i, "leaning": round(float(leaning.pictures[i, k]), 3), "captions": captions[i]}
                    for i in leaning.pictures[:, k].topk(shown).indices.tolist()
                ],
            }
        )
    return {
        "share": rounded(leaning.share),
        "cosine_of_texts": rounded(cosines(embeds["text_embeds"], K)),
        "cosine_of_pictures": rounded(cosines(embeds["image_embeds"], K)),
        "correlation_of_scores": rounded(score_correlations(embeds["text_embeds"], embeds["image_embeds"], K)),
        "highest": highest,
    }


def top(leanings) -> list[tuple[int, float]]:
    """The `SHOWN` highest of a vector: index and value, highest first."""
    values, indices = leanings.topk(min(SHOWN, len(leanings)))
    return list(zip(indices.tolist(), rounded(values), strict=True))


def rounded(numbers) -> list:
    """A tensor as nested lists, with three decimals."""
    return np.asarray(numbers, dtype=np.float64).round(3).tolist()


def write_grid(names: list[str], highest: list[dict], rows, path: str) -> None:
    """Draw the pictures that lean most to each prompt.

    Args:
        names: of the K prompts.
        highest: as from `profile`.
        rows: the pictures.
        path: the PNG to write.
    """
    from eval.prompt_grid import prompt_grid

    images = rows["image"]
    pictures = [[images[one["row"]] for one in prompt["pictures"]] for prompt in highest]
    prompt_grid(names, pictures, [[one["captions"][0] for one in prompt["pictures"]] for prompt in highest], path)
