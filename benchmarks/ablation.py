"""Train systems over several seeds, compare them seed by seed, and write what was found.

    python -m benchmarks.ablation configs/systems/*.yaml --setting configs/flickr8k_smollm2.yaml --dataset data/flickr8k \\
        --splits "validation[:50%]" "validation[50%:]" --json docs/results/flickr8k_systems.json
    python -m benchmarks.ablation configs/systems/mean_pooling.yaml configs/systems/multi_prompt.yaml --seeds 5 ...

A setting is a recipe of train_hf.py: towers, data, schedule. A system is a recipe of what it does otherwise, so systems
differ in that alone, and share the cached states of the frozen towers. Any further option of train_hf.py holds for
all cells. Nothing is selected by a test split: every run ends with its schedule, and is measured on each of `--splits`.

A cell is a system and a seed. It is written to the JSON when it is done; the command goes on after the last one when it is
started again, also with more systems or seeds. A cell that was trained with other options is never taken for one of these:
that is refused, with what differs.

The JSON holds `rows` (a cell on a split, with its metrics), `summary` (mean and standard deviation over seeds),
`comparisons` (paired difference to each baseline, and to those of the paper; mean and, of three seeds or more, 95%
interval of Student's t), `options` of each system, `overrides` (the options in which it differs from the setting), and how to
repeat it: `commands`, of which `command` is the last. With several splits, "all" is the mean over them. A plot of the same
name goes beside it.
"""

import argparse
import functools
import gc
import importlib
import json
import logging
import multiprocessing
import os
import re
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import datasets
import filelock
import numpy as np
import torch
import transformers

from benchmarks.record import provenance
from benchmarks.results_tables import ALL, METRIC_NAMES, PAPER_DIFFERENCES, comparison, systems_table, words
from eval.intervals import t_interval
from eval.metrics import flat, retrieval_metrics, retrieval_ranks
from modeling_mpclip.segments import normalized
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.files import write_json
from mpclip.training.arguments import RunOptions
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.command_line import parse_options
from mpclip.training.options import DataArguments
from mpclip.training.resume import changed_options, shaping_options
from mpclip.training.run import build_trainer, cached_states

# What is one cell's own, or changes nothing in what is learned.
NOT_COMPARED = ("seed", "eval_split", "bad_images")
SOME_HAVE = ("negated_R@1",)  # metrics of some data only


@dataclass(frozen=True)
class Task:
    """What cells are trained for.

    Attributes:
        module: whose `train_cell` turns a command line of train_hf.py and splits into split -> metrics.
        description: of its command.
        metrics: those that are compared; the first one decides.
    """

    module: str
    description: str
    metrics: tuple[str, ...]


# One cell ---------------------------------------------------------------------------------------------------------


def recipe(settings: list[str], system: str, overrides: list[str], seed: int) -> list[str]:
    """The command line of train_hf.py for a cell, but for --output_dir."""
    last = {"seed": seed, "eval_split": "none", "save_strategy": "no", "logging_strategy": "no"}
    last |= {"eval_strategy": "no", "load_best_model_at_end": "false", "disable_tqdm": "true"}
    return [*settings, system, *overrides, *(part for name, value in last.items() for part in (f"--{name}", str(value)))]


@functools.lru_cache
def _rows(dataset: str, split: str, **options) -> datasets.Dataset:
    return load_image_text(dataset, split, **options)


def open_once(options: DataArguments, split: str) -> datasets.Dataset:
    """As `mpclip.training.run.open_rows`; looks at every image once for all cells."""
    columns = {name: getattr(options, name) for name in ("image_column", "caption_column", "bad_images")}
    return _rows(options.dataset, split, **columns)


def train_cell(argv: list[str], splits: list[str]) -> dict[str, dict]:
    """Split -> metrics of one trained cell, with its seconds."""
    options = parse_options(argv)
    started = time.monotonic()
    trainer = build_trainer(options, open_split=open_once)
    trainer.train()
    seconds = time.monotonic() - started
    results = {}
    for split in splits:
        embeds = embed(trainer, options, split)
        results[split] = measure(embeds, trainer.accelerator.unwrap_model(trainer.model).config.num_prompts)
        if "scene" in (rows := open_once(options.data, split)).column_names:
            results[split] |= negation_metrics(embeds, rows)
        results[split] |= {"train_seconds": round(seconds, 1)}
    return results


