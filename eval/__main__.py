"""Measure a trained model.

    python -m eval retrieval --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json out.json --grid out.png
    python -m eval retrieval --model openai/clip-vit-base-patch32 --data jxie/flickr8k --split test --json clip.json
    python -m eval differences --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json differences.json

The JSON file holds the metrics, their 95% bootstrap intervals, and how the run is repeated. The scores of single items are
written beside it, to OUT.items.npz. The Python files of a checkpoint are run: measure only checkpoints that you trust.
"""

import argparse
import datetime
import importlib
import shlex
import sys
import time

from eval.options import add_common_options
from mpclip.data.reading import reading_given, reading_of

# Task -> module and class. The first line of the module's docstring is the task's line in the help.
TASKS = {
    "retrieval": "eval.tasks.retrieval:Retrieval",
    "differences": "eval.tasks.differences:Differences",
    "exclusion": "eval.tasks.exclusion:Exclusion",
    "sts": "eval.tasks.sts:SentencePairs",
    "zero_shot": "eval.tasks.zero_shot:ZeroShot",
    "human": "eval.tasks.human:Human",
}


def task_class(name: str) -> type:
    """The class of a task of `TASKS`; imports its module."""
    module, _, cls = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def make_parser(prog: str = "python -m eval") -> argparse.ArgumentParser:
    """The parser of the command: a subcommand for each task.

    Args:
        prog: name of the command in messages.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(metavar="TASK", required=True, dest="task")
    for name in TASKS:
        cls = task_class(name)
        doc = sys.modules[cls.__module__].__doc__
        one = tasks.add_parser(
            name, help=doc.splitlines()[0], description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_common_options(one, cls.takes)
        cls.add_options(one)
    return parser


def evaluate(options: argparse.Namespace, command: list[str] | None = None):
    """Run a task and write its result.

    Args:
        options: as parsed by `make_parser`.
        command: words of the command, recorded in the result.

    Returns:
        The `Result`.

    Raises:
        ValueError, OSError, ImportError: something that the user can fix; the message says what.
    """
    from mpclip.encoding import load_encoder
    from mpclip.encoding.fingerprint import weights_fingerprint
    from mpclip.export.int8 import int8_config
    from mpclip.hardware import choose_precision, describe_machine, speeds

    started = time.monotonic()
    task = task_class(options.task)(options)
    data = task.load(options.data, options.split, options.limit, **reading_of(options))
    weights = {"quantization_config": int8_config()} if options.quantize == "int8" else {}
    precision = choose_precision(options.precision, options.device)
    encoder = load_encoder(options.model, precision, options.device, **weights)
    result = task.run(encoder, data, batch_size=options.batch_size, shared=True, cache=options.cache)
    given = ("model", "data", "split", "limit", "quantize", "batch_size")
    result.origin |= (
        {name: getattr(options, name) for name in given}
        | reading_given(options)
        | {
            "dtype": precision,
            "gflops": speeds(encoder.device.type)["gflops"],
            "fingerprint": weights_fingerprint(options.model),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": describe_machine(str(encoder.device)),
            "command": command and shlex.join(command),
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    result.save(options.json)
    return result


def main(arguments: list[str] | None = None, prog: str = "python -m eval") -> None:
    """The command.

    Args:
        arguments: words of the command line; None takes those of the process.
        prog: name of the command in messages.

    Raises:
        SystemExit: code 2 for a wrong command line; code 1 and one line for an error that the user can fix.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    try:
        result = evaluate(options, ["python", "-m", "eval", *arguments])
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog} {options.task}: {' '.join(str(error).split())}") from error
    print(result.table())
    print(f"\nwritten: {options.json}" + (f", {grid}" if (grid := getattr(options, "grid", None)) else ""))


if __name__ == "__main__":
    main()
