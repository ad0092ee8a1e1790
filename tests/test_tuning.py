"""LoRA adapts all projections of a layer, whatever a family calls them."""

import pytest
from tiny_llms import plain_decoder, tiny_config
from torch import nn

from mpclip.training.tuning import linear_parts

ATTENTION = [f"self_attn.{name}_proj" for name in "koqv"]
PARTS = {
    "llama": ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *ATTENTION],
    "phi3": ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"],
    "phi": ["mlp.fc1", "mlp.fc2", "self_attn.dense", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"],
    "mixtral": ATTENTION,  # experts are no linear layers
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
