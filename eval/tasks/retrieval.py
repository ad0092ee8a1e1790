"""Recall of text-to-image and image-to-text retrieval on pictures with captions.

Every caption searches all pictures of the split, and every picture all captions. A tie counts against the model (see
eval/metrics). The metrics are R@1, R@5 and R@10 in percent, in both directions (t2i: text to image, i2t: image to text), and
their mean, `mean_recall`, the primary metric. The items are ranks, 1 is best: `text_rank` of each caption, `image_rank` of each
picture; and `caption_image`, the picture that each caption belongs to.
"""

import argparse
from pathlib import Path

from eval.result import Result

GRID_QUERIES = 6  # rows of the picture of --grid


class Retrieval:
    """The task; see `eval.task.Task`."""

    name = "retrieval"
    takes = "pictures with captions: whatever --dataset of training takes, such as a folder, a table, parquet or a Hub id"

    def __init__(self, options: argparse.Namespace | None = None):
        self.grid: str | None = getattr(options, "grid", None)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--grid", metavar="OUT.png", help=f"also draw {GRID_QUERIES} captions with the pictures they find")

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The pictures, with columns `image` and `captions`. Those that cannot be read are named and left out."""
        from mpclip.data.image_text import load_image_text

        return load_image_text(source, split, limit=limit, **reading)

    def run(self, encoder, rows, **encoding) -> Result:
        """Embed pictures and captions and measure; see `eval.task.Task.run`."""
        from mpclip.encoding import encode_dataset

        embeds = encode_dataset(encoder, rows, **encoding)
        if self.grid:
            write_grid(rows, embeds, self.grid)
        return measure(embeds)


def measure(embeds: dict) -> Result:
    """The result, from embeddings.

    Args:
        embeds: as from `encode_dataset`.
    """
    from eval.metrics import flat, recall_intervals, recalls, retrieval_ranks

    text_ranks, image_ranks = retrieval_ranks(**embeds)
    owner = embeds["caption_image"].numpy()  # (T,)
    return Result(
        task=Retrieval.name,
        primary="mean_recall",
        metrics=flat(recalls(text_ranks, image_ranks)),
        intervals=flat(recall_intervals(text_ranks, image_ranks, owner)),
        counts={"images": len(image_ranks), "captions": len(text_ranks)},
        items={"text_rank": text_ranks, "image_rank": image_ranks, "caption_image": owner},
    )


def recalls_of(result: dict) -> tuple[dict, dict]:
    """The recalls and their intervals in the JSON of a retrieval result.

    Args:
        result: content of the JSON file. Files of the project's first format, which had other keys, are read too.

    Returns:
        Recalls `{"text_to_image": {"R@1": x, ...}, "image_to_text": {...}}`, and the same with intervals [low, high] for x.

    Raises:
        ValueError: this is not a retrieval result.
    """
    from eval.metrics import RECALLS, SHORT

    if SHORT.keys() <= result.keys():
        return {way: result[way] for way in SHORT}, result.get("interval_95", {})
    try:
        recalls, intervals = (
            {way: {f"R@{k}": result[part][f"{short}_R@{k}"] for k in RECALLS} for way, short in SHORT.items()}
            for part in ("metrics", "intervals")
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no result of `python -m eval retrieval --json`: it has no {error}.") from error
    return recalls, intervals


def write_grid(rows, embeds: dict, path: str | Path) -> None:
    """Draw a few captions with the pictures they find. The captions are taken at even intervals, not chosen.

    Args:
        rows: the pictures and captions.
        embeds: their embeddings, as from `encode_dataset`.
        path: the PNG to write.
    """
    import numpy as np

    from eval.query_grid import query_grid

    count = len(embeds["text_embeds"])
    chosen = np.linspace(0, count - 1, min(GRID_QUERIES, count)).astype(int)  # (Q,)
    captions = [caption for row in rows["captions"][:] for caption in row]
    query_grid(
        [captions[t] for t in chosen],
        rows["image"],
        embeds["text_embeds"][chosen] @ embeds["image_embeds"].T,  # (Q, I)
        embeds["caption_image"][chosen],
        path,
    )
