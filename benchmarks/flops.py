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

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ViTConfig,
)

from benchmarks.record import as_arguments, command_parser, provenance
from eval.tables import markdown_table
from modeling_mpclip import MPCLIPConfig, MPCLIPModel, PromptTree
from mpclip.files import write_json

TEXT_CONFIGS = {
    "SmolLM2-135M": lambda: LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "Gemma 3 270M": lambda: Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
    ),
    "Gemma-2B": lambda: GemmaConfig(
        vocab_size=256000,
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
    ),
    "LLaMA-3-8B": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
SOURCE_MODEL, SOURCE_TEXT_TOKENS = "Gemma-2B", 22  # the paper's
MODES = ("separate", "masked", "tree", "tree+readout", "cached")
BATCH = 8  # pairs; work that a batch does once, such as projecting the pooling queries, is divided by this


def word_tokenizer(templates: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word or punctuation mark, as the LLMs' own tokenizers split the paper's templates."""
    words = sorted({word for template in templates for word in template.replace(":", " :").split() if "[" not in word})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", *words])}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def single_prompts(tree: PromptTree) -> list[PromptTree]:
    """A tree for each prompt alone, the negated ones last: the prompts of separate passes."""
    alone = [PromptTree(tree.token_ids, tree.parents, (node,)) for node in (*tree.readouts, *tree.negated_readouts)]
    return [one.select() for one in alone]


def written_out(tree: PromptTree) -> PromptTree:
    """The tree without sharing: each prompt has all its tokens to itself."""
    ids, parents, readouts = [], [], []
    for one in single_prompts(tree):
        parents += [parent if parent < 0 else parent + len(ids) for parent in one.parents]
        ids += one.token_ids
        readouts.append(len(ids) - 1)
    K = len(tree.readouts)
    return PromptTree(tuple(ids), tuple(parents), tuple(readouts[:K]), tuple(readouts[K:]))


def meta_model(text_config: PreTrainedConfig, num_prompts: int = 6, projection_dim: int = 768) -> MPCLIPModel:
    """An MP-CLIP model on the meta device: the LLM, ViT-B/16 and the paper's prompts.

    The adaptive tokens enter below the last layer, so that the states up to there can be cached.

    Args:
        text_config: of the LLM.
        num_prompts: K.
        projection_dim: D, of all K segments together.
    """
    config = MPCLIPConfig(
        text_config,
        ViTConfig(),
        num_prompts=num_prompts,
        projection_dim=projection_dim,
        adaptive_tokens="boundary",
        boundary_layer=text_config.num_hidden_layers - 1,
    )
    config.compile_prompts(word_tokenizer([*config.templates, *config.negated_templates]))
    with torch.device("meta"):
        return MPCLIPModel(config).eval()


def multiply_adds(function, batch: int = BATCH) -> float:
    """GMACs of one call of `function`, divided by the rows of its batch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() / 2 / batch / 1e9


def count_text(model: MPCLIPModel, mode: str, negated: bool, N: int) -> tuple[float, int]:
    """Count the text side.

    Args:
        model: as from `meta_model`.
        mode: one of `MODES`.
        negated: run the negated prompts too.
        N: tokens of a text.

    Returns:
        GMACs per text, and tokens per text with its prompts.
    """
    tower, tree = model.text_model, model.prompt_tree(negated)
    ids = torch.zeros(BATCH, N, dtype=torch.long, device="meta")
    mask = torch.ones_like(ids)
    full = {"separate": single_prompts(tree), "masked": [written_out(tree)], "tree": [tree]}
    if mode in full:
        gmacs = sum(multiply_adds(lambda t=t: tower(ids, mask, tree=t)) for t in full[mode])
        K, (_, H, segment) = model.config.num_prompts, model.text_projection.weight.shape
        gmacs += (2 if negated else 1) * K * H * segment / 1e9  # the projection of the readouts
        return gmacs, sum(N + len(t) for t in full[mode])
    inputs = {"input_ids": ids}
    if mode == "cached":
        inputs = {"text_hidden_states": torch.empty(BATCH, N + len(tree), tower.config.hidden_size, device="meta")}
    run = lambda: model.get_text_features(attention_mask=mask, negated=negated, **inputs)  # noqa: E731
    return multiply_adds(run), N + len(tree)


def count_image(model: MPCLIPModel) -> dict[str, float]:
    """GMACs per image: `encoder`, the vision tower, and `pooling`, attention pooling and projection."""
    pixels = torch.empty(BATCH, 3, 224, 224, device="meta")
    tokens = model.vision_tokens(pixels)
    head = multiply_adds(lambda: model.get_image_features(vision_hidden_states=tokens))
    return {"encoder": multiply_adds(lambda: model.vision_tokens(pixels)), "pooling": head}


def count_clip_text() -> float:
    """GMACs of CLIP's text transformer (12 layers, width 512) on its 77 tokens."""
    with torch.device("meta"):
        text = CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=512)).eval()
        ids = torch.zeros(BATCH, 77, dtype=torch.long)
    return multiply_adds(lambda: text(input_ids=ids))


def count(N: int = SOURCE_TEXT_TOKENS, num_prompts: int = 6) -> dict:
    """Count all models and modes.

    Args:
        N: tokens of a text.
        num_prompts: K.

    Returns:
        `rows`, one for each model, mode and negation; `image`, as from `count_image`; and, with the paper's N and K,
        `source_setting`, the total GMACs of vanilla CLIP and of the paper's LLM without and with cached states.
    """
    rows, image = [], None
    for name, config in TEXT_CONFIGS.items():
        model = meta_model(config(), num_prompts)
        image = image or count_image(model)
        for negated in (False, True):
            for mode in MODES:
                text, tokens = count_text(model, mode, negated, N)
                total = text + sum(image.values())
                rows.append(
                    {
                        "text_model": name,
                        "mode": mode,
                        "negation": negated,
                        "text_tokens": tokens,
                        "gmacs_text": round(text, 4),
                        "gmacs_total": round(total, 4),
                    }
                )
    clip = count_clip_text()
    vanilla = {"text_model": "CLIP text transformer", "mode": "vanilla", "negation": False, "text_tokens": 77}
    rows.insert(0, {**vanilla, "gmacs_text": round(clip, 4), "gmacs_total": round(clip + image["encoder"], 4)})
    result = {"num_prompts": num_prompts, "text_tokens": N, "image": image, "rows": rows}
    if (N, num_prompts) == (SOURCE_TEXT_TOKENS, 6):
        totals = {row["mode"]: row["gmacs_total"] for row in rows if row["text_model"] == SOURCE_MODEL and not row["negation"]}
        result["source_setting"] = {
            "vanilla_clip": rows[0]["gmacs_total"],
            "uncached": totals["tree+readout"],
            "cached": totals["cached"],
        }
    return result


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
    given = as_arguments({"text_tokens": options.text_tokens, "num_prompts": options.num_prompts})
    result = {**count(options.text_tokens, options.num_prompts), **provenance("benchmarks.flops", given)}
    print(f"{table(result)}\n\n{tree_sentence(result)}")
    if "source_setting" in result:
        print(f"\n{setting_sentence(result)}")
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