def embed(trainer, options: RunOptions, split: str) -> dict[str, torch.Tensor]:
    """image_embeds (I, D), text_embeds (T, D), caption_image (T,) of a split."""
    rows, processor = open_once(options.data, split), trainer.processing_class
    base = getattr(trainer.model, "base_model", trainer.model)
    base = getattr(base, "model", base)  # of a PeftModel
    states = cached_states(base, processor, rows, options=options)
    trainer.eval_collator = MPCLIPCollator(processor, *states)
    predictions = trainer.predict(ImageTextDataset(rows, "all", with_images=states[1] is None)).predictions
    names = ("image_embeds", "text_embeds", "caption_image")
    return dict(zip(names, map(torch.from_numpy, predictions), strict=True))


def measure(embeds: dict[str, torch.Tensor], K: int) -> dict[str, float]:
    """Recalls in percent, those of the first m of K prompts alone, and how alike the prompts of a text are."""
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
    """R@1 of the captions that say what is not there ("without any cat"), and of the others, in percent."""
    ranks, _ = retrieval_ranks(**embeds)
    negated = np.array([says_absence(caption) for captions in rows["captions"][:] for caption in captions])
    parts = {"negated_R@1": ranks[negated], "not_negated_R@1": ranks[~negated]}
    return {name: 100.0 * float(np.mean(part <= 1)) for name, part in parts.items() if len(part)}


def says_absence(caption: str) -> bool:
    """Whether a caption says what is not in the picture: "There is no cat.", "... without any cat in sight."."""
    return re.search(r"\b(no|not|without)\b", caption, re.IGNORECASE) is not None


# What is compared -------------------------------------------------------------------------------------------------


def options_of(argv: list[str]) -> dict:
    """What shapes a cell's weights, without what is the cell's own."""
    return {name: value for name, value in shaping_options(parse_options(argv)).items() if name not in NOT_COMPARED}


def overrides_of(base: dict, options: dict) -> dict:
    """Option -> value where `options` differ from `base`, both as `options_of` gives them."""
    return {name: value for name, (_, value) in changed_options(base, options).items()}


def refuse_other_options(known: dict, system: str, options: dict, file: str) -> None:
    changed = changed_options(known.get(system, options), options)
    if changed:
        raise SystemExit(
            f"{file} has cells of {system!r} with other options: {', '.join(changed)}. "
            "Give another --json, or take those rows out of it."
        )


def with_all_splits(rows: list[dict]) -> list[dict]:
    """And rows of the split "all", where there are several: the mean over them of a cell that was measured on each."""
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        cells.setdefault((row["system"], row["seed"]), []).append(row["metrics"])
    splits = len({row["split"] for row in rows})
    return rows + [
        {
            "system": system,
            "split": ALL,
            "seed": seed,
            "metrics": {name: statistics.mean(of[name] for of in measured) for name in measured[0]},
        }
        for (system, seed), measured in cells.items()
        if len(measured) == splits > 1
    ]


def summarise(rows: list[dict]) -> list[dict]:
    """Mean and standard deviation over seeds, per system and split."""
    summary = []
    for system, split in dict.fromkeys((row["system"], row["split"]) for row in rows):
        cells = [row["metrics"] for row in rows if (row["system"], row["split"]) == (system, split)]
        values = {name: [cell[name] for cell in cells] for name in cells[0]}
        summary.append(
            {
                "system": system,
                "split": split,
                "seeds": len(cells),
                "mean": {name: statistics.mean(of) for name, of in values.items()},
                "std": {name: statistics.stdev(of) if len(of) > 1 else None for name, of in values.items()},
            }
        )
    return summary


