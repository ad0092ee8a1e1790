"""Loads two pretrained towers for a new `MPCLIPModel`, compiles its prompts and initialises its adaptive embeddings."""

from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .checkpoint_guard import no_larger_than_files, not_finite, refuse_strange_files
from .configuration_mpclip import MPCLIPConfig
from .language_model import LANGUAGE_MODEL_PREFIX, load_from_whole_model
from .source_names import naming_missing_tower, tower_source
from .text_families import text_tower_class
from .text_tower import PromptedTextTower
from .vision_encoder import vision_model_class

# Where vision-language checkpoints hold their vision encoder: "model.vision_tower.", "vision_tower.vision_model.", ...
VISION_TOWER_PREFIX = {r"^(model\.)?(vision_tower|vision_model)\.(vision_model\.)?": ""}


class Towers(NamedTuple):
    """The parts of a new model.

    Attributes:
        config: of the new model, with the compiled prompts.
        text_model: the prompted LLM.
        vision_model: the vision encoder.
        tokenizer: of the LLM, with the adaptive tokens added.
    """

    config: MPCLIPConfig
    text_model: PreTrainedModel
    vision_model: PreTrainedModel
    tokenizer: object


def load_towers(
    text: str,
    vision: str,
    tokenizer,
    text_kwargs: dict | None,
    vision_kwargs: dict | None,
    text_config: PreTrainedConfig | None,
    config_kwargs: dict,
) -> Towers:
    """Load both towers and compile the prompts.

    Args:
        text, vision, tokenizer, text_kwargs, vision_kwargs, text_config: as for `MPCLIPModel.from_pretrained_towers`.
        config_kwargs: options of [`MPCLIPConfig`].

    Raises:
        ValueError: options contradict each other, or the weights of a tower are missing, not finite or quantised.
        OSError: a tower is not found.
        ImportError: as `tower_source`.
    """
    from_scratch = text_config is not None
    text, vision = tower_source(text), tower_source(vision)
    with naming_missing_tower(text):
        text_config = text_config or AutoConfig.from_pretrained(text).get_text_config()
    with naming_missing_tower(vision):
        vision_config = AutoConfig.from_pretrained(vision)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    config = MPCLIPConfig(text_config, vision_config, **config_kwargs)
    text_config = config.text_config  # cut after text_layers
    vision_class, vision_own = vision_model_class(vision_config)
    tokenizer = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(text)
    if from_scratch:
        text_config.vocab_size = len(tokenizer)
    config.compile_prompts(tokenizer)

    tower_class, own = text_tower_class(type(text_config)), tower_arguments(config)
    text_model = (
        tower_class(text_config, **own) if from_scratch else _load_tower(tower_class, text, text_config, text_kwargs, **own)
    )
    vision_model = _load_tower(vision_class, vision, vision_config, vision_kwargs, **vision_own)
    config.text_config, config.vision_config = text_model.config, vision_model.config
    return Towers(config, text_model, vision_model, tokenizer)


def tower_arguments(config: MPCLIPConfig) -> dict:
    """The arguments of the prompted text tower besides the LLM's config.

    Args:
        config: of the model. Its prompts need not be compiled.

    Returns:
        `adaptive_token_ids`, `boundary_layer` and `text_attention` of `PromptedTextTower`.
    """
    ids = config.adaptive_token_ids
    if config.text_pooling == "prompts" and config.prompt_tree is None and config.num_adaptive_tokens:
        # The prompts are not compiled yet. These ids give the number of embeddings; `compile_prompts` sets the true ids.
        ids = range(config.text_config.vocab_size, config.text_config.vocab_size + config.num_adaptive_tokens)
    own = {name: getattr(config, name) for name in ("boundary_layer", "text_attention")}
    return {"adaptive_token_ids": tuple(ids), **own}


