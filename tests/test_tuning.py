"""LoRA adapts all projections of a layer, whatever a family calls them."""

import pytest
import torch
from conftest import VISION_CONFIGS, make_tokenizer
from tiny_llms import plain_decoder, tiny_config
from torch import nn

from modeling_mpclip import MPCLIPConfig, MPCLIPModel
from modeling_mpclip.family_table import FAMILIES
from mpclip.training.options import ModelArguments
from mpclip.training.tuning import linear_parts, prepare_tuning

ATTENTION = [f"self_attn.{name}_proj" for name in "koqv"]
PARTS = {
    "llama": ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *ATTENTION],
    "phi3": ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"],
    "phi": ["mlp.fc1", "mlp.fc2", "self_attn.dense", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"],
    "mixtral": ATTENTION,  # experts are no linear layers
    "nemotron_h": [f"mixer.{name}_proj" for name in ("down", "k", "o", "q")]
    + [f"mixer.shared_experts.{name}_proj" for name in ("down", "up")]
    + [f"mixer.{name}_proj" for name in ("up", "v")],
    "falcon_h1": ["feed_forward.down_proj", "feed_forward.gate_proj", "feed_forward.up_proj", *ATTENTION],
}


@pytest.mark.parametrize("family", PARTS)
def test_the_projections_of_a_family(family):
    assert linear_parts(plain_decoder(tiny_config(family)).layers) == PARTS[family]


def test_no_weight_that_is_read_past_its_module_gets_an_adapter():
    parts = linear_parts(plain_decoder(tiny_config("gemma3n_text")).layers)
    assert set(PARTS["llama"]) < set(parts) and not [part for part in parts if part.startswith("altup")]


def test_a_layer_without_projections_is_refused():
    with pytest.raises(ValueError, match="no linear layer to adapt"):
        linear_parts([nn.LayerNorm(4)])


def adapted_model(family: str):
    """A tiny model with random LoRA adapters in all layers of its LLM, and the names of the linear layers that a text calls."""
    config = tiny_config(family)
    config.vocab_size = 400
    sizes = dict(num_prompts=2, projection_dim=8, pooling_width=8, pooling_heads=2)
    learned = "boundary" if FAMILIES[family].path == "tree" else "input"
    config = MPCLIPConfig(config, VISION_CONFIGS["vit"](), adaptive_tokens=learned, boundary_layer=None, **sizes)
    config.compile_prompts(make_tokenizer())
    torch.manual_seed(0)
    model, called = MPCLIPModel(config).eval(), set()
    for name, module in model.text_model.layers.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, output, name=name: called.add(name))
    model.get_text_features(TEXTS)
    peft = prepare_tuning(model, ModelArguments(text_tuning="lora", lora_rank=2)).eval()
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return peft, called


TEXTS = torch.tensor([[20, 30, 40, 50], [60, 70, 80, 90]])


@pytest.mark.parametrize("family", ["phi3", "deepseek_v3", "qwen3_next", "lfm2", "qwen3_moe", "glm4"])
def test_adapters_in_all_projections_train_and_are_merged_exactly(family):
    """Fused projections, low-rank ones, states, convolutions, experts, rotations of a part."""
    peft, called = adapted_model(family)
    adapted = {name.removesuffix(".lora_B.default") for name, _ in peft.named_modules() if name.endswith("lora_B.default")}
    assert adapted == {f"base_model.model.text_model.layers.{name}" for name in called}
    embeds = peft.get_text_features(TEXTS).pooler_output  # (2, D)
    (embeds * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    gradients = {name: parameter.grad for name, parameter in peft.named_parameters() if "lora_" in name}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    with torch.no_grad(), peft.disable_adapter():
        assert (peft.get_text_features(TEXTS).pooler_output - embeds).abs().max() > 1e-3
    merged = peft.merge_and_unload().get_text_features(TEXTS).pooler_output
    torch.testing.assert_close(merged, embeds, atol=1e-5, rtol=1e-4)
