"""Runs a task on one model or several: loads the data once, writes a result for each model, and compares with the first.

In a job of several processes (`accelerate launch -m eval ...`) the processes share the embedding. Each then has all embeddings
and measures the same; the main process alone prints and writes.
"""

import argparse
import datetime
import logging
import math
import os
import shlex
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from eval import options as common
from eval.result import Result
from eval.tables import decimals_of, text_table, with_interval
from mpclip.command import next_steps
from mpclip.data.reading import reading_given, reading_of


def evaluate(options: argparse.Namespace, cls: type, command: list[str] | None = None) -> list[Result]:
    """Run a task and write its results.

    Args:
        options: as parsed by `eval.__main__.make_parser`; `model` is a list.
        cls: the class of the task.
        command: words of the command, recorded in the results.

    Returns:
        A result per model, each saved at its place of `result_paths`.

    Raises:
        ValueError, OSError, ImportError: something that the user can fix; the message says what.
    """
    from accelerate import PartialState

    from eval.compare import paired_differences
    from mpclip.data.skipped import count_skipped
    from mpclip.encoding import refuse_unfit

    pictures = not getattr(cls, "texts_only", False)
    names, paths = short_names(options.model), result_paths(options.json, options.model)
    for model in options.model:
        refuse_unfit(model, pictures)  # before anything takes long
    state = PartialState(cpu=options.device == "cpu")
    if state.is_main_process:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
    else:
        warnings.simplefilter("ignore")  # each process would say the same
        logging.disable(logging.WARNING)

    results: list[Result] = []
    data, skipped = None, {}
    for i, (model, path) in enumerate(zip(options.model, paths, strict=True)):
        started = time.monotonic()
        own = options_of_model(options, cls, model, names[i] if len(names) > 1 else "", state.is_main_process)
        task = cls(own)
        encoder, how = open_encoder(own, state, pictures)
        if data is None:
            with count_skipped() as skipped:
                data = task.load(options.data, options.split, options.limit, **reading_of(options))
        result = task.run(encoder, data, batch_size=options.batch_size, shared=True, cache=cache_of(options))
        del encoder, task  # before the next model needs the memory
        result.left_out = dict(skipped)
        result.origin |= origin_of(own, how, command, state.num_processes, time.monotonic() - started)
        if i:
            result.against = paired_differences(cls, result.items, results[0].items).to_json() | {"model": options.model[0]}
        if state.is_main_process:
            result.save(path)
        results.append(result)
    return results


def finish_job() -> bool:
    """End the communication of the processes of a job, if there are several. Returns whether this process is the main one."""
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes > 1:
        state.destroy_process_group()
    return state.is_main_process


def report(results: Sequence[Result], options: argparse.Namespace, cls: type) -> str:
    """What the command prints: the metrics, the differences to the first model, and which files were written.

    Args:
        results: as from `evaluate`.
        options, cls: as for `evaluate`.
    """
    names = short_names(options.model)
    written = [str(path) for path in result_paths(options.json, options.model)]
    for model, name in zip(options.model, names, strict=True):
        own = options_of_model(options, cls, model, name if len(names) > 1 else "", writes=True)
        written += [given for option in getattr(cls, "writes", ()) if (given := getattr(own, option, None))]
    table = results[0].table() if len(results) == 1 else models_table(names, results)
    steps = next_steps(_next(results, options))
    return f"{table}\n\nwritten: {', '.join(written)}" + (f"\n{steps}" if steps else "")


def _next(results: Sequence[Result], options: argparse.Namespace) -> list[tuple[list[str], str]]:
    """What can be done with the results."""
    paths = [str(path) for path in result_paths(options.json, options.model)]
    if len(paths) > 1:
        words = ["mpclip", "eval", "compare", *paths[:2], "--plot", str(Path(paths[0]).with_name("differences.png"))]
        return [(words, "draw the differences")]
    of_a_run = Path(options.model[0], "training.json").is_file()
    if results[0].task in ("retrieval", "differences") and of_a_run:
        return [(["mpclip", "card", options.model[0], "--eval", *paths], "put the result into the model card")]
    return []


def models_table(names: Sequence[str], results: Sequence[Result]) -> str:
    """A row for each model, a column for each metric; below every model but the first its difference to the first.

    Args:
        names: of the models.
        results: of one task on the same data.
    """
    first, metrics = results[0], list(dict.fromkeys(name for result in results for name in result.metrics))
    decimals = {name: decimals_of(result.metrics.get(name, math.nan) for result in results) for name in metrics}
    rows = []
    for name, result in zip(names, results, strict=True):
        values = [(result.metrics.get(m, math.nan), result.intervals.get(m), decimals[m]) for m in metrics]
        rows.append([name, *(with_interval(*value) for value in values)])
        if result.against:
            changes, intervals = result.against["differences"], result.against["intervals"]
            values = [(changes.get(m, math.nan), intervals.get(m), decimals[m], True) for m in metrics]
            rows.append([f"  minus {names[0]}", *(with_interval(*value) for value in values)])
    head = ["", *(m.replace("_", " ") + (" *" if m == first.primary else "") for m in metrics)]
    return f"{first.head()}\n\n{text_table(head, rows)}\n\n* primary metric; in brackets: 95% interval, of a difference paired"