def _load_tower(tower_class: type[PreTrainedModel], source: str, config, kwargs: dict | None, **own) -> PreTrainedModel:
    """Load a pretrained tower; refuse missing and non-finite weights.

    Expected differences are not reported: the adaptive embeddings are new, and heads of the checkpoint are not used.
    """
    kwargs = {"dtype": torch.float32, **(kwargs or {})}
    _refuse_quantised(source, kwargs.get("quantization_config") or getattr(config, "quantization_config", None))
    is_text = issubclass(tower_class, PromptedTextTower)
    names = {"key_mapping": LANGUAGE_MODEL_PREFIX} if is_text else {}
    loading = {"config": config, "output_loading_info": True, **own, **kwargs}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    refuse_strange_files(source)
    try:
        with no_larger_than_files(source):
            tower, info = tower_class.from_pretrained(source, **names, **loading)
        if info["missing_keys"] and not is_text:
            within, found_within = tower_class.from_pretrained(source, key_mapping=VISION_TOWER_PREFIX, **loading)
            tower, info = (tower, info) if found_within["missing_keys"] else (within, found_within)
        missing = [key for key in info["missing_keys"] if not key.startswith(("adaptive_embedding", "boundary_embedding"))]
        if missing and is_text and (found := load_from_whole_model(tower_class, source, config, own, kwargs)):
            tower, missing = found
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(missing):
        raise ValueError(
            f"{source} lacks {len(missing)} weights of {tower_class.__name__}, {missing[0]} first. It is incomplete or of "
            "another kind of model: download it again, or give another checkpoint."
        )
    if broken := not_finite(tower):
        raise ValueError(
            f"{source} has NaN or infinite values in {len(broken)} weights, {broken[0]} first. It is damaged: download it "
            "again, or give another checkpoint."
        )
    return tower


def _refuse_quantised(source: str, quantization) -> None:
    """Raise a ValueError if a tower would be quantised: transformers saves quantised weights of whole models only.

    Args:
        source: folder or Hub id of the tower, for the message.
        quantization: the `quantization_config`, an object or a dict, or None. One that only dequantises passes.
    """
    if quantization is None:
        return
    settings = quantization if isinstance(quantization, dict) else vars(quantization)
    if not settings.get("dequantize"):
        method = settings.get("quant_method")
        raise ValueError(
            f"{source} would be quantised ({getattr(method, 'value', method)}), and a model with one quantised tower cannot be "
            "saved. Build it from unquantised towers, save it, and quantise it when you load it: "
            "MPCLIPModel.from_pretrained(folder, quantization_config=...)."
        )


def adaptive_rows(text_model: PreTrainedModel, tokenizer, words: list[str] | None) -> torch.Tensor:
    """Initial values of the M adaptive embeddings, at the scale of the output of `get_input_embeddings()`.

    `resize_token_embeddings` would draw them so close together that all prompts would give nearly the same embedding.

    Args:
        text_model: the prompted LLM.
        tokenizer: of the LLM.
        words: M or more words or phrases whose mean embeddings are the initial values. None: draw them from a normal
            distribution with the mean and the standard deviation of the embeddings, always the same ones.

    Returns:
        (M, H).

    Raises:
        ValueError: there are fewer than M words.
    """
    M = len(text_model.adaptive_token_ids)
    embed = text_model.get_input_embeddings()
    device = embed.weight.device
    with torch.no_grad():
        if words is not None:
            if len(words) < M:
                raise ValueError(f"adaptive_init has {len(words)} words for {M} adaptive tokens; give one word per token.")
            ids = [tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in words[:M]]
            rows = [embed(torch.tensor(i, device=device)).mean(dim=0) for i in ids]
            return torch.stack(rows) if rows else torch.empty(0, text_model.config.hidden_size)
        sample = torch.randint(embed.num_embeddings, (4096,), generator=torch.Generator().manual_seed(0))
        embedded = embed(sample.to(device)).float()  # (4096, H)
        noise = torch.randn(M, embedded.shape[1], generator=torch.Generator().manual_seed(1)).to(device)
        return embedded.mean(dim=0) + noise * embedded.std(dim=0)
