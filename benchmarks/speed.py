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

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.contenders import REAL, SHAPES, Contenders
from benchmarks.ratios import WORDINGS, encode, passes, training_step
from benchmarks.record import command_parser, provenance
from benchmarks.throughput import padding_share, peak_shares, plot, sweep
from benchmarks.timing import Clock, with_quartiles
from eval.tables import markdown_table
from mpclip.data.image_text import load_image_text
from mpclip.data.openmoji.scenes import generate_scenes
from mpclip.files import write_json

FLICKR8K = Path("data/flickr8k"), Path("../shared/data/flickr8k")  # the default data, if one of them is there
RATIOS = ("masked_vs_separate", "masked_vs_separate_negation", "masked_vs_prefix_cache")


def captions(data: str | None, count: int = 2048) -> tuple[list[str], str]:
    """Captions to measure on.

    Args:
        data: a data set with a split "train"; None takes Flickr8k where it is in `FLICKR8K`, else captions of OpenMoji scenes.
        count: number of pictures.

    Returns:
        One caption of each of the first `count` pictures, in random order, and the name of the data.
    """
    if data is None:
        data = next((str(folder) for folder in FLICKR8K if folder.exists()), None)
    if data is None:
        rows, data = [scene.captions for scene in generate_scenes({"train": count})], "OpenMoji scenes"
    else:
        rows = load_image_text(data, "train", limit=count).with_format(None)["captions"]
    texts = [row[i % len(row)] for i, row in enumerate(rows)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    return [texts[i] for i in order], data


def measure(bench: Contenders, options: argparse.Namespace) -> dict:
    """Measure everything but the sweeps.

    Args:
        bench: the LLM.
        options: of the command line.

    Returns:
        The ratios and `peak_share` by name, what they were measured with, and `detail`, `peak_shares` and `padding` as from
        `ratios` and `throughput`.
    """
    quick = options.quick
    seconds, size = (0.5, 6) if quick else (options.seconds, options.batch_size)
    clock = Clock(options.device, seconds)
    texts, data = captions(options.data, 256 if quick else 2048)
    names = tuple(options.attention or (("sdpa", "eager") if options.device == "cpu" else ("sdpa",)))
    result = {"tower": options.tower, "dtype": options.dtype, "batch_size": size, "data": data, "quick": options.quick}

    detail = passes(bench, clock, texts, size, names[:2])
    _show({name: detail[name]["ratio"] for name in RATIOS})
    if options.tower == REAL:
        with tempfile.TemporaryDirectory() as folder:
            wordings = dict(list(WORDINGS.items())[:1]) if quick else WORDINGS
            encoded = encode(bench, clock, texts[: (4 if quick else 8) * size], Path(folder), wordings)
            _show({name: value["ratio"] for name, value in encoded.items()})
            detail |= encoded
            detail["cached_vs_live_step"] = training_step(bench, clock, texts, 2 * size, Path(folder))
            _show({"cached_vs_live_step": detail["cached_vs_live_step"]["ratio"]})
    tried = (detail["implementations"]["masked"],) if quick else names
    shares = peak_shares(bench, clock, texts, 4 * size, tried, options.compile)
    best = max(shares, key=lambda row: row["share"])
    result |= {name: value["ratio"] for name, value in detail.items() if isinstance(value, dict) and "ratio" in value}
    result |= {"peak_share": best["share"], "tokens_per_second": best["tokens_per_second"]}
    result |= {"detail": detail, "peak_shares": shares, "padding": padding_share(bench, texts)}
    return result


def _show(values: dict[str, float]) -> None:
    for name, value in values.items():
        print(f"{name:<30}{value:6.2f}", flush=True)


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
    parser.add_argument("--quick", action="store_true", help="small batches, few rounds, no sweeps")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--png", metavar="OUT.png", help="where to draw the sweeps")
    parser.add_argument("--data", help="data set with captions (default: Flickr8k if it is in data/, else OpenMoji scenes)")
    parser.add_argument(
        "--tower", default=REAL, choices=(REAL, *SHAPES), help="the LLM; all but the default have random weights (%(default)s)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of weights and states (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="for each ratio, but at least two rounds (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="texts in a batch (default: %(default)s)")
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=("sdpa", "eager", "flex_attention"),
        help="attention implementations to try (default: sdpa and, on a CPU, eager)",
    )
    parser.add_argument("--compile", action="store_true", help="measure the share of the peak with torch.compile too")
    options = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()  # it would report the new adaptive tokens as missing weights
    given = sys.argv[1:] if argv is None else argv
    bench = Contenders(options.tower, options.device, getattr(torch, options.dtype))
    result = {**measure(bench, options), **provenance("benchmarks.speed", given, options.device)}
    print(f"\n{table(result)}\n\n{sentences(result)}")
    if options.json:
        write_json(options.json, result)
    if not options.quick:
        result["sweeps"] = sweep(bench, Clock(options.device, 0), max(options.batch_size // 4, 1))
        if options.json:
            write_json(options.json, result)
        if options.png:
            plot(result["sweeps"], options.png)
    return result


if __name__ == "__main__":
    main()
