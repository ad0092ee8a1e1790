"""The table of LLM families that serve as text towers: by model type, how the prompts of such a decoder are computed.

A family is listed only if tests/test_text_families.py shows that its text tower equals separate passes of the untouched
decoder: values and gradients. docs/towers.md shows the table.
"""

from typing import Literal, NamedTuple

from transformers import CONFIG_MAPPING


class Family(NamedTuple):
    """How the forward pass of a decoder is composed, as far as decoders differ in it.

    Attributes:
        models: checkpoints of the family, as people call them.
        path: "tree": one pass over text and prompt tree, under prompt-wise masks (text_tower.py). "branches": the text first,
            then the prompts from its cache, by the decoder's own forward pass (text_branches.py). For decoders whose tokens
            are mixed by more than a mask: states, convolutions, chunks, inputs per layer. "rows": the same, for decoders that
            do not continue a cache by several tokens: every prompt with a text of its own.
        windows: which layers have a sliding window: those that `config.layer_types` names, every layer if
            `config.sliding_window` is set, or none, whatever the config says.
        norm: name of the norm behind the last layer.
        multiplied: what the decoder multiplies by `config.embedding_multiplier`: embeddings, or only those that it looks up
            itself.
    """

    models: str
    path: Literal["tree", "branches", "rows"] = "tree"
    windows: Literal["none", "layer types", "every layer"] = "none"
    norm: str = "norm"
    multiplied: Literal["nothing", "embeddings", "its own embeddings"] = "nothing"


