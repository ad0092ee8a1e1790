"""Train the multi-prompt model and its single-prompt baseline on OpenMoji scenes, and compare them on held-out scenes.

    python -m demo                            # what `make demo` does once everything is installed
    python -m demo --train 1000 --test 200 --out runs/small_demo
    python -m demo --out runs/another_demo

The command writes everything to runs/demo:

    scenes/         the pictures with their captions, and the attribution of the drawings
    cache/          states of the frozen towers, computed once for both systems
    multi_prompt/   the checkpoint with six prompts, as train_hf.py writes it
    single_prompt/  the checkpoint of the baseline
    scenes.png      a few families of scenes
    queries.png     a few queries and the scenes they find
    results.json    all numbers

An interrupted run continues where it stopped. A finished run shows its results again. To start anew, delete runs/ by
`make clean`.
"""

import argparse
import sys
from pathlib import Path

from mpclip.command import Stoppable

SCENES = {"train": 4000, "test": 600}


def main(arguments: list[str] | None = None) -> dict:
    """The command; returns the content of results.json.

    Args:
        arguments: words of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--train", type=int, default=SCENES["train"], help="number of training scenes (default: %(default)s)")
    parser.add_argument("--test", type=int, default=SCENES["test"], help="number of held-out scenes (default: %(default)s)")
    arguments = sys.argv[1:] if arguments is None else arguments
    with Stoppable(parser.prog, arguments) as stoppable:
        options = parser.parse_args(arguments)
        stoppable.kept = f"What is finished is kept in {options.out}."

        from demo.compare import compare  # imports torch

        return compare(options.out, options.train, options.test, stoppable)


if __name__ == "__main__":
    main()
