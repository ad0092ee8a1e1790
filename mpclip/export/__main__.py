"""Makes a checkpoint small and fast to serve.

Examples:

    mpclip export onnx runs/demo/multi_prompt text.onnx
    mpclip export int8 runs/demo/multi_prompt runs/demo/int8
    mpclip export text runs/demo/multi_prompt runs/demo/text
"""

import argparse
import importlib
from pathlib import Path

from mpclip.cli import manual

# Name -> its line in the help.
EXPORTS = {
    "onnx": "one tower as an ONNX graph, which onnxruntime runs without torch",
    "int8": "a checkpoint whose LLM has int8 weights",
    "text": "a checkpoint without the image side",
}


def main(arguments: list[str] | None = None, prog: str = "python -m mpclip.export") -> None:
    """The command. Ends with code 2 and a message for what the user can mend."""
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
        command.add_argument("checkpoint", help="folder or Hub id; its Python files are run")
    commands["onnx"].add_argument("out", metavar="OUT.onnx", type=Path, help="the graph")
    commands["onnx"].add_argument("--tower", choices=("text", "image"), default="text", help="which one (default: %(default)s)")
    for name in ("int8", "text"):
        commands[name].add_argument("out", metavar="OUT_FOLDER", type=Path, help="the new checkpoint; new or empty")
    options = parser.parse_args(arguments)
    try:
        print(importlib.import_module(f"mpclip.export.{options.kind}").run(options))
    except (ValueError, OSError, ImportError) as error:
        commands[options.kind].error(str(error))


if __name__ == "__main__":
    main()
