"""What every benchmark shares: its command-line parser, and the record of how a result was measured."""

import argparse
import datetime
import shlex

from benchmarks.llm_shapes import REAL, SHAPES
from mpclip.hardware import add_precision, describe_machine, usable_device


def command_parser(module: str, manual: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows a module's docstring as it is written, examples included.

    Args:
        module: name of the module, such as "benchmarks.speed".
        manual: its docstring.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_timing_options(parser: argparse.ArgumentParser, seconds: float, quick: str, batch_size: str) -> None:
    """Add the options of a benchmark that times an LLM on batches of captions.

    Args:
        parser: of the benchmark.
        seconds: the default for each ratio.
        quick, batch_size: help texts of --quick and --batch_size.
    """
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--data", help="data set with captions (default: Flickr8k if it is in data/, else OpenMoji scenes)")
    parser.add_argument(
        "--tower", default=REAL, choices=(REAL, *SHAPES), help="the LLM; all but the default have random weights (%(default)s)"
    )
    parser.add_argument("--device", type=usable_device, help="where to compute (default: the GPU if there is one)")
    add_precision(parser)
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="for each ratio, but at least two rounds (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=32, help=f"{batch_size} (default: %(default)s)")


def as_arguments(options: dict) -> list[str]:
    """Options as words of a command line: {"seed": 0} gives ["--seed", "0"]."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def provenance(module: str, argv: list[str], device: str = "cpu") -> dict:
    """How a result was measured.

    Args:
        module: name of the module that measured.
        argv: the words of its command line.
        device: the device that it measured on.

    Returns:
        `command`, `date` (UTC, to the second) and `machine`.
    """
    return {
        "command": shlex.join(["python", "-m", module, *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
    }
