"""Train the multi-prompt model and its single-prompt baseline on OpenMoji scenes, and compare them on held-out scenes.

`make demo` runs this. Everything lands in runs/demo:

    scenes/                       the pictures with their captions, and the drawings' attribution
    cache/                        states of the frozen towers; computed once, used by both systems
    multi_prompt/ single_prompt/  the checkpoints, as train_hf.py leaves them
    scenes.png queries.png        a few families, and a few queries with what they found
    results.json

An interrupted run goes on where it was, and a finished one is shown again at once; `make clean` starts afresh.
"""

import argparse
from pathlib import Path

SCENES = {"train": 5000, "test": 600}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything (default: runs/demo)")
    parser.add_argument("--train", type=int, default=SCENES["train"], help="training scenes (default: %(default)s)")
    parser.add_argument("--test", type=int, default=SCENES["test"], help="held-out scenes (default: %(default)s)")
    options = parser.parse_args(arguments)

    from demo.compare import compare  # imports torch

    return compare(options.out, options.train, options.test)


if __name__ == "__main__":
    main()
