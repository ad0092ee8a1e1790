"""The programs whose checks benchmarks/guards.py times. Each runs in a process of its own, as a user's would.

The last line that a program prints is JSON: check -> seconds spent in it.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def stopwatch(seconds: dict[str, float], check: str, holder: object, function: str) -> Iterator[None]:
    """Adds the time spent in a function to `seconds[check]`.

    Args:
        holder: module or class in which the function is looked up when it is called.
        function: its name; the calls must not be nested.
    """
    original = getattr(holder, function)
    seconds.setdefault(check, 0.0)

    def timed(*args, **kwargs):
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[check] += time.perf_counter() - started

    with mock.patch.object(holder, function, timed):
        yield


def embed(argv: list[str]) -> None:
    """A checkpoint is loaded, and one text embedded.

    Args:
        argv: the folder of the checkpoint.
    """
    from modeling_mpclip import MPCLIPModel, MPCLIPProcessor, checkpoint_guard

    seconds: dict[str, float] = {}
    with stopwatch(seconds, "weights", checkpoint_guard, "not_finite"):
        model, processor = MPCLIPModel.from_pretrained(argv[0]), MPCLIPProcessor.from_pretrained(argv[0])
        model(**processor(text=["two dogs on a beach"]))
    print(json.dumps(seconds))


def start_training(argv: list[str]) -> None:
    """Everything that train_hf.py does before the first step.

    Args:
        argv: options of train_hf.py.
    """
    from modeling_mpclip import pretrained_towers
    from mpclip.training import state_cache, state_store
    from mpclip.training.command_line import parse_options
    from mpclip.training.run import build_trainer

    seconds: dict[str, float] = {}
    with (
        stopwatch(seconds, "weights", pretrained_towers, "not_finite"),
        stopwatch(seconds, "shards", state_store, "hash_files"),
        stopwatch(seconds, "keys", state_cache, "_sha256_tensors"),
        stopwatch(seconds, "keys", state_cache, "identity_of_images"),
    ):
        build_trainer(parse_options(argv))
    print(json.dumps(seconds))


def search(argv: list[str]) -> None:
    """A query.

    Args:
        argv: options of `python -m mpclip.search query`.
    """
    from mpclip.search.__main__ import main
    from mpclip.search.integrity import Integrity

    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as watched:
        for function in ("fingerprint", "damaged", "remember"):
            watched.enter_context(stopwatch(seconds, "files", Integrity, function))
        main(["query", *argv])
    print(json.dumps(seconds))


if __name__ == "__main__":
    {"embed": embed, "start_training": start_training, "search": search}[sys.argv[1]](sys.argv[2:])