def open_encoder(options: argparse.Namespace, state, pictures: bool) -> tuple:
    """Load the model `options.model`, and refuse one that embeds texts alone where pictures are needed.

    Args:
        options: of one model.
        state: accelerate's `PartialState`. Each process of a job takes its own GPU, and all compute in the same dtype.
        pictures: whether the task needs them.

    Returns:
        The encoder, and what belongs into the result: `dtype`, `gflops`, `machine`.
    """
    from accelerate.utils import broadcast_object_list

    from mpclip.encoding import load_encoder
    from mpclip.export.int8 import int8_config
    from mpclip.hardware import best_device, choose_precision, describe_machine, speeds

    device = options.device
    if state.num_processes > 1 and (device or best_device()) == "cuda":
        device = f"cuda:{state.local_process_index}"
    precision = choose_precision(options.precision, device)  # measured, so processes may differ
    if state.num_processes > 1:
        (precision,) = broadcast_object_list([precision])
    weights = {"quantization_config": int8_config()} if options.quantize == "int8" else {}
    encoder = load_encoder(options.model, precision, device, **weights)
    if pictures:
        encoder.refuse_text_only()
    kind = str(encoder.device)
    return encoder, {"dtype": precision, "gflops": speeds(encoder.device.type)["gflops"], "machine": describe_machine(kind)}


def origin_of(options: argparse.Namespace, how: dict, command: list[str] | None, processes: int, seconds: float) -> dict:
    """How the measurement of one model is repeated: the `origin` of its result."""
    from mpclip.encoding.fingerprint import weights_fingerprint

    given = ("model", "data", "split", "limit", "quantize", "batch_size")
    return (
        {name: getattr(options, name) for name in given}
        | reading_given(options)
        | how
        | ({"processes": processes} if processes > 1 else {})
        | {
            "fingerprint": weights_fingerprint(options.model),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command and shlex.join(command),
            "seconds": round(seconds, 1),
        }
    )


def cache_of(options: argparse.Namespace) -> str | None:
    """The folder of cached embeddings. None with --no_cache, and with --quantize, because such weights are not hashed."""
    if options.no_cache or options.quantize:
        return None
    return options.cache or str(common.embeddings_folder())


def options_of_model(options: argparse.Namespace, cls: type, model: str, name: str, writes: bool) -> argparse.Namespace:
    """The options for one of several models.

    Args:
        options: of the command.
        cls: the task. Its attribute `writes` names the options that hold files to write.
        model: folder or Hub id.
        name: short name of the model, which is put into the names of these files. "" leaves them as they are.
        writes: False in a process that writes nothing; it gets no names of files.
    """
    own = argparse.Namespace(**vars(options) | {"model": model})
    for option in getattr(cls, "writes", ()):
        given = getattr(own, option, None)
        if given and not writes:
            setattr(own, option, None)
        elif given and name:
            setattr(own, option, str(with_name(Path(given), name)))
    return own


# Names ------------------------------------------------------------------------------------------------------------


def short_names(models: Sequence[str]) -> list[str]:
    """Names for tables and files: the last parts of the models' paths, as many as tell them apart.

    Args:
        models: folders or Hub ids.

    Returns:
        For "runs/a/final" and "runs/b/final": "a/final" and "b/final".

    Raises:
        ValueError: a model is given twice.
    """
    parts = [
        [part for part in os.path.normpath(os.path.abspath(m) if m in (".", "..") else m).split(os.sep) if part] for m in models
    ]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len({name.replace("/", "-") for name in names}) == len(names):
            return names
    twice = next(model for i, model in enumerate(models) if parts[i] in parts[:i])
    raise ValueError(f"--model names {twice} twice: give each model once.")


def result_paths(out: str, models: Sequence[str]) -> list[Path]:
    """Where the results of some models are written.

    Args:
        out: OUT.json is the file of one model; of several, each has its name in it: OUT.NAME.json. Anything else is a folder,
            which gets NAME.json for each model.
        models: folders or Hub ids.
    """
    names, path = short_names(models), Path(out)
    if path.suffix != ".json":
        return [path / f"{name.replace('/', '-')}.json" for name in names]
    return [path] if len(names) == 1 else [with_name(path, name) for name in names]


def with_name(path: Path, name: str) -> Path:
    """`found.png` with the name "a/final": `found.a-final.png`."""
    return path.with_name(f"{path.stem}.{name.replace('/', '-')}{path.suffix}")
