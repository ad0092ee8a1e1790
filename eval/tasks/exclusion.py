"""Queries that leave something out: "a dog without a ball" and `exclude="a ball"`, on photos with captions or OpenMoji scenes.

    mpclip eval exclusion --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json exclusion.json
    mpclip eval exclusion --model runs/demo/multi_prompt --data runs/demo/scenes --split test --top 10 \\
        --json exclusion_10.json
    mpclip eval exclusion --model runs/mine openai/clip-vit-base-patch32 --data photos --split test --together 5 \\
        --json results

For pairs (X, Y) of things that the pictures show together and apart, three queries search all pictures of the split:

    plain    the text X, such as "a dog"
    words    the text "X without Y"
    exclude  the text X with exclude=Y, as in `mpclip search --exclude` and in sentence-transformers

The metrics are means over pairs, in percent, of the first k pictures (`--top`):

    WAY_pure      pictures of X without Y that are found, of those that k pictures can hold (exclude_pure is the primary metric)
    WAY_recall    the same for all pictures of X, with or without Y
    WAY_unwanted  share of the k pictures that show Y
    WAY_left      WAY_unwanted in percent of plain_unwanted: 50 means that half of Y is gone;
                  absent if the plain query finds no Y
    WAY_lost      plain_recall minus WAY_recall, in points

What a photo shows is known from all its captions, what a scene shows from its description. A tie counts against the model. The
items are counts of each pair: `WAY_pure`, `WAY_recall`, `WAY_unwanted`; what k pictures can hold of X (`can_recall`) and of X
without Y (`can_pure`); k (`first`); and the pair itself (`wanted`, `not_wanted`). Intervals are over pairs.
"""

import argparse

import numpy as np

from eval.result import Result
from mpclip.argument_types import count

WAYS = ("plain", "words", "exclude")
QUERIES = 256  # pairs whose scores with all pictures are computed at a time


class Exclusion:
    """The task; see `eval.task.Task`."""

    name = "exclusion"
    takes = "pictures with captions, as --dataset of training takes them, or a folder of OpenMoji scenes"

    def __init__(self, options: argparse.Namespace | None = None):
        self.top: int = getattr(options, "top", 5)
        self.together: int = getattr(options, "together", 3)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--top", type=count, default=5, help="k, the pictures that are looked at (default: %(default)s)")
        parser.add_argument(
            "--together",
            type=count,
            default=3,
            help="least number of pictures that show X and Y; those of X without Y are at least k (default: %(default)s)",
        )

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The pictures, with columns `image` and `captions`, and `scene` if they are OpenMoji scenes."""
        from mpclip.data.image_text import load_image_text

        return load_image_text(source, split, limit=limit, **reading)

    def run(self, encoder, rows, **encoding) -> Result:
        """Embed pictures and queries and measure; see `eval.task.Task.run`.

        Raises:
            ValueError: no pair of things occurs often enough in the pictures, or a pair has one embedding.
        """
        from mpclip.encoding import encode_images

        return self.measured(encoder, rows, encode_images(encoder, rows, **encoding), **encoding)

    def measured(self, encoder, rows, images, **encoding) -> Result:
        """As `run`, with the embeddings of the pictures, (I, D)."""
        from mpclip.encoding import encode_texts

        things, pairs, texts = self.queries(rows)
        names = np.array(things.names)[pairs]  # (P, 2)
        queries = queries_of(encode_texts(encoder, texts, **encoding), pairs, names, encoder.segments)
        return measure(queries, images, things.shown, pairs, names, self.top)

    def queries(self, rows) -> tuple:
        """The things, the pairs (P, 2), and the texts to embed: the N things, and "X without Y" of each pair."""
        from mpclip.data.exclusion_queries import exclusion_pairs, things_of

        things = things_of(rows)
        pairs = exclusion_pairs(things, self.together, self.top)
        return things, pairs, things.names + [f"{things.names[x]} without {things.names[y]}" for x, y in pairs]

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of pairs."""
        return len(items["first"])

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """The metrics, if pair p counts `counts[p]` times; see `eval.task.Task.metrics_of`."""

        def mean(found: np.ndarray, possible: np.ndarray) -> float:
            return 100.0 * float(counts @ (found / possible) / counts.sum())

        of = {"pure": "can_pure", "recall": "can_recall", "unwanted": "first"}
        metrics = {f"{way}_{what}": mean(items[f"{way}_{what}"], items[of[what]]) for way in WAYS for what in of}
        for way in WAYS[1:]:
            if before := metrics["plain_unwanted"]:
                metrics[f"{way}_left"] = 100.0 * metrics[f"{way}_unwanted"] / before
            metrics[f"{way}_lost"] = metrics["plain_recall"] - metrics[f"{way}_recall"]
        return metrics


