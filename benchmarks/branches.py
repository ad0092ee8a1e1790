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

from benchmarks.record import add_timing_options, command_parser, provenance
from benchmarks.timing import with_quartiles
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_json
from mpclip.hardware import best_device, choose_precision


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
    add_timing_options(
        parser, seconds=20.0, quick="two rounds for each ratio", batch_size="captions in a batch; a quarter to train"
    )
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
    start(main)
