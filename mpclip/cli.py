"""MP-CLIP: image-text retrieval with a pretrained LLM as the text tower.

Examples:

    mpclip train configs/flickr8k_smollm2.yaml --dataset photos
    mpclip eval retrieval --model runs/mine --data photos --split test --json result.json
    mpclip search build --model runs/mine --data photos --index runs/photos
    mpclip search query --index runs/photos "a street" --html found.html
"""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from mpclip.command import Stoppable

# Command -> the module whose `main(arguments, prog)` it calls, and its line in the help.
COMMANDS = {
    "train": ("train_hf", "train on image-text pairs"),
    "eval": ("eval.__main__", "measure a model: retrieval and other tasks"),
    "embed": ("mpclip.embed", "embed many pictures into parquet files, by any number of workers"),
    "search": ("mpclip.search.__main__", "build an index of pictures and query it"),
    "report": ("mpclip.report.__main__", "write what a model finds, where it fails and what it costs, as one page"),
    "maps": ("mpclip.maps.__main__", "draw where in a picture each prompt's answer comes from"),
    "app": ("mpclip.app.__main__", "search pictures in a browser, or write a Hugging Face Space that does"),
    "export": ("mpclip.export.__main__", "make a checkpoint small and fast to serve: onnx, int8, text"),
    "card": ("model_card.__main__", "write the model card of a checkpoint"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Only the module of that command is imported. Ctrl-C ends it with a sentence.

    Args:
        arguments: as on the command line, without the name of the program.

    Raises:
        SystemExit: with code 2 if there is no such command; with 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        listed = "\n".join(f"  {name:<8} {line}" for name, (_, line) in COMMANDS.items())
        print(f"usage: mpclip COMMAND ...\n\n{__doc__}\ncommands (`mpclip COMMAND --help` describes one):\n{listed}")
    elif command in COMMANDS:
        module, _ = COMMANDS[command]
        with Stoppable(f"mpclip {command}", arguments[1:]):
            importlib.import_module(module).main(arguments[1:], prog=f"mpclip {command}")
    else:
        print(f"mpclip: no command {command!r}; expected one of: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def manual(module: str) -> str:
    """The docstring of a module, read without importing it. So `--help` of a command that needs torch does not load torch."""
    source = Path(importlib.util.find_spec(module).origin)
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
