"""The command of `.ablation` and `.sts`: train systems with several seeds, one cell after the other or several at once.

A cell is one system trained with one seed. A task says how a cell is trained and measured. The JSON file is written after each
cell, so that an interrupted command continues where it stopped.
"""

import argparse
import gc
import importlib
import logging
import multiprocessing
import os
import shlex
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import filelock

from benchmarks.record import as_arguments, command_parser, provenance
from benchmarks.results_tables import METRIC_NAMES, SOME_HAVE, systems_table
from benchmarks.seeds import compare, plot, summarise, with_all_splits
from mpclip.files import read_json, write_json

# Options in which the cells of one system may differ: the seed, and those that do not change the weights.
NOT_COMPARED = ("seed", "eval_split", "bad_images")


@dataclass(frozen=True)
class Task:
    """What cells are trained and measured for.

    Attributes:
        module: name of the command, `python -m MODULE`.
        cells: name of the module whose `train_cell(argv, splits)` trains a cell by a command line of train_hf.py and returns
            split -> metrics. It imports torch, and the command does not before it is needed.
        description: what the command's help says.
        metrics: names of the metrics to compare; the first one decides.
    """

    module: str
    cells: str
    description: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A system and a seed.

    Attributes:
        system: name of the system.
        seed: the seed.
        argv: the command line of train_hf.py that trains it, without --output_dir.
    """

    system: str
    seed: int
    argv: tuple[str, ...]


# Options of cells ---------------------------------------------------------------------------------------------------


def recipe(settings: list[str], system: str, overrides: list[str], seed: int) -> list[str]:
    """The command line of train_hf.py for a cell, without --output_dir.

    Args:
        settings, system: files of recipes; a later one overrides an earlier one.
        overrides: further words of the command line, which override the recipes.
        seed: the cell's seed.
    """
    last = {"seed": seed, "eval_split": "none", "save_strategy": "no", "logging_strategy": "no"}
    last |= {"eval_strategy": "no", "load_best_model_at_end": "false", "disable_tqdm": "true"}
    return [*settings, system, *overrides, *as_arguments(last)]


def options_of(argv: list[str]) -> dict:
    """The options of a command line of train_hf.py that shape the weights of a system's cells, but for the seed."""
    from mpclip.training.command_line import parse_options
    from mpclip.training.resume import shaping_options

    return {name: value for name, value in shaping_options(parse_options(argv)).items() if name not in NOT_COMPARED}


def overrides_of(base: dict, options: dict) -> dict:
    """Option -> value where `options` differ from `base`; both as from `options_of`."""
    from mpclip.training.resume import changed_options

    return {name: value for name, (_, value) in changed_options(base, options).items()}


def refuse_other_options(known: dict, system: str, options: dict, file: str) -> None:
    """Stop if the file has cells of this system that were trained with other options.

    Args:
        known: system -> options of the cells in the file.
        system, options: the system to train, and its options.
        file: name of the file, for the message.

    Raises:
        SystemExit: some options differ; the message names them.
    """
    from mpclip.training.resume import changed_options

    changed = changed_options(known.get(system, options), options)
    if changed:
        raise SystemExit(
            f"{file} has cells of {system!r} with other options: {', '.join(changed)}. "
            "Give another --json, or remove the rows of this system from the file."
        )


# Training cells -----------------------------------------------------------------------------------------------------


def run_cell(module: str, cell: Cell, splits: list[str]) -> dict[str, dict]:
    """Train and measure one cell in a temporary folder; returns split -> metrics. `module` is that of `Task.cells`."""
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        with tempfile.TemporaryDirectory() as out:
            return importlib.import_module(module).train_cell([*cell.argv, "--output_dir", out], splits)
    finally:
        gc.collect()  # a Trainer and its model refer to each other