def compare(rows: list[dict], baselines: list[str], metrics: tuple[str, ...]) -> list[dict]:
    """Paired differences to each baseline on each split, over the seeds that both have; and those the paper reports."""
    asked = {(system, baseline) for system in {row["system"] for row in rows} for baseline in baselines}
    asked |= PAPER_DIFFERENCES.keys()
    of = {(row["system"], row["split"], row["seed"]): row["metrics"] for row in rows}
    pairs = dict.fromkeys((row["system"], row["split"]) for row in rows)
    comparisons = []
    for baseline in dict.fromkeys([*baselines, *(baseline for _, baseline in PAPER_DIFFERENCES)]):
        for system, split in pairs:
            seeds = [s for (name, part, s) in of if (name, part) == (system, split) and (baseline, split, s) in of]
            if system == baseline or (system, baseline) not in asked or not seeds:
                continue
            for metric in metrics:
                if metric not in of[system, split, seeds[0]]:
                    continue
                change = [of[system, split, seed][metric] - of[baseline, split, seed][metric] for seed in seeds]
                comparisons.append(
                    {
                        "system": system,
                        "baseline": baseline,
                        "split": split,
                        "metric": metric,
                        "mean_difference": statistics.mean(change),
                        "interval": t_interval(change),
                        "seeds": len(seeds),
                    }
                )
    return comparisons


def plot(result: dict, split: str, path: Path) -> None:
    """What decides, best system first: a dot for every seed and a bar for the mean; and the difference to two baselines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = result["metrics"][0]
    summary = [row for row in result["summary"] if row["split"] == split]
    order = [row["system"] for row in sorted(summary, key=lambda row: -row["mean"][metric])]
    baselines = [baseline for baseline in result["baselines"] if baseline in order][:2]
    figure, panels = plt.subplots(
        1,
        1 + len(baselines),
        figsize=(2 + 3.4 * (1 + len(baselines)), 1.2 + 0.32 * len(order)),
        sharey=True,
        constrained_layout=True,
        squeeze=False,
    )
    values = {
        system: [row["metrics"][metric] for row in result["rows"] if (row["system"], row["split"]) == (system, split)]
        for system in order
    }
    first, *others = panels[0]
    for y, system in enumerate(order):
        of = values[system]
        first.plot(of, [y] * len(of), "o", color="#2a6f97", alpha=0.5, markersize=5, label="" if y else "one seed")
        if len(of) > 1:
            first.plot([statistics.mean(of)] * 2, [y - 0.3, y + 0.3], color="#c44e52", linewidth=2)
    several = max(map(len, values.values())) > 1
    if several:
        first.plot([], [], color="#c44e52", linewidth=2, label="mean")
        first.legend(frameon=False, fontsize="small")
    first.set(title=METRIC_NAMES[metric], xlabel="percent")
    for panel, baseline in zip(others, baselines, strict=True):
        panel.axvline(0, color="0.4", linewidth=1)
        for y, system in enumerate(order):
            if (found := comparison(result, system, baseline, split, metric)) is not None:
                panel.plot(found["mean_difference"], y, "o", color="#2a6f97", markersize=5)
                panel.plot(found["interval"] or [], [y, y] if found["interval"] else [], color="#2a6f97", linewidth=2)
        panel.set(title=f"against {words(baseline)}", xlabel="points, paired by seed" + ", with 95% interval" * several)
    for panel in panels[0]:
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    first.set_yticks(range(len(order)), map(words, order))
    first.invert_yaxis()
    figure.savefig(path, dpi=130)
    plt.close(figure)


# All cells, one or several at a time --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A system and a seed; `argv` is the command line of train_hf.py that trains it, but for --output_dir."""

    system: str
    seed: int
    argv: tuple[str, ...]


def run_cell(module: str, cell: Cell, splits: list[str]) -> dict[str, dict]:
    """Split -> metrics of one cell, trained in a folder that is gone afterwards."""
    transformers.logging.set_verbosity_error()
    try:
        with tempfile.TemporaryDirectory() as out:
            return importlib.import_module(module).train_cell([*cell.argv, "--output_dir", out], splits)
    finally:
        gc.collect()  # a Trainer and its model refer to one another


