"""A tiny random decoder of every LLM family of the table, and its separate passes."""

import torch
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING, MODEL_MAPPING

from modeling_mpclip.family_table import FAMILIES
from modeling_mpclip.prompt_tree import PromptTree

FOUND = [name for name in FAMILIES if name in CONFIG_MAPPING]  # an older transformers lacks some
if Version(transformers.__version__) < Version("5.24"):
    FOUND.remove("doge")  # without a mask, its own attention looks ahead there
WINDOW = 4  # shorter than the texts

_SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    rms_norm_eps=1e-6,
)
_EXPERTS = dict(
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    moe_num_experts=4,
    moe_k=2,
    moe_topk=2,
)
_MIXED = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
_SHARED = dict(  # the last two layers use the keys and values of the first two
    sliding_window=WINDOW,
    num_hidden_layers=4,
    num_kv_shared_layers=2,
    layer_types=["sliding_attention", "full_attention"] * 2,
)
_LATENT = dict(
    num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6, head_dim=4
)
_GROUPED = dict(n_group=1, topk_group=1, n_shared_experts=1, first_k_dense_replace=1)
_DELTA = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)
_PARTLY_ROTATED = dict(partial_rotary_factor=0.5)
_ROTARY_SECTIONS = dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]})
_MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8)
OWN = {
    "afmoe": _MIXED,
    "bamba": dict(**_MAMBA, attn_layer_indices=[1]),
    "cohere2_moe": _MIXED,
    "cwm": _MIXED,
    "exaone_moe": _MIXED,
    "glm4_moe_lite": {**_LATENT, **_GROUPED},
    "glm4v_text": _ROTARY_SECTIONS,
    "granitemoehybrid": dict(
        **_MAMBA,
        layer_types=["linear_attention", "full_attention"],
        embedding_multiplier=3.0,
        shared_intermediate_size=16,
        position_embedding_type="rope",
    ),
    "granitemoeshared": dict(embedding_multiplier=3.0, shared_intermediate_size=16),
    "hyperclovax": dict(embedding_multiplier=3.0),
    "jamba": dict(mamba_d_state=8, mamba_dt_rank=4, attn_layer_offset=1, attn_layer_period=2),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"]),
    "mellum": _MIXED,
    "olmo_hybrid": dict(layer_types=["linear_attention", "full_attention"]),
    "qwen2_5_vl_text": {**_MIXED, **_ROTARY_SECTIONS, "use_sliding_window": True},
    "qwen2_vl_text": {**_MIXED, **_ROTARY_SECTIONS, "use_sliding_window": True},
    "solar_open": _GROUPED,
    "youtu": _LATENT,
    "flint": _MIXED,
    "gemma4_unified_text": dict(**_MIXED, global_head_dim=16),
    "gpt_neox": dict(rotary_pct=0.5, use_parallel_residual=False),
    "granite_swa": dict(**_MIXED, embedding_multiplier=3.0, residual_multiplier=0.7),
    "granitemoe_swa": dict(**_MIXED, embedding_multiplier=3.0, residual_multiplier=0.7),
    "hy_v3": _GROUPED,
    "inkling_text": _MIXED,
    "inkling2_text": _MIXED,
    "kimi_linear": {
        **_LATENT,
        **_GROUPED,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "kolibri1": _MIXED,
    "laguna": _MIXED,
    "lara_mini": _MIXED,
    "lfm3": dict(num_hidden_layers=3, sliding_window=WINDOW, layer_types=["conv", "sliding_attention", "full_attention"]),
    "longcat_flash": {
        **_LATENT,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2,
    },
    "mimo_v2_flash": _MIXED,
    "minimax": dict(layer_types=["linear_attention", "full_attention"], block_size=4),
    "minimax_m3_vl_text": dict(
        index_block_size=2,
        index_topk_blocks=2,
        index_n_heads=2,
        index_head_dim=8,
        layer_types=["minimax_m3_sparse", "full_attention"],
    ),
    "nemotron_h": dict(
        **_GROUPED,
        num_hidden_layers=4,
        layer_types=["linear_attention", "moe", "full_attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=2,
    ),
    "sarvam_mla": {**_LATENT, **_GROUPED},
    "sarvam_moe": _GROUPED,
    "zaya": dict(num_experts_per_tok=1, sliding_window=WINDOW, layer_types=["hybrid", "hybrid_sliding"]),
    "cohere2": _MIXED,
    "deepseek_v2": {**_LATENT, **_GROUPED, "topk_method": "greedy"},
    "deepseek_v3": {**_LATENT, **_GROUPED},
    "dots1": {**_MIXED, **_GROUPED},
    "ernie4_5_moe": dict(moe_layer_start_index=0),
    "exaone4": _MIXED,
    "falcon_h1": dict(
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_ssm=32,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=4,
        embedding_multiplier=3.0,
    ),
    "gemma2": {**_MIXED, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_MIXED, "query_pre_attn_scalar": 8},
    "gemma3n_text": dict(
        **_SHARED,
        hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=96,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.0, 0.5, 0.0],
        altup_num_inputs=2,
    ),
    "gemma4_text": dict(
        **_SHARED,
        hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=96,
        global_head_dim=16,
    ),
    "glm": _PARTLY_ROTATED,
    "glm4": _PARTLY_ROTATED,
    "glm4_moe": {**_PARTLY_ROTATED, **_GROUPED},
    "gpt_oss": _MIXED,
    "granite": dict(embedding_multiplier=3.0, residual_multiplier=0.7),
    "granitemoe": dict(embedding_multiplier=3.0, residual_multiplier=0.7),
    "lfm2": dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "llama4_text": dict(
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0],
        intermediate_size_mlp=48,
        moe_layers=[1],
        floor_scale=4,
    ),
    "minicpm3": {**_LATENT, "scale_emb": 3.0},
    "ministral": _MIXED,
    "ministral3": dict(sliding_window=WINDOW),
    "mistral": dict(sliding_window=WINDOW),
    "mixtral": dict(sliding_window=WINDOW),
    "nemotron": _PARTLY_ROTATED,
    "olmo3": _MIXED,
    "phi": _PARTLY_ROTATED,
    "phi3": dict(sliding_window=WINDOW),
    "phimoe": dict(sliding_window=WINDOW),
    "qwen2": {**_MIXED, "use_sliding_window": True},
    "qwen2_moe": {**_MIXED, "use_sliding_window": True},
    "qwen3": {**_MIXED, "use_sliding_window": True},
    "qwen3_moe": {"sliding_window": WINDOW, "use_sliding_window": True},
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA,
    "smollm3": {**_MIXED, "use_sliding_window": True, "no_rope_layers": [1, 0]},
    "stablelm": {**_PARTLY_ROTATED, "use_parallel_residual": False, "qk_layernorm": True},
    "starcoder2": dict(sliding_window=WINDOW),
    "vaultgemma": {**_MIXED, "query_pre_attn_scalar": 8},
}