def queries_of(embeds, pairs: np.ndarray, names: np.ndarray, segments: int) -> dict:
    """The three queries of every pair.

    Args:
        embeds: (N + P, D) tensor, of the N things and of the P texts "X without Y".
        pairs: (P, 2) int, X and Y as indices of things.
        names: (P, 2) str, their names.
        segments: K.

    Returns:
        Way -> (P, D).

    Raises:
        ValueError: the model has one embedding for X and Y.
    """
    import torch

    from modeling_mpclip.segments import assembled

    segmented = embeds.unflatten(1, (segments, -1))  # (N + P, K, D/K)
    excluding = []
    for (x, y), (wanted, unwanted) in zip(pairs.tolist(), names.tolist(), strict=True):
        try:
            excluding.append(assembled(segmented[x : x + 1], excluded=segmented[y : y + 1]))
        except ValueError as error:
            raise ValueError(
                f"the model has one embedding for {wanted!r} and {unwanted!r}, so neither can be left out: it tells too little "
                "apart to be measured, or its weights are faulty"
            ) from error
    return {"plain": embeds[pairs[:, 0]], "words": embeds[-len(pairs) :], "exclude": torch.cat(excluding)}


def measure(queries: dict, images, shown: np.ndarray, pairs: np.ndarray, names: np.ndarray, top: int) -> Result:
    """The result, from embeddings.

    Args:
        queries: way -> (P, D) tensor, as from `queries_of`.
        images: (I, D) tensor.
        shown: (I, N) bool, which things a picture shows.
        pairs: (P, 2) int, X and Y as indices of things.
        names: (P, 2) str, their names.
        top: k.
    """
    from eval.intervals import bootstrap
    from eval.metrics.unwanted import found_first

    wanted, unwanted = shown.T[pairs[:, 0]], shown.T[pairs[:, 1]]  # (P, I) each
    top = min(top, len(images))
    items = {
        "can_recall": wanted.sum(axis=1).clip(max=top),
        "can_pure": (wanted & ~unwanted).sum(axis=1).clip(max=top),
        "first": np.full(len(pairs), top),
        "wanted": names[:, 0],
        "not_wanted": names[:, 1],
    }
    for way in WAYS:
        parts = []
        for at in range(0, len(pairs), QUERIES):
            some = slice(at, at + QUERIES)
            scores = (queries[way][some] @ images.T).numpy()  # (p, I)
            parts.append(np.stack(found_first(scores, wanted[some], unwanted[some], top)))  # (3, p)
        found = np.concatenate(parts, axis=1)  # (3, P)
        items |= dict(zip((f"{way}_recall", f"{way}_pure", f"{way}_unwanted"), found, strict=True))
    items = {name: values.astype(np.uint16) if values.dtype == np.int64 else values for name, values in items.items()}
    return Result(
        task=Exclusion.name,
        primary="exclude_pure",
        metrics=Exclusion.metrics_of(items, np.ones(len(pairs), dtype=np.int64)),
        intervals=bootstrap(Exclusion.metrics_of, items, len(pairs)),
        counts={"images": len(images), "pairs": len(pairs), "things": len(np.unique(pairs))},
        items=items,
    )
