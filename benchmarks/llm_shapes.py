"""Shapes of LLMs as published, for benchmarks that need no weights. This module does not import transformers."""

from collections.abc import Callable
from importlib import import_module

REAL = "smollm2-135m"  # the tower that benchmarks load with its pretrained weights


def shape(kind: str, **values) -> Callable:
    """A function that makes a config.

    Args:
        kind: class of transformers.
        values: of the config, where they are not the defaults of the class.
    """
    return lambda: getattr(import_module("transformers"), kind)(**values)


TEXT_CONFIGS = {
    "SmolLM2-135M": shape(
        "LlamaConfig",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "Gemma 3 270M": shape(
        "Gemma3TextConfig",
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
    ),
    "Gemma-2B": shape(
        "GemmaConfig",
        vocab_size=256000,
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
    ),
    "LLaMA-3-8B": shape(
        "LlamaConfig",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
SHAPES = {name.lower().replace(" ", "-"): config for name, config in TEXT_CONFIGS.items() if name.lower() != REAL}
