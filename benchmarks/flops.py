"""Multiply-adds per image-text pair.

    python -m benchmarks.flops
    python -m benchmarks.flops --text_tokens 22 --json docs/cost/flops.json

Torch counts them on meta tensors, which have shapes and no values: no weights are loaded, and every machine gives the same
counts. The image side is ViT-B/16 at 224 pixels. The text side is CLIP's own text transformer ("vanilla"), or an LLM with K
prompts, which computes the same embeddings in five ways:

    separate        a pass of "text + prompt" for each of the K prompts (2K with the negated ones)
    masked          one pass over the text and all prompts, under the prompt-wise mask
    tree            the same, and stems that prompts share are computed once
    tree+readout    the same, and the last layer is computed at the readouts alone: what MPCLIPModel does
    cached          the same, and the states below the last layer are read from the cache

The paper's setting has 64 tokens on the text side: a text of 22, and 6 prompts of 7. GMACs are 1e9 multiply-adds; as in the
paper's tables, a multiply-add counts as one operation.
"""

from benchmarks.record import as_arguments, command_parser, provenance
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_json

SOURCE_MODEL, SOURCE_TEXT_TOKENS = "Gemma-2B", 22  # the paper's


def table(result: dict) -> str:
    """The counts in Markdown. The last column is the share of the separate passes' text GMACs that a mode saves."""
    head = ["text model", "mode", "prompts", "text-side tokens", "text GMACs", "total GMACs", "text side saved"]
    separate = {(r["text_model"], r["negation"]): r["gmacs_text"] for r in result["rows"] if r["mode"] == "separate"}
    rows = []
    for row in result["rows"]:
        whole = separate.get((row["text_model"], row["negation"]))
        saved = None if whole is None else f"{100 * (1 - row['gmacs_text'] / whole):.0f}%"
        prompts = None if whole is None else result["num_prompts"] * (1 + row["negation"])
        cells = [prompts, row["text_tokens"], row["gmacs_text"], row["gmacs_total"], saved]
        rows.append([row["text_model"], row["mode"], *cells])
    return markdown_table(head, rows)


def tree_sentence(result: dict) -> str:
    """The tokens per text of tree, written-out prompts and separate passes, in sentences."""
    lines, N = [], result["text_tokens"]
    for negated in (False, True):
        rows = [row for row in result["rows"] if row["text_model"] == SOURCE_MODEL and row["negation"] == negated]
        tokens = {row["mode"]: row["text_tokens"] for row in rows}
        K = result["num_prompts"] * (1 + negated)
        lines.append(
            f"{K} prompts are {tokens['tree'] - N} tokens as a tree and {tokens['masked'] - N} written out; with a text of {N} "
            f"tokens that makes {tokens['tree']}, {tokens['masked']}, and {tokens['separate']} in separate passes."
        )
    return "\n".join(lines)


def setting_sentence(result: dict) -> str:
    """The total GMACs in the paper's setting, as a sentence."""
    setting = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in result["source_setting"].items())
    return f"The paper's setting, total GMACs per pair: {setting}."


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    parser = command_parser("benchmarks.flops", __doc__)
    parser.add_argument("--text_tokens", type=int, default=SOURCE_TEXT_TOKENS, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--num_prompts", type=int, default=6, help="prompts, K (default: %(default)s)")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the counts")
    options = parser.parse_args(argv)

    from benchmarks.flop_counts import count  # imports torch

    given = as_arguments({"text_tokens": options.text_tokens, "num_prompts": options.num_prompts})
    result = {**count(options.text_tokens, options.num_prompts), **provenance("benchmarks.flops", given)}
    print(f"{table(result)}\n\n{tree_sentence(result)}")
    if "source_setting" in result:
        print(f"\n{setting_sentence(result)}")
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    start(main)
