"""Counts of multiply-adds, by torch on meta tensors; `benchmarks.flops` is the command."""

import copy

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedConfig, PreTrainedTokenizerFast, ViTConfig

from benchmarks.flops import SOURCE_MODEL, SOURCE_TEXT_TOKENS
from benchmarks.llm_shapes import TEXT_CONFIGS
from modeling_mpclip import MPCLIPConfig, MPCLIPModel, PromptTree

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
    tokens = torch.zeros_like(model.vision_tokens(pixels), device="cpu")  # (B, N, C)
    # On the meta device, the pooling would take its weights for offloaded ones, and compute in the slower way.
    pooling, projection = (copy.deepcopy(part).to_empty(device="cpu") for part in (model.image_pooling, model.image_projection))
    head = multiply_adds(lambda: projection(pooling(tokens)[0]))
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
