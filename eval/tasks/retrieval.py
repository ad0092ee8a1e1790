"""Recall and ranks of text-to-image and image-to-text retrieval on pictures with captions.

    mpclip eval retrieval --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json retrieval.json \\
        --grid found.png
    mpclip eval retrieval --model runs/demo/single_prompt runs/demo/multi_prompt --data runs/demo/scenes --split test \\
        --json results
    mpclip eval retrieval --model openai/clip-vit-base-patch32 --data coco --split test --folds 5 --json coco_1k.json

Every caption searches all pictures of the split, and every picture all captions. A tie counts against the model. The metrics of
both directions (t2i: text to image, i2t: image to text):

    R@1, R@5, R@10            share of queries that find a right answer among the first k, in percent
    median_rank, mean_rank    rank of the first right answer; 1 is best
    mAP@R                     like R@1, but a picture must find all its R captions first for 100 percent
    ..._recurring_right       recalls and mAP@R, if a caption that several pictures have is right for all of them

`mean_recall`, the mean of the six recalls, is the primary metric. --folds 5 divides the split into five parts of consecutive
pictures, searches each on its own, and gives means over the parts, as published for "COCO 1K". --captions_joined 5 makes one
text of five captions of a picture, each a sentence, instead of a text of each; a picture with fewer has all in one.

The items are ranks, 1 is best: `text_rank` of each caption, `image_rank` of each picture; `caption_image`, the picture of each
caption; and others that `eval.metrics.retrieval_items` explains.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.result import Result
from mpclip.argument_types import count

GRID_QUERIES = 6  # rows of the picture of --grid


class Retrieval:
    """The task; see `eval.task.Task`."""

    name = "retrieval"
    takes = "pictures with captions: whatever --dataset of training takes, such as a folder, a table, parquet or a Hub id"
    writes = ("grid",)

    def __init__(self, options: argparse.Namespace | None = None):
        self.grid: str | None = getattr(options, "grid", None)
        self.folds: int = getattr(options, "folds", 1)
        self.joined: int = getattr(options, "captions_joined", 1)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--grid", metavar="OUT.png", help=f"also draw {GRID_QUERIES} captions with the pictures they find")
        parser.add_argument(
            "--folds",
            type=count,
            default=1,
            help="parts of consecutive pictures, each searched on its own; metrics are means over them (default: %(default)s)",
        )
        parser.add_argument(
            "--captions_joined",
            type=count,
            default=1,
            help="captions of a picture that make one text, each a sentence; 1: each is a text (default: %(default)s)",
        )

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The pictures, with columns `image` and `captions`. Those that cannot be read are named and left out."""
        from mpclip.data.image_text import load_image_text
        from mpclip.data.joined_captions import with_joined_captions

        rows = load_image_text(source, split, limit=limit, **reading)
        if self.folds > len(rows):
            raise ValueError(f"--folds {self.folds}: {source}, split {split!r} has only {len(rows)} pictures")
        return with_joined_captions(rows, self.joined) if self.joined > 1 else rows

    def run(self, encoder, rows, **encoding) -> Result:
        """Embed pictures and captions and measure; see `eval.task.Task.run`."""
        from mpclip.encoding import encode_dataset

        embeds = encode_dataset(encoder, rows, **encoding)
        captions = [caption for row in rows.with_format(None)["captions"][:] for caption in row]
        if self.grid:
            write_grid(*first_fold(rows, embeds, self.folds), self.grid)
        result = measure(embeds, captions, self.folds)
        result.counts |= {"captions_joined": self.joined} if self.joined > 1 else {}
        return result

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of pictures; each is drawn with its captions."""
        return len(items["image_rank"])

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """The metrics, if each picture and its captions count as often as it was drawn; see `eval.task.Task.metrics_of`."""
        from eval.metrics import retrieval_measures

        return retrieval_measures(items, counts)


def measure(embeds: dict, captions: Sequence[str] | None = None, folds: int = 1) -> Result:
    """The result, from embeddings.

    Args:
        embeds: as from `encode_dataset`.
        captions: the T captions; None leaves out the metrics of recurring captions.
        folds: number of folds; see `eval.metrics.retrieval`.
    """
    from eval.intervals import bootstrap
    from eval.metrics import contents_of, retrieval_items

    items = retrieval_items(**embeds, contents=None if captions is None else contents_of(captions), folds=folds)
    images = Retrieval.units(items)
    counts = {"images": images, "captions": len(items["text_rank"])}
    if captions is not None:
        counts["recurring_captions"] = int(items.get("recurring", np.zeros(0)).sum())
    return Result(
        task=Retrieval.name,
        primary="mean_recall",
        metrics=Retrieval.metrics_of(items, np.ones(images, int)),
        intervals=bootstrap(Retrieval.metrics_of, items, images),
        counts=counts | ({"folds": folds} if folds > 1 else {}),
        items=items,
    )


def first_fold(rows, embeds: dict, folds: int) -> tuple:
    """The rows and embeddings of the first fold. Arguments are those of `write_grid` and `measure`."""
    from eval.metrics import folds_of

    images = int((folds_of(len(rows), folds) == 0).sum())
    here = embeds["caption_image"] < images  # (T,)
    texts = {name: embeds[name][here] for name in ("text_embeds", "caption_image")}
    return rows.select(range(images)), {"image_embeds": embeds["image_embeds"][:images], **texts}


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
    from eval.metrics import contents_of
    from eval.query_grid import query_grid

    count = len(embeds["text_embeds"])
    chosen = np.linspace(0, count - 1, min(GRID_QUERIES, count)).astype(int)  # (Q,)
    captions = [caption for row in rows["captions"][:] for caption in row]
    owner, contents = np.asarray(embeds["caption_image"]), contents_of(captions)  # (T,) each
    query_grid(
        [captions[t] for t in chosen],
        rows["image"],
        embeds["text_embeds"][chosen] @ embeds["image_embeds"].T,  # (Q, I)
        owner[chosen],
        path,
        same=[set(owner[contents == contents[t]].tolist()) for t in chosen],
    )
