"""Measures what `benchmarks.guards` shows."""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import datasets
import numpy as np
import PIL.Image
import torch

import mpclip.search.build
from benchmarks.guards import GOAL
from benchmarks.timing import Clock
from modeling_mpclip import MPCLIPModel, MPCLIPProcessor, checkpoint_guard
from mpclip.data.backbones import resolve_backbone
from mpclip.search.chunks import write_chunk
from mpclip.search.embed import CHUNK
from mpclip.training import state_cache
from mpclip.training.command_line import parse_options
from mpclip.training.run import build_trainer

TOWERS = ("smollm2-135m", "efficientnet-lite0")
K, WIDTH = 6, 192  # prompts, channels of an embedding; narrow, so that a million of them take little space
CAPTIONS = 5  # of each picture
TOKENS = {"text states": 25, "image states": 49}  # of a row, about those of configs/flickr8k_smollm2.yaml


# Loading ----------------------------------------------------------------------------------------------------------


def make_model(folder: Path) -> None:
    """Writes a checkpoint."""
    towers = [resolve_backbone(name) for name in TOWERS]
    model = MPCLIPModel.from_pretrained_towers(*towers, num_prompts=K, projection_dim=WIDTH)
    processor = MPCLIPProcessor.from_pretrained_towers(*towers, [*model.config.templates, *model.config.negated_templates])
    for part in (model, processor):
        part.save_pretrained(folder)


def loading(folder: Path, seconds: float, repeats: int) -> list[dict]:
    """Rows `load` and `load and embed`."""

    def load(check: Callable | None = None) -> None:
        with mock.patch.object(checkpoint_guard, "not_finite", check or checkpoint_guard.not_finite):
            MPCLIPModel.from_pretrained(folder)

    timed = Clock("cpu", seconds).ratio(load, partial(load, lambda model: []))
    checked, unchecked = timed["slow_ms"] / 1e3, timed["fast_ms"] / 1e3
    whole, checks = _timed("embed", [str(folder)], repeats)
    return [
        _row("load", "weights are finite", checked, checked - unchecked, timed["rounds"]),
        _row("load and embed", "weights are finite", whole, checks["weights"], repeats),
    ]


# Training ---------------------------------------------------------------------------------------------------------


def training(folder: Path, examples: int, repeats: int) -> list[dict]:
    """Rows `train`: a start that finds the states of all its pictures, `examples` for training and a tenth for evaluation."""
    for split, count in {"train": examples, "validation": max(examples // 10, 1)}.items():
        pictures = [{"bytes": _jpeg(size=32, comment=f"{split} {i}")} for i in range(count)]  # equal ones would be one row
        captions = [[f"picture {i} of {split}, side {j}" for j in range(CAPTIONS)] for i in range(count)]
        rows = datasets.Dataset.from_dict({"image": pictures, "captions": captions})
        rows.cast_column("image", datasets.Image()).to_parquet(folder / "data" / f"{split}.parquet")
    text, vision = TOWERS
    options = {
        "text_model": text,
        "vision_model": vision,
        "dataset": folder / "data",
        "eval_split": "validation",
        "output_dir": folder / "run",
        "cache_dir": folder / "cache",
        "cache_states": "true",
        "num_prompts": K,
        "projection_dim": WIDTH,
        "per_device_train_batch_size": min(128, examples),
        "use_cpu": "true",
    }
    argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    open_store = state_cache.open_store

    def filled(folder, key: dict, width: int, compute, title: str, *rest):
        """The store with zeros for states, which take no time to compute."""
        return open_store(folder, key, width, lambda rows: (torch.zeros(TOKENS[title], width) for _ in rows), title, *rest)

    with mock.patch.object(state_cache, "open_store", filled):
        build_trainer(parse_options(argv))
    gigabytes = sum(file.stat().st_size for file in (folder / "cache").rglob("*.arrow")) / 1e9
    whole, checks = _timed("start_training", argv, repeats)
    return [
        _row("train", "weights are finite", whole, checks["weights"], repeats),
        _row("train", f"hashes of states, {gigabytes:.2f} GB", whole, checks["shards"], repeats),
        _row("train", "hashes of weights and pictures", whole, checks["keys"], repeats),
    ]


# Searching --------------------------------------------------------------------------------------------------------


def searching(folder: Path, model: Path, pictures: int, repeats: int) -> list[dict]:
    """Rows `search` and `search, --verify`, on a flat index of that many pictures."""
    generator, grey = np.random.default_rng(0), _jpeg(size=64)
    keys = {f"{i:07}.jpg": f"{i:064}" for i in range(pictures)}

    def embedded(pictures, todo: list[str], known: set[str], writer, max_megapixels: float) -> tuple[dict, dict]:
        """Random vectors for all pictures, in place of their embeddings."""
        for number, start in enumerate(range(0, len(todo), CHUNK)):
            part = [keys[name] for name in todo[start : start + CHUNK]]
            vectors = generator.standard_normal((len(part), WIDTH), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            columns = {"key": part, "stamp": part, "thumbnail": [grey] * len(part)}
            writer.integrity.accept([write_chunk(writer.folder, number, columns, vectors)])
        return keys, {}

    named = SimpleNamespace(stamps=keys, refused={}, caption=str)
    with (
        mock.patch.object(mpclip.search.build, "embed_pictures", embedded),
        mock.patch.object(mpclip.search.build, "open_pictures", return_value=named),
    ):
        mpclip.search.build.build_index(str(model), "pictures", folder, device="cpu")
    gigabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9
    argv, rows = ["--index", str(folder), "--device", "cpu", "a street"], []
    _timed("search", argv, 1)  # notes the dates of the model, which was made after this process started
    for name, more, check in (("search", [], "dates of files"), ("search, --verify", ["--verify"], "hashes of files")):
        whole, checks = _timed("search", [*argv, *more], repeats)
        rows.append(_row(name, f"{check}, {gigabytes:.2f} GB and weights", whole, checks["files"], repeats))
    return rows


def _timed(program: str, argv: list[str], repeats: int) -> tuple[float, dict[str, float]]:
    """Median seconds of a program of guard_programs.py, and of each of its checks."""
    wholes, checks = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.guard_programs", program, *argv]
        run = subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True)
        wholes.append(time.perf_counter() - started)
        checks.append(json.loads(run.stdout.splitlines()[-1]))
    return statistics.median(wholes), {name: statistics.median(run[name] for run in checks) for name in checks[0]}


def _jpeg(size: int, comment: str = "") -> bytes:
    PIL.Image.new("RGB", (size, size), "grey").save(written := io.BytesIO(), "JPEG", comment=comment)
    return written.getvalue()


# Results ----------------------------------------------------------------------------------------------------------


def _row(program: str, check: str, whole: float, seconds: float, repeats: int) -> dict:
    return {
        "program": program,
        "check": check,
        "whole_s": whole,
        "check_s": seconds,
        "share_percent": 100 * seconds / whole,
        "repeats": repeats,
    }


def measure(options: argparse.Namespace) -> dict:
    """The rows of all measurements. What they write, some gigabytes, is deleted again."""

    with tempfile.TemporaryDirectory() as checkpoint:
        make_model(Path(checkpoint))
        rows = loading(Path(checkpoint), options.seconds, options.repeats)
        with tempfile.TemporaryDirectory() as folder:
            rows += training(Path(folder), options.examples, options.repeats)
        with tempfile.TemporaryDirectory() as folder:
            rows += searching(Path(folder), Path(checkpoint), options.pictures, options.repeats)
    return {"pictures": options.pictures, "examples": options.examples, "goal_percent": GOAL, "rows": rows}
