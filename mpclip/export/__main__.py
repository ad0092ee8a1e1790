"""Exports a checkpoint in a form that is small and fast to serve.

Examples:

    mpclip export onnx runs/demo/multi_prompt text.onnx
    mpclip export int8 runs/demo/multi_prompt runs/demo/int8
    mpclip export text runs/demo/multi_prompt runs/demo/text

There is no --precision here. A checkpoint keeps the dtype of its weights, and who loads it chooses the dtype to compute in: by
`dtype=`, or by --precision of `mpclip eval` and `mpclip search`. An ONNX graph computes in float32.
"""

import argparse
import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from mpclip.cli import manual
from mpclip.command import next_steps, start

# Name of the export -> its line in the help.
EXPORTS = {
    "onnx": "one tower as an ONNX graph; onnxruntime runs it without torch",
    "int8": "a checkpoint whose LLM has int8 weights",
    "text": "a checkpoint with the text tower alone",
}


def main(arguments: list[str] | None = None, prog: str = "python -m mpclip.export") -> None:
    """Run the command.

    Args:
        arguments: as on the command line, without the name of the program.
        prog: that name, for help and errors.

    Raises:
        SystemExit: with code 2 and a message for an error that the user can correct.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(metavar="onnx|int8|text", required=True, dest="kind")
    commands = {
        name: kinds.add_parser(
            name,
            help=line,
            description=manual(f"mpclip.export.{name}"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, line in EXPORTS.items()
    }
    for command in commands.values():
        command.add_argument("checkpoint", help="folder or Hub id of the checkpoint; its Python files are run")
    commands["onnx"].add_argument("out", metavar="OUT.onnx", type=Path, help="the ONNX file to write")
    commands["onnx"].add_argument("--tower", choices=("text", "image"), default="text", help="tower (default: %(default)s)")
    for name in ("int8", "text"):
        commands[name].add_argument("out", metavar="OUT_FOLDER", type=Path, help="folder for the new checkpoint; new or empty")
    options = parser.parse_args(arguments)
    try:
        with _removing_half_written(options.out) if options.kind != "onnx" else nullcontext():  # a graph is written aside
            print(importlib.import_module(f"mpclip.export.{options.kind}").run(options))
        if options.kind != "onnx":
            card = ["mpclip", "card", str(options.out), "--source", options.checkpoint]
            print(next_steps([(card, "write its model card")]))
    except (ValueError, OSError, ImportError) as error:
        commands[options.kind].error(str(error))


@contextmanager
def _removing_half_written(folder: Path) -> Iterator[None]:
    """Remove a folder that was new or empty if its checkpoint is not written to the end: the command can then be run again."""
    new = not folder.exists() or not any(folder.iterdir())
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


if __name__ == "__main__":
    start(main)
