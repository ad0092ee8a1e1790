"""Measures what `benchmarks.speed` shows."""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.captions import captions
from benchmarks.contenders import Contenders
from benchmarks.llm_shapes import REAL
from benchmarks.ratios import WORDINGS, encode, passes, training_step
from benchmarks.speed import RATIOS
from benchmarks.throughput import padding_share, peak_shares, sweep
from benchmarks.timing import Clock


def contenders(options: argparse.Namespace) -> Contenders:
    """The LLM of a command line of `benchmarks.speed`."""
    transformers.logging.set_verbosity_error()  # it would report the new adaptive tokens as missing weights
    return Contenders(options.tower, options.device, getattr(torch, options.precision))


def measure(bench: Contenders, options: argparse.Namespace) -> dict:
    """Measure everything but the sweeps.

    Args:
        bench: the LLM.
        options: of the command line.

    Returns:
        The ratios and `peak_share` by name, what they were measured with, and `detail`, `peak_shares` and `padding` as from
        `ratios` and `throughput`.
    """
    quick = options.quick
    seconds, size = (0.5, 6) if quick else (options.seconds, options.batch_size)
    clock = Clock(options.device, seconds)
    texts, data = captions(options.data, 256 if quick else 2048)
    names = tuple(options.attention or (("sdpa", "eager") if options.device == "cpu" else ("sdpa",)))
    result = {"tower": options.tower, "dtype": options.precision, "batch_size": size, "data": data, "quick": options.quick}

    detail = passes(bench, clock, texts, size, names[:2])
    _show({name: detail[name]["ratio"] for name in RATIOS})
    if options.tower == REAL:
        with tempfile.TemporaryDirectory() as folder:
            wordings = dict(list(WORDINGS.items())[:1]) if quick else WORDINGS
            encoded = encode(bench, clock, texts[: (4 if quick else 8) * size], Path(folder), wordings)
            _show({name: value["ratio"] for name, value in encoded.items()})
            detail |= encoded
            detail["cached_vs_live_step"] = training_step(bench, clock, texts, 2 * size, Path(folder))
            _show({"cached_vs_live_step": detail["cached_vs_live_step"]["ratio"]})
    tried = (detail["implementations"]["masked"],) if quick else names
    shares = peak_shares(bench, clock, texts, 4 * size, tried, options.compile)
    best = max(shares, key=lambda row: row["share"])
    result |= {name: value["ratio"] for name, value in detail.items() if isinstance(value, dict) and "ratio" in value}
    result |= {"peak_share": best["share"], "tokens_per_second": best["tokens_per_second"]}
    result |= {"detail": detail, "peak_shares": shares, "padding": padding_share(bench, texts)}
    return result


def _show(values: dict[str, float]) -> None:
    for name, value in values.items():
        print(f"{name:<30}{value:6.2f}", flush=True)


def sweeps(bench: Contenders, options: argparse.Namespace) -> list[dict]:
    """Rows as from `throughput.sweep`."""
    return sweep(bench, Clock(options.device, 0), max(options.batch_size // 4, 1))