def tiny_config(model_type: str):
    """Of two layers: where a family mixes kinds of layers, one of each."""
    return CONFIG_MAPPING[model_type](**{**_SIZES, **_EXPERTS, **OWN.get(model_type, {})})


def plain_decoder(config, seed: int = 0):
    """The untouched decoder with large random weights, in evaluation mode: a wrong mask shows as a difference of order 1."""
    torch.manual_seed(seed)
    decoder = MODEL_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5)
            elif "norm" not in name:
                parameter.normal_(0, 0.5)
    return decoder


TREE = PromptTree(token_ids=(5, 6, 7, 8, 9, 10, 11), parents=(-1, 0, 1, 0, 3, 4, -1), readouts=(2, 5, 6))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four texts: ids and mask, (4, 9) each; padded on the right, on both sides, on the left; the last is empty."""
    mask = torch.tensor([[1] * 7 + [0] * 2, [0] + [1] * 7 + [0], [0] * 6 + [1] * 3, [0] * 9])
    ids = torch.randint(12, 90, mask.shape, generator=torch.Generator().manual_seed(0))
    return ids * mask, mask


def paths(tree: PromptTree) -> list[list[int]]:
    """Token ids of each prompt."""
    rows = []
    for node in tree.readouts:
        row = []
        while node >= 0:
            row, node = [tree.token_ids[node], *row], tree.parents[node]
        rows.append(row)
    return rows


def separate_passes(decoder, ids: torch.Tensor, mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
    """(B, R, H): each text with each prompt alone, unpadded, through the untouched decoder."""
    rows = []
    for row, kept in zip(ids, mask.bool(), strict=True):
        rows += [
            decoder(input_ids=torch.tensor([row[kept].tolist() + path]), use_cache=False).last_hidden_state[0, -1]
            for path in paths(tree)
        ]
    return torch.stack(rows).view(len(ids), len(tree.readouts), -1)
