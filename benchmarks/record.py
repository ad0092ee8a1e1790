"""What every benchmark shares: its command-line parser, and the record of how a result was measured."""

import argparse
import datetime
import shlex

from mpclip.hardware import describe_machine


def command_parser(module: str, manual: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows a module's docstring as it is written, examples included.

    Args:
        module: name of the module, such as "benchmarks.speed".
        manual: its docstring.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )


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
