"""Text towers of vision-language checkpoints, and of experts that were saved one by one, have the same weights to the digit."""

import pytest
import torch
from conftest import make_tokenizer, save_towers
from safetensors.torch import load_file, save_file
from tiny_llms import tiny_config
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING, AutoModelForCausalLM

from modeling_mpclip import MPCLIPModel

VISION = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    depth=1,
    num_heads=2,
    image_size=16,
    patch_size=8,
    out_hidden_size=32,
    deepstack_visual_indexes=[0],
)
VISION_LANGUAGE = {
    "qwen3_vl": "qwen3_vl_text",
    "gemma3": "gemma3_text",
    "smolvlm": "llama",
    "llama4": "llama4_text",  # its experts are saved in a layout of their own
    "qwen3_5_moe": "qwen3_5_moe_text",
}
VISION_LANGUAGE = {name: text for name, text in VISION_LANGUAGE.items() if name in CONFIG_MAPPING}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A vision tower and a tokenizer."""
    folder = tmp_path_factory.mktemp("towers")
    save_towers(folder)
    return folder


def text_config(name: str):
    config = tiny_config(name)
    config.vocab_size = config.vocab_size_per_layer_input = len(make_tokenizer())
    return config


def save_vision_language(name: str, folder):
    """A tiny random vision-language model; returns its language model."""
    config_class = CONFIG_MAPPING[name]
    vision = VISION | ({"model_type": kind} if (kind := config_class().vision_config.model_type) else {})
    config = config_class(text_config=text_config(VISION_LANGUAGE[name]).to_dict(), vision_config=vision)
    torch.manual_seed(0)
    whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config_class](config)
    whole.save_pretrained(folder)
    decoder = MODEL_MAPPING[CONFIG_MAPPING[VISION_LANGUAGE[name]]]
    return next(module for module in whole.modules() if type(module) is decoder)


def joined(text, towers, **options):
    return MPCLIPModel.from_pretrained_towers(
        text,
        str(towers / "vision"),
        make_tokenizer(),
        num_prompts=3,
        projection_dim=12,
        pooling_width=16,
        pooling_heads=2,
        adaptive_tokens="input",
        **options,
    ).eval()


def assert_same_weights(tower, decoder) -> None:
    own, expected = tower.state_dict(), decoder.state_dict()
    assert own.keys() - expected.keys() == {"adaptive_embedding.weight"} and not expected.keys() - own.keys()
    for name, weight in expected.items():
        assert own[name].equal(weight), name


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_the_language_model_of_a_vision_language_model_is_the_text_tower(name, towers, tmp_path):
    decoder = save_vision_language(name, tmp_path)
    assert_same_weights(joined(str(tmp_path), towers).text_model, decoder)


def test_names_of_newer_checkpoints_are_known_too(towers, tmp_path):
    decoder = save_vision_language("gemma3", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {key.replace("language_model.model.", "model.language_model."): weight for key, weight in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    assert_same_weights(joined(str(tmp_path), towers).text_model, decoder)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_experts_that_were_saved_one_by_one_are_joined(name, towers, tmp_path):
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(text_config(name))
    whole.save_pretrained(tmp_path)
    assert any("experts.3.down_proj" in key for key in load_file(tmp_path / "model.safetensors"))
    assert_same_weights(joined(str(tmp_path), towers).text_model, whole.model)


def test_what_a_vision_language_model_lacks_is_named(towers, tmp_path):
    save_vision_language("qwen3_vl", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.language_model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of PromptedQwen3VLTextModel, layers.1.mlp.up_proj.weight first"):
        joined(str(tmp_path), towers)


def test_a_language_model_of_no_family_is_refused(towers, tmp_path):
    CONFIG_MAPPING["mllama"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type 'mllama_text_model' is not a decoder of a supported family"):
        joined(str(tmp_path), towers)


@pytest.mark.parametrize("name", ["qwen3_5_moe_text", "gemma4_text"])
def test_a_model_with_such_a_tower_is_saved_and_loaded(name, towers, tmp_path):
    AutoModelForCausalLM.from_config(text_config(name)).save_pretrained(tmp_path / "text")
    model = joined(str(tmp_path / "text"), towers)
    model.save_pretrained(tmp_path / "model")
    again = MPCLIPModel.from_pretrained(tmp_path / "model").eval()
    ids = torch.randint(12, 90, (2, 5))
    with torch.no_grad():
        assert again.get_text_features(ids).pooler_output.equal(model.get_text_features(ids).pooler_output)
