"""Opens an app in the browser that searches pictures by text, by picture, or by both.

    mpclip app --model runs/demo/multi_prompt --images photos
    mpclip app --model runs/demo/multi_prompt --model runs/demo/single_prompt --images runs/demo/scenes --split test
    mpclip app --images runs/photos                                  # an index of `mpclip search build`
    mpclip app --model you/model --images photos --space my_space    # writes a Hugging Face Space instead

The pictures are embedded at the first start, and kept in the cache; later starts embed new pictures alone. With two models,
their answers stand side by side. docs/app.md describes the controls.

The app can be reached from this machine alone, unless --host says otherwise. There is no password.

The Python files of the checkpoints are run (trust_remote_code=True). Give only checkpoints that you trust.
"""

import argparse
import sys
from pathlib import Path

from mpclip.app import MOST_MODELS
from mpclip.command import Stoppable, start
from mpclip.hardware import add_precision, usable_device


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        default=[],
        help="checkpoint: a folder or a Hub id; a second one is shown beside the first (default: the model of the index)",
    )
    parser.add_argument("--images", required=True, help="folder of pictures, or an index; with --split a data set")
    parser.add_argument("--split", help="split of a data set, such as validation or test")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all (default: %(default)s)")
    parser.add_argument("--port", type=int, help="port to listen at (default: the first free one from 7860)")
    add_precision(parser)
    parser.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument("--space", type=Path, metavar="FOLDER", help="write a Hugging Face Space to this folder, and end")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m mpclip.app") -> None:
    """The command. torch and gradio are loaded when it runs, and not for `--help`.

    Args:
        arguments: words of the command line; None takes those of the process.
        prog: name of the command in messages.

    Raises:
        SystemExit: code 2 for a wrong command line; code 1 and one line for an error that the user can fix.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    if len(options.model) > MOST_MODELS:
        parser.error(f"--model: {len(options.model)} models; expected at most {MOST_MODELS}, which are shown side by side")
    try:
        with Stoppable(prog, arguments) as stoppable:
            run(options, stoppable)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {' '.join(str(error).split())}") from error


def run(options: argparse.Namespace, stoppable: Stoppable) -> None:
    """Write a Space, or open the collections and serve until the user stops the program."""
    if options.space is not None:
        from mpclip.app.space import write_space

        print(write_space(options.space, options.model, options.images, options.split))
        return
    from mpclip.app.gradio_package import gradio

    gradio()  # a missing package is told before minutes of embedding
    from mpclip.app.collection import open_collections
    from mpclip.app.page import build_page
    from mpclip.app.server import serve

    stoppable.kept = "Pictures that are embedded are kept, but for the last few hundred."
    opened = open_collections(options.model, options.images, options.split, options.precision, options.device)
    serve(build_page(opened), options.host, options.port)


if __name__ == "__main__":
    start(main)
