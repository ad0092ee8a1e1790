"""Running times of the text side as ratios, measured in one run on SmolLM2-135M and real captions.

    python -m benchmarks.speed --quick                                   # under a minute on two cores
    python -m benchmarks.speed --json docs/cost/speed.json --png docs/cost/speed.png
    python -m benchmarks.speed --tower gemma-2b --device cuda --batch_size 256 --compile --json docs/cost/speed_gpu.json

masked_vs_separate             K separate passes of "text + prompt" / one pass over text and prompt tree
masked_vs_separate_negation    the same with the K negated prompts too
masked_vs_prefix_cache         the text once, then K continuations of its key-value cache / one pass
encode_vs_single_prompt        all K embeddings / one embedding of the same LLM: one prompt, last token, sentence-transformers
encode_vs_single_prompt_short  the same with the prompts "The [APT-i]:" and one prompt of that length
cached_vs_live_step            text side of a training step from captions / from cached states
peak_share                     operations per second of one pass / of the machine's fastest matrix product

The first three ratios compare ways to the same hidden states; the states are checked before anything is timed. All contenders
run in the same dtype, on batches padded to their longest text, each with its fastest attention implementation.

Slow and fast calls take turns. Each ratio is the median over rounds; from ten rounds on, its quartiles are shown. Without
--quick, sweeps over K, text length and batch size follow. The ratios of encode and of a training step need the default tower.
"""

import sys

from benchmarks.record import add_timing_options, command_parser, provenance
from benchmarks.timing import with_quartiles
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_json
from mpclip.hardware import best_device, choose_precision

RATIOS = ("masked_vs_separate", "masked_vs_separate_negation", "masked_vs_prefix_cache")

# Ratio -> its numerator and its denominator, in words.
COMPARED = {
    "masked_vs_separate": ("K separate passes", "one masked pass"),
    "masked_vs_separate_negation": ("2 K separate passes, with the negated prompts", "one masked pass with them"),
    "masked_vs_prefix_cache": ("the text once, then K continuations of its cache", "one masked pass"),
    "encode_vs_single_prompt": ("encode with all K prompts", "encode with one prompt"),
    "encode_vs_single_prompt_short": ("the same with short prompts", "encode with one short prompt"),
    "cached_vs_live_step": ("training step from captions", "training step from cached states"),
}


def table(result: dict) -> str:
    """The median ratios in Markdown.

    Milliseconds are shown for the denominator alone: a ratio of two median times is not the median of the ratios.
    """
    timed = {name: result["detail"][name] for name in COMPARED if name in result["detail"]}
    head = ["ratio", "numerator", "denominator", "median ratio", "denominator, ms", "rounds"]
    rows = [[name, *COMPARED[name], one["ratio"], one["fast_ms"], one["rounds"]] for name, one in timed.items()]
    return markdown_table(*with_quartiles(head, rows, list(timed.values())))


def sentences(result: dict) -> str:
    """The share of the machine's peak that one pass reaches, and the padding that grouping by length saves, in sentences."""
    lines = []
    for row in result["peak_shares"]:
        how = f"{row['attention']}{', compiled' if row['compiled'] else ''}"
        lines.append(
            f"* {how}: {row['tokens_per_second']:,.0f} tokens/s and {row['flops'] / 1e9:,.0f} GFLOPS. That is "
            f"{row['share']:.0%} of the machine's best matrix product ({row['peak_flops'] / 1e9:,.0f} GFLOPS)."
        )
    padding = (
        f"A training batch of 128 captions and their prompts is {result['padding']['random']:.0%} padding in random order, and "
        f"{result['padding']['by_length']:.0%} when captions are grouped by length."
    )
    return f"One masked pass in {result['dtype']}, by attention implementation:\n\n" + "\n".join(lines) + f"\n\n{padding}"


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    parser = command_parser("benchmarks.speed", __doc__)
    add_timing_options(parser, seconds=30.0, quick="small batches, few rounds, no sweeps", batch_size="texts in a batch")
    parser.add_argument("--png", metavar="OUT.png", help="where to draw the sweeps")
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=("sdpa", "eager", "flex_attention"),
        help="attention implementations to try (default: sdpa and, on a CPU, eager)",
    )
    parser.add_argument("--compile", action="store_true", help="measure the share of the peak with torch.compile too")
    options = parser.parse_args(argv)
    options.device = options.device or best_device()
    options.precision = choose_precision(options.precision, options.device)
    given = sys.argv[1:] if argv is None else argv

    from benchmarks.speed_ratios import contenders, measure, sweeps  # import torch

    bench = contenders(options)
    result = {**measure(bench, options), **provenance("benchmarks.speed", given, options.device)}
    print(f"\n{table(result)}\n\n{sentences(result)}")
    if options.json:
        write_json(options.json, result)
    if not options.quick:
        result["sweeps"] = sweeps(bench, options)
        if options.json:
            write_json(options.json, result)
        if options.png:
            from benchmarks.throughput import plot

            plot(result["sweeps"], options.png)
    return result


if __name__ == "__main__":
    start(main)
