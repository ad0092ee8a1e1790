"""Measures what `benchmarks.branches` shows."""

import argparse
import copy
import os
from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch import nn

from benchmarks.captions import captions
from benchmarks.contenders import Contenders, check_same, readout_columns
from benchmarks.timing import Clock
from modeling_mpclip import PromptTree
from modeling_mpclip.text_families import text_tower_class

Texts = tuple[torch.Tensor, torch.Tensor]  # ids and mask, (B, N) each


def forced(bench: Contenders, path: str) -> nn.Module:
    """A tower with the weights of `bench.prompted` that computes by another path.

    Args:
        bench: the LLM.
        path: "branches" or "rows".
    """
    tower = copy.copy(bench.prompted)  # with the same layers
    tower.__class__ = text_tower_class(type(tower.config), "branches")
    tower.family = tower.family._replace(path=path)
    return tower


def ways(bench: Contenders, tree: PromptTree) -> dict[str, Callable[[Texts], torch.Tensor]]:
    """Name -> function of ids and mask (B, N) that gives the last states of the K prompts, (B, K, H)."""

    def by(tower: nn.Module) -> Callable[[Texts], torch.Tensor]:
        return lambda texts: tower(*texts, tree=tree, readouts=readout_columns(texts[0], tree)).last_hidden_state

    return {
        "tree": by(bench.prompted),
        **{path: by(forced(bench, path)) for path in ("branches", "rows")},
        "separate": lambda texts: bench.separate(*texts, tree),
    }


def measure(options: argparse.Namespace) -> dict:
    """Measure as the command line says; returns `rows`, and what they were measured with.

    Raises:
        RuntimeError: two ways give different states, so that their times cannot be compared.
    """
    load = os.getloadavg()[0]
    transformers.logging.set_verbosity_error()  # it would report the new adaptive tokens as missing weights
    bench = Contenders(options.tower, options.device, getattr(torch, options.precision))
    texts, data = captions(options.data, max(256, options.batch_size))
    tree = bench.tree()
    clock = Clock(options.device, 0.0 if options.quick else options.seconds)
    embed = bench.batch(texts[: options.batch_size])
    train = bench.batch(texts[: max(options.batch_size // 4, 1)])
    tree_way, *others = (compute := ways(bench, tree))
    with torch.inference_mode():
        expected = compute[tree_way](train)
        for name in others:
            check_same(compute[name](train), expected)
    rows = []
    for work, run, batch in (("embed", _embed, embed), ("train", _train, train)):
        for name in others:
            calls = [partial(run, bench, compute[way], batch) for way in (name, tree_way)]
            rows.append({"way": name, "work": work, **clock.ratio(*calls)})
            print(f"{name}, {work}: {rows[-1]['ratio']:.2f}", flush=True)
    return {
        "tower": options.tower,
        "precision": options.precision,
        "batch_size": len(embed[0]),
        "train_batch_size": len(train[0]),
        "text_tokens": float(embed[1].sum() / len(embed[1])),
        "prompts": len(tree.readouts),
        "data": data,
        "quick": options.quick,
        "threads": torch.get_num_threads(),
        "load": load,
        "rows": rows,
    }


@torch.inference_mode()
def _embed(bench: Contenders, way: Callable, texts: Texts) -> None:
    way(texts)


def _train(bench: Contenders, way: Callable, texts: Texts) -> None:
    """Gradients of all weights but the embeddings."""
    for model in (bench.prompted, bench.plain):
        model.layers.requires_grad_(True)
    way(texts).square().sum().backward()
    for model in (bench.prompted, bench.plain):
        model.zero_grad()
        model.layers.requires_grad_(False)
