"""The precision of cached states: how much recall a smaller format costs, and how much space it saves.

    python -m benchmarks.cache_formats --data path/to/flickr8k --json docs/cost/cache_formats.json

For each format, the states of both frozen towers are computed and stored. Then a recipe is trained and evaluated on them, with
several seeds. Runs of the same seed see the same batches in every format, so their differences are paired. Each run is written
to the JSON file when it is finished, and an interrupted command continues with the next one.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.record import as_arguments, command_parser, provenance
from eval.intervals import t_interval
from eval.tables import markdown_table
from modeling_mpclip.model_options import choices
from mpclip.command import start
from mpclip.files import read_json, write_json
from mpclip.training.options import DataArguments

FORMATS = choices(DataArguments, "cache_format")


def train_cell(options: argparse.Namespace, format: str, seed: int) -> dict:
    """Train and evaluate one format with one seed.

    Args:
        options: of the command line.
        format: one of `FORMATS`.
        seed: of the training.

    Returns:
        `format`, `seed`, `text_bytes` and `image_bytes` of the cached states, and `metrics` with the recalls in percent.
    """
    from mpclip.training.command_line import parse_options
    from mpclip.training.run import build_trainer

    with tempfile.TemporaryDirectory() as out:
        values = {
            "dataset": options.data,
            "train_split": options.train_split,
            "eval_split": options.eval_split,
            "cache_format": format,
            "cache_dir": options.cache_dir,
            "seed": seed,
            "num_train_epochs": options.num_train_epochs,
            "output_dir": out,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": "false",
            "logging_strategy": "no",
            "disable_tqdm": "true",
        }
        trainer = build_trainer(parse_options([options.recipe, *as_arguments(values)]))
        trainer.train()
        stores = [trainer.data_collator.text_states.store, trainer.data_collator.image_states.store]
        return {
            "format": format,
            "seed": seed,
            "text_bytes": stores[0].nbytes,
            "image_bytes": stores[1].nbytes,
            "metrics": trainer.evaluate(),
        }


def summary(cells: list[dict]) -> list[dict]:
    """Compare each format with float32, over the seeds of float32. A format that lacks one of them is left out.

    Args:
        cells: as from `train_cell`.

    Returns:
        For each format: `bytes`; `size`, its bytes divided by float32's; `mean_recall`; `difference`, the mean of the paired
        differences to float32; `margin_95`, half of its 95% interval (Student's t); `seeds`, how many.
    """
    of = {(cell["format"], cell["seed"]): cell for cell in cells}
    seeds = sorted({seed for form, seed in of if form == "float32"})
    rows = []
    for form in [form for form in FORMATS if all((form, seed) in of for seed in seeds)]:
        recall = [of[form, seed]["metrics"]["eval_mean_recall"] for seed in seeds]
        change = [a - of["float32", seed]["metrics"]["eval_mean_recall"] for a, seed in zip(recall, seeds, strict=True)]
        interval = t_interval(change)
        rows.append(
            {
                "format": form,
                "bytes": size(of[form, seeds[0]]),
                "size": size(of[form, seeds[0]]) / size(of["float32", seeds[0]]),
                "mean_recall": statistics.mean(recall),
                "difference": statistics.mean(change),
                "margin_95": interval and (interval[1] - interval[0]) / 2,
                "seeds": len(seeds),
            }
        )
    return rows


def size(cell: dict) -> int:
    """Bytes of the cached states of a cell."""
    return cell["text_bytes"] + cell["image_bytes"]


def table(result: dict) -> str:
    """The comparison in Markdown."""
    head = ["stored as", "size", "mean recall", "against float32", "95% interval", "seeds"]
    rows = []
    for row in result["summary"]:
        low, high = (row["difference"] + sign * (row["margin_95"] or 0) for sign in (-1, 1))
        interval = None if row["format"] == "float32" or row["margin_95"] is None else f"{low:+.2f} to {high:+.2f}"
        rows.append([row["format"], row["size"], row["mean_recall"], f"{row['difference']:+.2f}", interval, row["seeds"]])
    return markdown_table(head, rows)


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.

    Raises:
        SystemExit: the JSON file holds results of other options.
    """
    parser = command_parser("benchmarks.cache_formats", __doc__)
    parser.add_argument("--data", required=True, help="image-text data set, as --dataset of train_hf.py")
    parser.add_argument("--recipe", default="configs/flickr8k_smollm2.yaml", help="recipe to train (default: %(default)s)")
    parser.add_argument("--train_split", default="train[:800]", help="split to train on (default: %(default)s)")
    parser.add_argument("--eval_split", default="validation[50%:]", help="split to evaluate on (default: %(default)s)")
    parser.add_argument(
        "--num_train_epochs", type=int, default=24, help="epochs; few pictures need many (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs per format, with seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--cache_dir", default="runs/cache_formats", help="folder of the cached states (default: %(default)s)")
    parser.add_argument(
        "--json",
        default="docs/cost/cache_formats.json",
        metavar="OUT.json",
        help="where to write the result; its finished runs are kept (default: %(default)s)",
    )
    options = parser.parse_args(argv)

    described = {name: getattr(options, name) for name in ("data", "recipe", "train_split", "eval_split", "num_train_epochs")}
    file = Path(options.json)
    result = read_json(file)
    if any(result.get(name, value) != value for name, value in described.items()):
        raise SystemExit(f"{file} holds results of other options. Delete it, or give another --json.")
    result = {**described, "cells": result.get("cells", [])}
    done = {(cell["format"], cell["seed"]) for cell in result["cells"]}
    from mpclip.training.command_line import parse_options  # imports torch

    device = str(parse_options([options.recipe, "--output_dir", options.cache_dir]).training.device)
    for seed in range(options.seeds):
        for form in FORMATS:
            if (form, seed) in done:
                continue
            cell = train_cell(options, form, seed)
            print(f"{form}, seed {seed}: mean recall {cell['metrics']['eval_mean_recall']:.2f}", flush=True)
            result["cells"].append(cell)
            measured_by = provenance("benchmarks.cache_formats", as_arguments(described), device)
            result |= {"summary": summary(result["cells"]), **measured_by}
            write_json(file, result)
    print(table(result))
    return result


if __name__ == "__main__":
    start(main)
