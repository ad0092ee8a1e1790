"""The text tower of each LLM family, as a class; and a factory for families without a class of their own."""

import functools

import transformers
from transformers import (
    MODEL_MAPPING,
    Gemma2Model,
    Gemma3TextModel,
    GemmaModel,
    LlamaModel,
    MistralModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Model,
    Qwen3Model,
)

from .text_tower import PromptedTextTower


class PromptedLlamaModel(PromptedTextTower, LlamaModel):
    """Llama and SmolLM2 with prompts."""


class PromptedGemmaModel(PromptedTextTower, GemmaModel):
    """Gemma with prompts."""


class PromptedGemma2Model(PromptedTextTower, Gemma2Model):
    """Gemma 2 with prompts. It soft-caps its attention scores, so it runs with eager or flex attention."""


class PromptedGemma3TextModel(PromptedTextTower, Gemma3TextModel):
    """The text model of Gemma 3 with prompts."""


class PromptedQwen2Model(PromptedTextTower, Qwen2Model):
    """Qwen2 and Qwen2.5 with prompts."""


class PromptedQwen3Model(PromptedTextTower, Qwen3Model):
    """Qwen3 with prompts."""


class PromptedMistralModel(PromptedTextTower, MistralModel):
    """Mistral with prompts."""


FAMILIES = {
    cls.__bases__[1]: cls
    for cls in (
        PromptedLlamaModel,
        PromptedGemmaModel,
        PromptedGemma2Model,
        PromptedGemma3TextModel,
        PromptedQwen2Model,
        PromptedQwen3Model,
        PromptedMistralModel,
    )
}


def text_tower_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """The class of the text tower for an LLM.

    A family without a class above gets one from `make_prompted_class`. Its constructor checks that the structure fits.

    Args:
        config_class: class of the LLM's config, such as `LlamaConfig`.

    Raises:
        ValueError: transformers has no model for such a config.
    """
    if config_class not in MODEL_MAPPING:
        raise ValueError(
            f"transformers has no model for a text config of class {config_class.__name__}. "
            "Give the config of a decoder LLM, such as Llama, Gemma or Qwen3."
        )
    decoder = MODEL_MAPPING[config_class]
    return FAMILIES.get(decoder) or make_prompted_class(decoder)


@functools.lru_cache
def make_prompted_class(decoder: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Make `class Prompted<Decoder>(PromptedTextTower, <Decoder>)` at run time.

    A process that unpickles such a tower looks up its class by name in this module; `__getattr__` below then makes it.

    Args:
        decoder: a decoder class of transformers.
    """
    return type(f"Prompted{decoder.__name__}", (PromptedTextTower, decoder), {"__module__": __name__})


def __getattr__(name: str) -> type[PreTrainedModel]:
    decoder = getattr(transformers, name.removeprefix("Prompted"), None) if name.startswith("Prompted") else None
    if not isinstance(decoder, type) or not issubclass(decoder, PreTrainedModel):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return make_prompted_class(decoder)
