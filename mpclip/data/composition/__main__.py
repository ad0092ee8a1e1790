"""Write a set of right and wrong texts that is built from pictures with captions.

    python -m mpclip.data.composition --from data/flickr8k --split "validation[50%:]" --out choices.jsonl
    python -m mpclip.data.composition --from runs/demo/scenes --split test --seed 1 --out scenes.jsonl
    mpclip eval composition --model runs/mine --data choices.jsonl --image_folder data/flickr8k --split all --json out.json

Each line is {"file_name", "kind", "right", "wrong"}. Read and correct it, or write such lines of your own. `python -m eval
composition --build` builds the same set without a file.
"""

import argparse
import json
from collections.abc import Sequence

from mpclip.command import start


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: words of the command line; None takes those of the process.

    Raises:
        SystemExit: code 2 for a wrong command line; code 1 and one line for an error that the user can fix.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.data.composition", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", required=True, dest="source", metavar="DATA", help="pictures with captions, in files")
    parser.add_argument("--split", required=True, help="name of the split")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="where to write")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    options = parser.parse_args(arguments)
    try:
        kinds = write_choices(options.source, options.split, options.out, options.seed)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    print(", ".join(f"{count} {kind}" for kind, count in kinds.items()) + f" in {options.out}")


def write_choices(source: str, split: str, out: str, seed: int = 0) -> dict[str, int]:
    """Build a set and write it.

    Returns:
        Kind -> number of choices.

    Raises:
        ValueError: the pictures lie in the table, so that a file cannot name them; or as `build_choices`.
    """
    from mpclip.data.composition.build import build_choices
    from mpclip.data.image_text import load_image_text
    from mpclip.files import write_text

    rows = load_image_text(source, split)
    if "file_name" not in rows.column_names:
        raise ValueError(f"{source} has its pictures in the table: use python -m eval composition --build")
    choice_set = build_choices(rows, seed)
    names = rows.with_format(None)["file_name"][:]
    lines = [
        {"file_name": names[choice.picture], "kind": choice.kind, "right": choice.right, "wrong": list(choice.wrong)}
        for choice in choice_set.choices
    ]
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return choice_set.kinds


if __name__ == "__main__":
    start(main)
