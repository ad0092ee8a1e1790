"""The cost of embedding a text: time and size on disk, of torch and onnxruntime in several precisions.

    python -m benchmarks.serving --quick                                 # two rounds per ratio; the exports take minutes
    python -m benchmarks.serving --json docs/cost/serving.json
    python -m benchmarks.serving --model runs/demo/multi_prompt --json docs/cost/serving.json

torch float32            the reference
torch bfloat16           the checkpoint loaded with dtype=bfloat16
torch int8 weights       the LLM's weights in int8 (mpclip/export/int8.py), computed in float32 or in bfloat16
onnxruntime float32      the exported graph (mpclip/export/onnx.py)
onnxruntime int8 weights the graph with the weights of its linear layers in int8 (onnxruntime's MatMulNBitsQuantizer)
onnxruntime int8         the graph with weights and inputs of its linear layers in int8 (onnxruntime's quantize_dynamic)

Every engine embeds the same tokenized captions on the CPU, one by one and in batches of 32 padded to their longest text, with
as many threads as torch uses. Reference and engine take turns. The speedup is the median over rounds of their ratio; from ten
rounds on, its quartiles are shown. Milliseconds are shown for the reference alone: the machine may have been busier for one
engine than for another, and then the engines' own milliseconds would contradict the ratios. The size on disk is that of the
text side. The cosine is the lowest one between an engine's embedding of a text and the reference's.

Without --model, the model is SmolLM2-135M with 6 prompts and a random projection; time and size do not depend on its values.
"""

import sys

from benchmarks.record import command_parser, provenance
from benchmarks.timing import with_quartiles
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_json

REFERENCE = "torch float32"  # the engine


def table(result: dict) -> str:
    """The speedups in Markdown, and the milliseconds of the reference alone (see the module's docstring)."""
    head = ["engine", "texts at a time", "times as fast as float32", "ms per text", "MB on disk", "lowest cosine", "rounds"]
    rows = []
    for row in result["rows"]:
        speed = [None, row["ms_per_text"]] if row["engine"] == REFERENCE else [row["speedup"], None]
        size = f"{row['megabytes']:,.0f}"
        rows.append([row["engine"], row["batch_size"], *speed, size, f"{row['cosine']:.4f}", row["rounds"]])
    return markdown_table(*with_quartiles(head, rows, result["rows"]))


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    parser = command_parser("benchmarks.serving", __doc__)
    parser.add_argument("--model", help="checkpoint, folder or Hub id; its Python files are run (default: see above)")
    parser.add_argument("--quick", action="store_true", help="two rounds for each ratio")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--data", help="data set with captions (default: Flickr8k if it is in data/, else OpenMoji scenes)")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="for each ratio, but at least two rounds (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv

    from benchmarks.serving_engines import measure  # imports torch

    result = {**measure(options), **provenance("benchmarks.serving", given)}
    print(f"\n{table(result)}")
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    start(main)
