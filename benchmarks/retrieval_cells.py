"""Trains and measures a cell of `benchmarks.ablation`: one retrieval system with one seed."""

import argparse
import functools
import re
import time
from collections.abc import Sequence

import datasets
import numpy as np
import torch

from eval.metrics import flat, retrieval_metrics, retrieval_ranks
from eval.tasks.exclusion import WAYS, Exclusion
from modeling_mpclip.segments import normalized
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.data.joined_captions import with_joined_captions
from mpclip.data.reading import reading_of
from mpclip.training.arguments import RunOptions
from mpclip.training.closed_form import solve_start
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.command_line import parse_options
from mpclip.training.options import DataArguments
from mpclip.training.run import build_trainer, cached_states


@functools.lru_cache
def _rows(dataset: str, split: str, **options) -> datasets.Dataset:
    return load_image_text(dataset, split, **options)


def open_once(options: DataArguments, split: str) -> datasets.Dataset:
    """The rows of a split, like `mpclip.training.run.open_rows`; all cells share them, so that images are checked once."""
    return _rows(options.dataset, split, **reading_of(options))


def train_cell(argv: list[str], splits: list[str]) -> dict[str, dict]:
    """Train one cell and measure it.

    Args:
        argv: the command line of train_hf.py.
        splits: the splits to measure on.

    Returns:
        Split -> metrics as from `measure`, those of `negation_metrics` and `exclusion_metrics` where the data are scenes, and
        `train_seconds`. Of cells that were trained on joined captions also `joined_mean_recall` and others, by one text of all
        captions of a picture.
    """
    options = parse_options(argv)
    started = time.monotonic()
    trainer = build_trainer(options, open_split=open_once)
    solve_start(trainer, options.model)
    trainer.train()
    seconds = time.monotonic() - started
    results = {}
    for split in splits:
        rows = open_once(options.data, split)
        scenes = "scene" in rows.column_names
        queries = looking_at(1).queries(rows)[2] if scenes else []  # those of the first five are among them
        embeds = embed(trainer, options, rows, queries)
        results[split] = measure(embeds, trainer.accelerator.unwrap_model(trainer.model).config.num_prompts)
        if scenes:
            results[split] |= negation_metrics(embeds, rows) | exclusion_metrics(trainer, embeds, rows)
        if (most := options.data.joined.most) > 1:
            metrics = flat(retrieval_metrics(**embed(trainer, options, with_joined_captions(rows, most))))
            results[split] |= {f"joined_{name}": metrics[name] for name in ("mean_recall", "t2i_R@1", "i2t_R@1")}
        results[split] |= {"train_seconds": round(seconds, 1)}
    return results


def embed(trainer, options: RunOptions, rows: datasets.Dataset, further: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Embeddings of a table. The trainer's encoder can then embed `further` texts too.

    Returns:
        image_embeds (I, D) and text_embeds (T, D), float32, normalised; caption_image (T,) int, the image of each caption.
    """
    processor = trainer.processing_class
    base = getattr(trainer.model, "base_model", trainer.model)
    base = getattr(base, "model", base)  # of a PeftModel
    states = cached_states(base, processor, rows, options=options, further=further)
    trainer.eval_collator = MPCLIPCollator(processor, *states, base.config.words)
    predictions = trainer.predict(ImageTextDataset(rows, "all", with_images=states[1] is None)).predictions
    names = ("image_embeds", "text_embeds", "caption_image")
    return dict(zip(names, map(torch.from_numpy, predictions), strict=True))


def measure(embeds: dict[str, torch.Tensor], K: int) -> dict[str, float]:
    """Metrics of a model with K prompts, from embeddings as `embed` returns them.

    Returns:
        The recalls in percent; `mean_recall_first_M`, the mean recall of the first M segments alone, for every M < K; and
        `prompt_cosine`, the mean cosine between two segments of a text, if K > 1.
    """
    metrics = flat(retrieval_metrics(**embeds))
    images, texts = (embeds[name].unflatten(-1, (K, -1)) for name in ("image_embeds", "text_embeds"))  # (I or T, K, D/K)
    for m in range(1, K):
        of_first = retrieval_metrics(normalized(images[:, :m]), normalized(texts[:, :m]), embeds["caption_image"])
        metrics[f"mean_recall_first_{m}"] = of_first["mean_recall"]
    if K > 1:
        unit = torch.nn.functional.normalize(texts, dim=-1)  # (T, K, D/K)
        cosine = unit @ unit.transpose(1, 2)  # (T, K, K)
        metrics["prompt_cosine"] = float(cosine[:, ~torch.eye(K, dtype=torch.bool)].mean())
    return metrics


def negation_metrics(embeds: dict[str, torch.Tensor], rows: datasets.Dataset) -> dict[str, float]:
    """Text-to-image R@1 in percent, of the captions that name what is absent ("without any cat") and of the others."""
    ranks, _ = retrieval_ranks(**embeds)  # (T,)
    negated = np.array([says_absence(caption) for captions in rows["captions"][:] for caption in captions])  # (T,)
    parts = {"negated_R@1": ranks[negated], "not_negated_R@1": ranks[~negated]}
    return {name: 100.0 * float(np.mean(part <= 1)) for name, part in parts.items() if len(part)}


def exclusion_metrics(trainer, embeds: dict[str, torch.Tensor], rows: datasets.Dataset) -> dict[str, float]:
    """`mpclip eval exclusion` of the last model: of the first five pictures, and as `words_R@1` and others of the first one."""
    metrics = {}
    for top, name in ((5, "pure"), (1, "R@1")):
        found = looking_at(top).measured(trainer.encoder(), rows, embeds["image_embeds"])
        metrics |= {f"{way}_{name}": found.metrics[f"{way}_pure"] for way in WAYS}
    return metrics


def looking_at(top: int) -> Exclusion:
    """The task that looks at the first pictures."""
    return Exclusion(argparse.Namespace(top=top, together=3))


def says_absence(caption: str) -> bool:
    """Whether a caption names what is absent, such as "There is no cat." or "... without any cat in sight."."""
    return re.search(r"\b(no|not|without)\b", caption, re.IGNORECASE) is not None
