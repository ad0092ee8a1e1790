"""Facts of the card in words, from config.json and training.json, and helpers that write Markdown."""

import json
from dataclasses import MISSING, fields
from math import prod
from pathlib import Path

from safetensors import safe_open

from modeling_mpclip.hub_card import escaped
from mpclip.training.arguments import MPCLIPTrainingArguments
from mpclip.training.options import DataArguments, ModelArguments

# Licences, by the Hub's identifiers, that ask for nothing but to keep their notice.
PERMISSIVE = {"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "unlicense", "zlib"}
TOWERS = {"text": "text tower", "vision": "vision tower", "both": "MP-CLIP checkpoint"}
# Options that the card shows elsewhere, or that do not change the model.
NOT_LISTED = {"text_model", "vision_model", "checkpoint", "templates", "negated_templates", "adaptive_init", "dataset"}
NOT_LISTED |= {"output_dir", "cache_dir", "disable_tqdm", "logging_dir", "report_to", "run_name", "resume_from_checkpoint"}
NOT_LISTED |= {"push_to_hub", "dataloader_pin_memory", "accelerator_config", "do_eval", "use_cpu", "logging_nan_inf_filter"}


def language_codes(recorded: object) -> list[str]:
    """The language codes in a data set's metadata.

    Args:
        recorded: a code, a list of codes, or nothing of the kind. YAML reads the code of Norwegian, `no`, as False.
    """
    listed = recorded if isinstance(recorded, list) else [recorded]
    return ["no" if code is False else code for code in listed if code is False or isinstance(code, str)]


def licence_of_weights(base_models: list[dict]) -> tuple[dict, str]:
    """The licence of the weights, which come under the terms of every tower.

    If one licence asks for more than the others, which are permissive, it is the licence of the weights. If several do, or if
    one is unknown, no single name is right, and the licence is "other".

    Args:
        base_models: the entry of training.json.

    Returns:
        The licence entries of the card's metadata, and the sentence that explains them.
    """
    licences = {model["license"] for model in base_models}
    if not base_models or None in licences:
        unknown = [f"{TOWERS[model['tower']]} {code(model['name'])}" for model in base_models if model["license"] is None]
        what = f"that of the {' and of the '.join(unknown)} is not recorded" if unknown else "those are not recorded"
        return {"license": "other", "license_name": "unknown"}, (
            f"The licence of the weights follows that of the pretrained models they come from, and {what}. "
            "Look it up before you use the weights."
        )
    demanding = licences - PERMISSIVE
    if len(demanding) > 1 or "other" in demanding:
        return {"license": "other", "license_name": "those-of-the-base-models"}, (
            "The weights are subject to the licences of all pretrained models they come from."
        )
    one = demanding.pop() if demanding else licences.pop() if len(licences) == 1 else "apache-2.0"
    return {"license": one}, "The licence of the weights follows that of the pretrained models they come from."


def prompt_rows(config: dict, adaptive_init: list[str] | None) -> list[dict]:
    """The prompts of a model.

    Args:
        config: content of config.json.
        adaptive_init: words that the adaptive tokens were initialised from, or None.

    Returns:
        For each prompt: `template`; `negated`, its negated twin or None; `init`, the words of its adaptive tokens or None.
    """
    negated = config["negated_templates"] if config["negation_weight"] else []
    rows = []
    for i, template in enumerate(config["templates"]):
        words = [word for n, word in enumerate(adaptive_init or [], 1) if f"[APT-{n}]" in template]
        rows.append({"template": template, "negated": negated[i] if negated else None, "init": ", ".join(words) or None})
    return rows


def loss_in_words(config: dict) -> str:
    """The terms of the training loss with their weights."""
    parts = [{"softmax": "softmax contrastive (CLIP)", "sigmoid": "sigmoid contrastive (SigLIP)"}[config["loss"]]]
    if config["diversity_weight"]:
        parts.append(f"{config['diversity_weight']:g} x diversity of the prompts")
    if config["negation_weight"]:
        parts.append(f"{config['negation_weight']:g} x negation ({config['negation_form']})")
    return " + ".join(parts)


def image_pooling_in_words(config: dict) -> str:
    """How the image tower makes an embedding of the vision tokens."""
    words = {"mean": "mean of the vision tokens", "cls": "the class token"}
    return words.get(
        config["image_pooling"], f"attention with {pooling_queries_in_words(config)}, {config['pooling_heads']} heads"
    )


def pooling_queries_in_words(config: dict) -> str:
    """How many pooling queries the attention pooling has, and for which prompts they are."""
    K = config["num_prompts"]
    queries = config["pooling_queries"] or (K if config["image_pooling"] == "attention_per_prompt" else 1)
    if queries == 1:
        return "1 pooling query" + (" (one for all prompts)" if K > 1 else "")
    return f"{queries} pooling queries" + (" (one per prompt)" if queries == K else "")


def trained_in_words(config: dict, arguments: dict, any_trained: bool = True) -> list[str]:
    """The parts of the model that a run trained, a sentence each for text tower, vision tower and the rest.

    Args:
        config: content of config.json.
        arguments: `ModelArguments` of training.json.
        any_trained: whether a step of training was made.
    """
    solved = arguments.get("projection_start") == "closed_form"
    if solved and not any_trained:
        return ["Nothing was trained by gradients: the projections were solved in closed form, by ridge regression."]
    layers = config["text_config"]["num_hidden_layers"]
    last = arguments["trained_layers"]
    adapted = arguments["lora_layers"]
    with_adapters = f"its {layers} layers" if adapted in (None, layers) else f"the last {adapted} of its {layers} layers"
    text = {
        "frozen": f"none of its {layers} layers",
        "last": f"the last {'layer' if last == 1 else f'{last} layers'} of {layers} and the final norm",
        "lora": f"LoRA adapters (rank {arguments['lora_rank']}, alpha {arguments['lora_alpha']}) on all projections of "
        f"{with_adapters}, merged into the weights",
        "full": f"all of its {layers} layers",
    }[arguments["text_tuning"]]
    vision = {"frozen": "nothing, it was frozen", "full": "all of it"}[arguments["vision_tuning"]]
    rest = "the projections and the logit scale"
    if config["image_pooling"].startswith("attention"):
        rest = "the attention pooling, " + rest
    if config["text_pooling"] == "attention":
        rest = "the attention pooling of the text, " + rest
    if config["text_pooling"] == "prompts":
        where = "at the input" if config["adaptive_tokens"] == "input" else f"added at layer {config['boundary_layer']}"
        rest += f", and the adaptive tokens ({where})"
    sentences = [f"Trained in the text tower: {text}.", f"Trained in the vision tower: {vision}.", f"Also trained: {rest}."]
    return sentences + ["The projections started from a solution in closed form, by ridge regression."] * solved


def options_given(training: dict) -> list[tuple[str, str]]:
    """Name and value of the options of train_hf.py that differ from their defaults.

    The defaults are read from the classes. An instance of the training arguments would set up devices again.

    Args:
        training: content of training.json.
    """
    changed = []
    for cls in (ModelArguments, DataArguments, MPCLIPTrainingArguments):
        for option in fields(cls):
            name = option.name
            if name in NOT_LISTED or name.startswith("hub_") or name not in training[cls.__name__]:
                continue
            value = training[cls.__name__][name]
            default = option.default if option.default is not MISSING else None
            if option.default_factory is not MISSING:
                default = option.default_factory()
            default = json.loads(json.dumps(default, default=str))
            if value != default and (value or default):  # None, False and [] all mean that it is off
                changed.append((name, json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)))
    return changed


def parameters_in(folder: Path) -> int | None:
    """The number of parameters in a folder's safetensors files, from their headers; None if there are no such files."""
    files = sorted(folder.glob("model*.safetensors"))
    total = 0
    for file in files:
        with safe_open(file, "pt") as weights:
            total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 (no dict)
    return total if files else None


def code(text: object, table: bool = False) -> str:
    """Any text as a Markdown code span.

    Args:
        text: shown on one line.
        table: escape "|", for a cell of a table.
    """
    text = " ".join(str(text).split())
    fence = "`"
    while fence in text:
        fence += "`"
    text = text.replace("|", r"\|") if table else text
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def plain(text: object) -> str:
    """Any text as Markdown, with special characters escaped, so that it is shown as it is."""
    return escaped(" ".join(str(text).split()))


def fenced(text: str, language: str = "") -> str:
    """Any text as a Markdown code block."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def large(number: float | None) -> str:
    """A count, in millions ("1.5M") from a million on; "unknown" for None."""
    return "unknown" if number is None else f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number:,}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: s, min or h."""
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
