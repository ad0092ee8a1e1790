"""Running times of the three ways to the states of the prompts (docs/towers.md), on SmolLM2-135M and real captions.

    python -m benchmarks.branches --quick
    python -m benchmarks.branches --json docs/cost/branches.json

tree       one pass over the text and the tree of its prompts
branches   the text once, then its prompts from copies of its cache; texts of equal length together
rows       every prompt with a text of its own, all as one batch
separate   a pass of "text + prompt" for each prompt, by transformers' plain model

SmolLM2-135M could take each of them; others are forced here. Its states are compared before anything is timed. Each is timed in
turns with the tree: "embed" is a forward pass for the last states of all prompts, "train" a forward and a backward pass for the
gradients of all weights. Batches are padded to their longest text. The ratio is the median over rounds.
"""

import sys

from benchmarks.llm_shapes import REAL, SHAPES
from benchmarks.record import command_parser, provenance
from benchmarks.timing import with_quartiles
from eval.tables import markdown_table
from mpclip.files import write_json
from mpclip.hardware import add_precision, best_device, choose_precision, usable_device


def table(result: dict) -> str:
    """The ratios in Markdown. Milliseconds are shown for the tree alone: a ratio of two medians is not the median ratio."""
    head = ["way", "what is timed", "times as long as the tree", "tree, ms", "rounds"]
    rows = [[row["way"], row["work"], row["ratio"], row["fast_ms"], row["rounds"]] for row in result["rows"]]
    return markdown_table(*with_quartiles(head, rows, result["rows"]))


def sentence(result: dict) -> str:
    """What was measured, in a sentence."""
    return (
        f'{result["tower"]} in {result["precision"]}: batches of {result["batch_size"]} captions for "embed" and '
        f'{result["train_batch_size"]} for "train", {result["text_tokens"]:.1f} tokens each on average, with '
        f"{result['prompts']} prompts. Load of the machine when it began: {result['load']:.1f} on {result['threads']} threads."
    )


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    parser = command_parser("benchmarks.branches", __doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds for each ratio")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--data", help="data set with captions (default: Flickr8k if it is in data/, else OpenMoji scenes)")
    parser.add_argument(
        "--tower", default=REAL, choices=(REAL, *SHAPES), help="the LLM; all but the default have random weights (%(default)s)"
    )
    parser.add_argument("--device", type=usable_device, help="where to compute (default: the GPU if there is one)")
    add_precision(parser)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for each ratio, but at least two rounds (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="captions in a batch; a quarter to train (%(default)s)")
    options = parser.parse_args(argv)
    options.device = options.device or best_device()
    options.precision = choose_precision(options.precision, options.device)
    given = sys.argv[1:] if argv is None else argv

    from benchmarks.branch_times import measure  # imports torch

    result = {**measure(options), **provenance("benchmarks.branches", given, options.device)}
    print(f"\n{table(result)}\n\n{sentence(result)}")
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