FAMILIES = {
    "afmoe": Family("Arcee Trinity", windows="layer types"),
    "apertus": Family("Apertus"),
    "apertus1p5_text": Family("Apertus 1.5"),
    "arcee": Family("Arcee AFM"),
    "aria_text": Family("Aria"),
    "bamba": Family("Bamba", "rows", norm="final_layernorm"),
    "bitnet": Family("BitNet"),
    "cohere": Family("Command R, Aya"),
    "cohere2": Family("Command R7B, Command A", windows="layer types"),
    "cohere2_moe": Family("Command A MoE", windows="layer types"),
    "cwm": Family("Code World Model", windows="layer types"),
    "deepseek_v2": Family("DeepSeek-V2"),
    "deepseek_v3": Family("DeepSeek-V3, Kimi K2, Moonlight"),
    "diffllama": Family("DiffLlama"),
    "doge": Family("Doge"),
    "dots1": Family("dots.llm1", windows="layer types"),
    "ernie4_5": Family("ERNIE 4.5"),
    "ernie4_5_moe": Family("ERNIE 4.5 MoE"),
    "exaone": Family("EXAONE 3"),
    "exaone4": Family("EXAONE 4", windows="layer types"),
    "exaone_moe": Family("K-EXAONE", windows="layer types"),
    "falcon_h1": Family("Falcon-H1", "branches", norm="final_layernorm", multiplied="its own embeddings"),
    "flex_olmo": Family("FlexOlmo"),
    "flint": Family("Flint", windows="layer types"),
    "gemma": Family("Gemma"),
    "gemma2": Family("Gemma 2", windows="layer types"),
    "gemma3_text": Family("Gemma 3", windows="layer types"),
    "gemma3n_text": Family("Gemma 3n", "branches", windows="layer types"),
    "gemma4_text": Family("Gemma 4", "branches", windows="layer types"),
    "gemma4_unified_text": Family("Gemma 4 12B", "branches", windows="layer types"),
    "glm": Family("GLM-4-9B"),
    "glm4": Family("GLM-4-0414"),
    "glm4_moe": Family("GLM-4.5, GLM-4.6"),
    "glm4_moe_lite": Family("GLM-4.7-Flash"),
    "glm4v_text": Family("GLM-4.1V"),
    "gpt_neox": Family("GPT-NeoX, Pythia", norm="final_layer_norm"),
    "gpt_oss": Family("gpt-oss", windows="layer types"),
    "granite": Family("Granite 3", multiplied="embeddings"),
    "granite_swa": Family("Granite with sliding windows", "branches", windows="layer types"),
    "granitemoe": Family("Granite 3 MoE", multiplied="embeddings"),
    "granitemoe_swa": Family("Granite MoE with sliding windows", "branches", windows="layer types"),
    "granitemoehybrid": Family("Granite 4", "branches"),
    "granitemoeshared": Family("Granite 3 MoE with shared experts", multiplied="embeddings"),
    "helium": Family("Helium"),
    "hunyuan_v1_dense": Family("Hunyuan"),
    "hunyuan_v1_moe": Family("Hunyuan MoE"),
    "hy_v3": Family("Hunyuan 3"),
    "hyperclovax": Family("HyperCLOVA X", multiplied="embeddings"),
    "inkling2_text": Family("Inkling 2", "rows"),
    "inkling_text": Family("Inkling", "rows"),
    "internlm3": Family("InternLM3"),
    "iquestcoder": Family("IQuest-Coder"),
    "jais2": Family("Jais 2"),
    "jamba": Family("Jamba", "rows", norm="final_layernorm"),
    "jetmoe": Family("JetMoE", "branches"),
    "kimi_linear": Family("Kimi Linear", "rows"),
    "kolibri1": Family("Kolibri", windows="layer types"),
    "laguna": Family("Laguna", windows="layer types"),
    "lara_mini": Family("Lara Mini", "branches", windows="layer types"),
    "lfm2": Family("LFM2", "branches", norm="embedding_norm"),
    "lfm2_moe": Family("LFM2 MoE", "branches", norm="embedding_norm"),
    "lfm3": Family("LFM3", "branches", windows="layer types"),
    "llama": Family("Llama 1 to 3, SmolLM, SmolLM2, TinyLlama"),
    "llama4_text": Family("Llama 4", "branches"),
    "longcat_flash": Family("LongCat-Flash", "branches"),
    "mellum": Family("Mellum", windows="layer types"),
    "mimo_v2_flash": Family("MiMo-V2-Flash", windows="layer types"),
    "minicpm3": Family("MiniCPM3"),
    "minimax": Family("MiniMax-Text-01, MiniMax-M1", "rows"),
    "minimax_m2": Family("MiniMax-M2"),
    "minimax_m3_vl_text": Family("MiniMax-M3", "branches"),
    "ministral": Family("Ministral", windows="layer types"),
    "ministral3": Family("Ministral 3", windows="every layer"),
    "mistral": Family("Mistral", windows="every layer"),
    "mixtral": Family("Mixtral", windows="every layer"),
    "nanochat": Family("nanochat", "branches"),
    "nemotron": Family("Nemotron, Minitron"),
    "nemotron_h": Family("Nemotron-H, Nemotron 3", "branches", norm="norm_f"),
    "olmo": Family("OLMo"),
    "olmo2": Family("OLMo 2"),
    "olmo3": Family("OLMo 3", windows="layer types"),
    "olmo_hybrid": Family("OLMo Hybrid", "branches"),
    "olmoe": Family("OLMoE"),
    "persimmon": Family("Persimmon", norm="final_layernorm"),
    "phi": Family("Phi-1, Phi-2", norm="final_layernorm"),
    "phi3": Family("Phi-3, Phi-4", windows="every layer"),
    "phimoe": Family("Phi-3.5-MoE", windows="every layer"),
    "qwen2": Family("Qwen2, Qwen2.5", windows="layer types"),
    "qwen2_5_vl_text": Family("Qwen2.5-VL", windows="layer types"),
    "qwen2_moe": Family("Qwen1.5-MoE, Qwen2-MoE", windows="layer types"),
    "qwen2_vl_text": Family("Qwen2-VL", windows="layer types"),
    "qwen3": Family("Qwen3", windows="layer types"),
    "qwen3_5_moe_text": Family("Qwen3.5-MoE", "branches"),
    "qwen3_5_text": Family("Qwen3.5", "branches"),
    "qwen3_moe": Family("Qwen3-MoE", windows="every layer"),
    "qwen3_next": Family("Qwen3-Next", "branches"),
    "qwen3_vl_moe_text": Family("Qwen3-VL-MoE"),
    "qwen3_vl_text": Family("Qwen3-VL"),
    "sarvam_mla": Family("Sarvam 105B"),
    "sarvam_moe": Family("Sarvam 30B"),
    "seed_oss": Family("Seed-OSS"),
    "smollm3": Family("SmolLM3", windows="layer types"),
    "solar_open": Family("Solar Open"),
    "stablelm": Family("StableLM"),
    "starcoder2": Family("StarCoder2", windows="every layer"),
    "vaultgemma": Family("VaultGemma", windows="layer types"),
    "youtu": Family("Youtu-LLM"),
    "zaya": Family("ZAYA1", "branches", windows="layer types"),
}


def family_of(model_type: str) -> Family:
    """The row of the table for a decoder's `config.model_type`.

    Raises:
        ValueError: the table has no such row.
    """
    if model_type not in FAMILIES:
        known = ", ".join(name for name in FAMILIES if name in CONFIG_MAPPING)
        raise ValueError(
            f"A text model of type {model_type!r} is not a decoder of a supported family. Give a model of one of these types: "
            f"{known}."
        )
    return FAMILIES[model_type]