def run_cells(module: str, cells: list[Cell], splits: list[str], jobs: int) -> Iterator[tuple[Cell, dict[str, dict]]]:
    """Each cell with its metrics as it gets done; `jobs` of them at a time, in processes that share the cores."""
    if jobs == 1:
        for cell in cells:
            yield cell, run_cell(module, cell, splits)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,))
    try:
        futures = {pool.submit(run_cell, module, cell, splits): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error those that run are waited for, the others not begun


RETRIEVAL = Task("benchmarks.ablation", __doc__, ("mean_recall", "t2i_R@1", "i2t_R@1"))


def main(argv: list[str] | None = None, task: Task = RETRIEVAL) -> dict:
    parser = argparse.ArgumentParser(
        prog=f"python -m {task.module}",
        description=task.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("systems", nargs="+", metavar="CONFIG", help="recipes of what each system does otherwise")
    parser.add_argument(
        "--setting", nargs="+", required=True, help="recipe that all share: towers, data, schedule; several are laid over"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per system, seeds 0, 1, ... (%(default)s)")
    parser.add_argument("--splits", nargs="+", help="to measure on; the last one is reported (default: the setting's)")
    parser.add_argument(
        "--baselines", nargs="+", default=["mean_pooling", "single_prompt"], help="to compare with (%(default)s)"
    )
    parser.add_argument("--json", required=True, metavar="OUT.json", help="result, and where to go on from")
    parser.add_argument(
        "--jobs", type=int, default=1, help="cells at a time; of small models two on two cores are faster (%(default)s)"
    )
    parser.add_argument("--about", help="a sentence for the pages of docs/results (default: the one already in the JSON)")
    options, overrides = parser.parse_known_args(argv)
    if options.jobs < 1 or options.seeds < 1:
        parser.error(f"--jobs {options.jobs} and --seeds {options.seeds}: both must be at least 1.")
    logging.basicConfig(format="%(message)s")
    transformers.logging.set_verbosity_error()

    file = Path(options.json)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(file.with_suffix(".lock"), timeout=0):
            return _go_on(task, options, overrides, file)
    except filelock.Timeout:
        raise SystemExit(f"Another command is measuring into {file}. Wait for it, or give another --json.") from None


def _go_on(task: Task, options: argparse.Namespace, overrides: list[str], file: Path) -> dict:
    """Train and measure the cells that `file` does not have yet."""
    result = json.loads(file.read_text()) if file.exists() else {}
    known, rows = result.get("options", {}), result.get("rows", [])
    systems = {Path(system).stem: system for system in options.systems}
    if len(systems) < len(set(options.systems)):
        raise SystemExit(
            f"Two of {', '.join(options.systems)} have the same file name, by which systems are told apart; rename one."
        )
    splits = options.splits or [parse_options([*options.setting, *overrides]).data.eval_split]
    for name, system in systems.items():
        told = options_of([*recipe(options.setting, system, overrides, 0), "--output_dir", "runs/ablation"])
        refuse_other_options(known, name, told, options.json)
        known[name] = told
    data = known[next(iter(systems))]["dataset"]
    base = options_of([*options.setting, "--dataset", data, "--output_dir", "runs/ablation"])
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

    def save(made: dict) -> dict:
        """The file and the plot of `rows`, which were measured as `made` says."""
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
            "overrides": {name: overrides_of(base, of) for name, of in measured.items()},
            "commands": list(dict.fromkeys([*result.get("commands", []), made["command"]])),
            **made,
        }
        write_json(file, saved)
        plot(saved, splits[-1], file.with_suffix(".png"))
        return saved

    for cell, metrics in run_cells(task.module, cells, splits, options.jobs):
        rows += [
            {"system": cell.system, "data": data, "split": split, "seed": cell.seed, "metrics": metrics[split]}
            for split in splits
            if (cell.system, cell.seed, split) not in done
        ]
        result = save(provenance(task.module, command))
        reached, decides = metrics[splits[-1]], task.metrics[0]
        told = f"{METRIC_NAMES[decides]} {reached[decides]:.1f}, {reached['train_seconds']:.0f} s"
        print(f"{cell.system}, seed {cell.seed}: {told}", flush=True)
    if not cells:  # all is measured: what is said and compared may have changed
        result = save({name: result[name] for name in ("command", "date", "machine")})
    print(f"\n{shlex.quote(splits[-1])}\n{systems_table(result, splits[-1])}")
    return result


if __name__ == "__main__":
    main()