def run_cells(module: str, cells: list[Cell], splits: list[str], jobs: int) -> Iterator[tuple[Cell, dict[str, dict]]]:
    """Yield each cell with its metrics as soon as it is finished.

    Args:
        module: see `Task.cells`.
        cells: the cells to train.
        splits: the splits to measure on.
        jobs: cells to train at the same time, in processes that share the cores.
    """
    if jobs == 1:
        for cell in cells:
            yield cell, run_cell(module, cell, splits)
        return
    import torch

    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,))
    try:
        futures = {pool.submit(run_cell, module, cell, splits): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, running cells finish and waiting ones are not started


# The command --------------------------------------------------------------------------------------------------------


def compare_systems(argv: list[str] | None, task: Task) -> dict:
    """The command of a task.

    Args:
        argv: words of the command line; None takes those of the process.
        task: what cells are trained and measured for.

    Returns:
        The content of the JSON file.

    Raises:
        SystemExit: wrong options, two systems of the same name, a file that another command is writing, or one that has cells
            with other options.
    """
    parser = command_parser(task.module, task.description)
    parser.add_argument("systems", nargs="+", metavar="CONFIG", help="recipes of the systems")
    parser.add_argument(
        "--setting", nargs="+", required=True, help="recipe that all systems share; of several, a later one overrides"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per system, with seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument(
        "--splits", nargs="+", help="splits to measure on; the last one is reported (default: the setting's eval_split)"
    )
    parser.add_argument(
        "--baselines",
        nargs="+",
        default=["mean_pooling", "single_prompt"],
        help="systems to compare the others with (default: %(default)s)",
    )
    parser.add_argument(
        "--json", required=True, metavar="OUT.json", help="where to write the result; its finished cells are kept"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="cells to train at the same time; two small models on two cores gain from it (default: %(default)s)",
    )
    parser.add_argument("--about", help="a sentence for the pages of docs/results (default: the one in the JSON file)")
    options, overrides = parser.parse_known_args(argv)
    if options.jobs < 1 or options.seeds < 1:
        parser.error(f"--jobs {options.jobs} and --seeds {options.seeds}: both must be at least 1.")
    logging.basicConfig(format="%(message)s")

    file = Path(options.json)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(file.with_suffix(".lock"), timeout=0):
            return _go_on(task, options, overrides, file)
    except filelock.Timeout:
        raise SystemExit(f"Another command is measuring into {file}. Wait for it, or give another --json.") from None


def _go_on(task: Task, options: argparse.Namespace, overrides: list[str], file: Path) -> dict:
    """Train and measure the cells that `file` lacks; write it after each of them."""
    import transformers

    from mpclip.training.command_line import parse_options

    transformers.logging.set_verbosity_error()
    result = read_json(file)
    known, rows = result.get("options", {}), result.get("rows", [])
    systems = {Path(system).stem: system for system in options.systems}
    if len(systems) < len(set(options.systems)):
        raise SystemExit(
            f"Two of {', '.join(options.systems)} have the same file name, which is the name of a system. Rename one."
        )
    splits = options.splits or [parse_options([*options.setting, *overrides]).data.eval_split]
    unused = ["--output_dir", "runs/ablation"]  # required by the parser
    for name, system in systems.items():
        shaping = options_of([*recipe(options.setting, system, overrides, 0), *unused])
        refuse_other_options(known, name, shaping, options.json)
        known[name] = shaping
    data = known[next(iter(systems))]["dataset"]
    base = options_of([*options.setting, "--dataset", data, *unused])
    device = str(parse_options([*recipe(options.setting, systems[name], overrides, 0), *unused]).training.device)
    command = [*systems.values(), "--setting", *options.setting, "--json", options.json]
    command += ["--seeds", str(options.seeds), "--splits", *splits]
    command += ["--baselines", *options.baselines, *overrides]

    done = {(row["system"], row["seed"], row["split"]) for row in rows}
    cells = [
        Cell(name, seed, tuple(recipe(options.setting, system, overrides, seed)))
        for seed in range(options.seeds)
        for name, system in systems.items()
        if not done >= {(name, seed, split) for split in splits}
    ]
    order = list(known)

    def save(measured_by: dict) -> dict:
        """Write the file and the plot.

        Args:
            measured_by: the `provenance` of the rows.
        """
        rows.sort(key=lambda row: (order.index(row["system"]), row["seed"]))
        measured = {name: known[name] for name in order if any(row["system"] == name for row in rows)}
        saved = {
            "about": options.about or result.get("about", ""),
            "setting": " ".join(options.setting),
            "reported": splits[-1],
            "metrics": list(task.metrics),
            "baselines": options.baselines,
            "rows": rows,
            "summary": summarise(with_all_splits(rows)),
            "comparisons": compare(with_all_splits(rows), options.baselines, (*task.metrics, *SOME_HAVE)),
            "options": measured,
            "overrides": {name: overrides_of(base, shaping) for name, shaping in measured.items()},
            "commands": list(dict.fromkeys([*result.get("commands", []), measured_by["command"]])),
            **measured_by,
        }
        write_json(file, saved)
        plot(saved, splits[-1], file.with_suffix(".png"))
        return saved

    for cell, metrics in run_cells(task.cells, cells, splits, options.jobs):
        rows += [
            {"system": cell.system, "data": data, "split": split, "seed": cell.seed, "metrics": metrics[split]}
            for split in splits
            if (cell.system, cell.seed, split) not in done
        ]
        result = save(provenance(task.module, command, device))
        reported, decides = metrics[splits[-1]], task.metrics[0]
        shown = f"{METRIC_NAMES[decides]} {reported[decides]:.1f}, {reported['train_seconds']:.0f} s"
        print(f"{cell.system}, seed {cell.seed}: {shown}", flush=True)
    if not cells:  # nothing to measure, but `--about` and the baselines may have changed
        result = save({name: result[name] for name in ("command", "date", "machine")})
    print(f"\n{shlex.quote(splits[-1])}\n{systems_table(result, splits[-1])}")
    return result
