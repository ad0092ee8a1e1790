"""What checks cost: the seconds that loading, training and searching spend on finding damage, and their share of the whole.

    python -m benchmarks.guards --json docs/cost/guards.json
    python -m benchmarks.guards --pictures 20000 --examples 500      # smaller, a minute

load               MPCLIPModel.from_pretrained in a running process; check: every weight is finite
load and embed     a process that loads the model and embeds one text; the same check
train              the start of train_hf.py on cached states, up to the first step; checks: every weight is finite; hashes of
                   the cached states; hashes of weights and pictures, which tell whose states they are
search             python -m mpclip.search query; check: dates of files
search, --verify   the same with hashes of all files and weights in place of dates

For `load` the check is the difference between loads with it and without it, which take turns. All others are processes of their
own; the whole is their time from the start of Python to its end, and their checks are timed inside. Seconds are medians. Files
are in memory, as after a first use.

The model is SmolLM2-135M with 6 prompts and EfficientNet-Lite0, its projections drawn at random. The cached states are zeros.
By default there are about as many as for Flickr8k's training split, and a tenth of that for evaluation. The index is flat and
holds random vectors and grey thumbnails.
"""

import sys

from benchmarks.record import command_parser, provenance
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_json

GOAL = 5  # percent of the whole, for each check that is not asked for


def table(result: dict) -> str:
    """The rows in Markdown."""
    head = ["program", "check", "whole, s", "check, s", "share"]
    rows = [
        [row["program"], row["check"], row["whole_s"], f"{row['check_s']:.3f}", f"{row['share_percent']:.1f}%"]
        for row in result["rows"]
    ]
    return markdown_table(head, rows)


def main(argv: list[str] | None = None) -> dict:
    """The command; returns what it writes."""
    parser = command_parser("benchmarks.guards", __doc__)
    parser.add_argument("--pictures", type=int, default=1_000_000, help="in the index (default: %(default)s)")
    parser.add_argument(
        "--examples", type=int, default=6000, help="pictures to train on, 5 captions each (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="for each comparison of loads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every other program (default: %(default)s)")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    options = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv

    from benchmarks.guard_times import measure  # imports torch

    result = {**measure(options), **provenance("benchmarks.guards", given)}
    print(f"\n{table(result)}")
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    start(main)
