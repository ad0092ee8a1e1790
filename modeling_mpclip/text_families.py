"""The text tower of each LLM family, as a class; and a factory for families without a class of their own."""

import functools
from typing import Literal

import transformers
from transformers import (
    CONFIG_MAPPING,
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

from .family_table import family_of
from .text_branches import BranchedTextTower
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


WRITTEN = {
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

TOWERS = {"Prompted": PromptedTextTower, "Branched": BranchedTextTower}  # by the first word of a class's name


def text_tower_class(
    config_class: type[PreTrainedConfig], path: Literal["tree", "branches"] | None = None
) -> type[PreTrainedModel]:
    """The class of the text tower for an LLM.

    Args:
        config_class: class of the LLM's config, such as `LlamaConfig`.
        path: how the prompts are computed, for a comparison; see [`Family`]. Default: by the table of families.

    Raises:
        ValueError: the LLM is of no family of the table.
    """
    family = family_of(config_class.model_type)
    decoder = MODEL_MAPPING[CONFIG_MAPPING[config_class.model_type]]
    if (path or family.path) != "tree":
        return make_class("Branched", decoder)
    return WRITTEN.get(decoder) or make_class("Prompted", decoder)


@functools.lru_cache
def make_class(tower: str, decoder: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Make a class such as `class PromptedOlmoModel(PromptedTextTower, OlmoModel)` at run time.

    A process that unpickles such a tower looks up its class by name in this module; `__getattr__` below then makes it.

    Args:
        tower: a key of `TOWERS`.
        decoder: a decoder class of transformers.
    """
    return type(f"{tower}{decoder.__name__}", (TOWERS[tower], decoder), {"__module__": __name__})


def __getattr__(name: str) -> type[PreTrainedModel]:
    tower = next((word for word in TOWERS if name.startswith(word)), None)
    decoder = getattr(transformers, name.removeprefix(tower), None) if tower else None
    if not isinstance(decoder, type) or not issubclass(decoder, PreTrainedModel):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return make_class(tower, decoder)
