"""`text_layers`: an LLM that is cut after its first layers."""

import pytest
import torch
from conftest import TEXT_CONFIGS, make_tokenizer, save_towers
from tiny_llms import FOUND, batch, plain_decoder, tiny_config
from transformers import MODEL_MAPPING, AutoModel

from modeling_mpclip import MPCLIPConfig, MPCLIPModel
from modeling_mpclip.configuration_mpclip import first_layers
from modeling_mpclip.family_table import family_of


@pytest.mark.parametrize(
    "family", [name for name in ("llama", "gemma3_text", "qwen3", "qwen3_next", "lfm2", "zaya") if name in FOUND]
)
def test_a_cut_decoder_gives_the_states_of_its_last_layer(family):
    config = tiny_config(family)
    whole = plain_decoder(config)
    cut = MODEL_MAPPING[type(config)](first_layers(config, 1)).eval()
    cut.load_state_dict(whole.state_dict(), strict=False)
    ids, mask = batch()
    ids, mask = ids[:1, :7], mask[:1, :7]
    seen = []
    whole.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        whole(ids, attention_mask=mask, use_cache=False)
        state = seen[0][0] if isinstance(seen[0], tuple) else seen[0]  # (1, 7, H)
        expected = getattr(whole, family_of(family).norm)(state)
        assert torch.allclose(cut(ids, attention_mask=mask, use_cache=False).last_hidden_state, expected, atol=1e-5)


def test_a_cut_model_has_the_lower_layers_alone_and_keeps_its_depth(tmp_path):
    save_towers(tmp_path)
    options = dict(tokenizer=make_tokenizer(), num_prompts=3, projection_dim=12, pooling_width=16, pooling_heads=2)
    model = MPCLIPModel.from_pretrained_towers(
        str(tmp_path / "text"), str(tmp_path / "vision"), text_layers=2, **options
    ).eval()
    whole = AutoModel.from_pretrained(tmp_path / "text")
    assert len(model.text_model.layers) == 2 and model.config.boundary_layer == 1
    for name, weight in model.text_model.layers.state_dict().items():
        assert torch.equal(weight, whole.layers.state_dict()[name])
    model.save_pretrained(tmp_path / "model")
    again = MPCLIPModel.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again.get_text_features(ids).pooler_output, model.get_text_features(ids).pooler_output)


def test_the_config_of_the_user_is_not_changed():
    config = TEXT_CONFIGS["gemma3"]()
    assert MPCLIPConfig(config, text_layers=1).text_config.layer_types == config.layer_types[:1]
    assert config.num_hidden_layers == len(config.layer_types) == 3


def test_a_depth_that_the_llm_does_not_have_is_refused():
    with pytest.raises(ValueError, match="text_layers=9, but the LLM has 3 layers"):
        MPCLIPConfig(TEXT_CONFIGS["llama"](), text_layers=9)
    if "gemma3n_text" in FOUND:
        with pytest.raises(ValueError, match="a gemma3n_text cannot be cut"):
            MPCLIPConfig(tiny_config("gemma3n_text"), text_layers=2)
