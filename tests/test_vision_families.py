"""A model on any vision encoder of the table gives the encoder's own tokens and trains all its weights; others are refused."""

import re

import pytest
import torch
from conftest import TEXT_CONFIGS, make_processor, make_tokenizer
from safetensors.torch import load_file, save_file
from tiny_vision import FOUND, PICTURES, inputs_for, model_on, plain_encoder, plain_tokens, tiny_vision_config
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    LlamaConfig,
    SamVisionConfig,
    TimesformerConfig,
    VideoMAEConfig,
    VivitConfig,
    VJEPA2Config,
    initialization,
)

from modeling_mpclip import MPCLIPModel, vision_encoder
from modeling_mpclip.unused_weights import freeze_unread
from modeling_mpclip.vision_families import VISION_FAMILIES, class_tokens, leading_tokens
from mpclip.maps.kinds import attention_maps
from mpclip.maps.seen import see


@pytest.mark.parametrize("family", FOUND)
def test_tokens_gradients_and_checkpoint(family, tmp_path):
    model, inputs = model_on(family), inputs_for(tiny_vision_config(family))
    with torch.no_grad():
        tokens = model.vision_tokens(**inputs)
        torch.testing.assert_close(tokens, plain_tokens(family, inputs), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.train().vision_tokens(**inputs), tokens)  # nothing random; stochastic depth is off
    embeds = model.get_image_features(**inputs).pooler_output
    embeds.square().sum().backward()
    of_image = ("vision_model.", "image_pooling.", "image_projection.")
    trained = {n: p for n, p in model.named_parameters() if n.startswith(of_image) and p.requires_grad}
    assert trained and [name for name, parameter in trained.items() if parameter.grad is None] == []

    model.save_pretrained(tmp_path)
    loaded = MPCLIPModel.from_pretrained(tmp_path)
    assert loaded.image_token_dim == tokens.shape[-1]
    with torch.no_grad():
        torch.testing.assert_close(loaded.get_image_features(**inputs).pooler_output, embeds, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", [name for name in FOUND if VISION_FAMILIES[name].unread])
def test_what_a_family_does_not_read_is_frozen_and_nothing_else(family):
    config = tiny_vision_config(family)
    encoder = vision_encoder.build_vision_model(config)
    encoder(**inputs_for(config)).last_hidden_state.square().sum().backward()
    unread = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    freeze_unread(encoder)
    assert unread == {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("family", ["dinov3_convnext", "efficientnet", "radio", "siglip2_vision_model", "swinv2"])
def test_the_width_is_found_in_a_new_process_that_loads_a_checkpoint(family):
    """transformers then makes tensors without numbers, and torch.linspace makes one with numbers."""
    config = tiny_vision_config(family)
    vision_encoder._width.cache_clear()
    with torch.device("meta"), initialization.meta_device_safe_creation_ops():
        width = vision_encoder.token_width(config)
    assert width == plain_tokens(family, inputs_for(config)).shape[-1]


def test_a_stray_field_of_the_config_does_not_tell_the_width():
    config = tiny_vision_config("efficientnet")
    config.hidden_size = 7
    assert vision_encoder.token_width(config) == 320


def test_the_map_of_a_wide_picture_keeps_rows_and_columns():
    pixels = {"pixel_values": torch.randn(1, 3, 36, 66)}
    for family in ("dinov3_convnext", "resnet"):
        with torch.no_grad():
            torch.testing.assert_close(model_on(family).vision_tokens(**pixels), plain_tokens(family, pixels))


def test_patches_are_no_longer_masked_in_a_checkpoint_of_before(tmp_path):
    model = model_on("vit_mae")
    model.vision_model.config.mask_ratio = 0.75
    model.save_pretrained(tmp_path)
    loaded, pixels = MPCLIPModel.from_pretrained(tmp_path), inputs_for(tiny_vision_config("vit_mae"))
    with torch.no_grad():
        assert loaded.vision_tokens(**pixels).shape == (2, 17, 16)


def test_a_given_encoder_masks_nothing_either():
    whole = model_on("vit_mae")
    given = plain_encoder("vit_mae")
    assert given.config.mask_ratio == 0.75
    model = MPCLIPModel(whole.config, whole.text_model, given)
    with torch.no_grad():
        assert model.vision_tokens(**inputs_for(given.config)).shape == (2, 17, 16)


# Class tokens, registers and others in the order of the encoder.
LEADING = {
    "deit": (1, 2),
    "dinov3_vit": (1, 4),
    "pixio": (8, 8),
    "radio": (2, 5),
    "siglip_vision_model": (0, 0),
}


@pytest.mark.parametrize("family", LEADING)
def test_class_tokens_and_registers_can_be_left_out(family):
    config = tiny_vision_config(family)
    assert (class_tokens(config), leading_tokens(config)) == LEADING[family]
    model, inputs = model_on(family, image_tokens="patches"), inputs_for(config)
    places = (config.image_size // 8) ** 2
    with torch.no_grad():
        output = model.get_image_features(**inputs)
        assert (
            output.last_hidden_state.shape[1] == places + LEADING[family][1] and output.pooling_attentions.shape[-1] == places
        )
        tokens = output.last_hidden_state[:, -places:]
        torch.testing.assert_close(
            output.prompt_embeds.flatten(1), model.image_projection(model.image_pooling(tokens)[0]).flatten(1)
        )
        cached = model.get_image_features(vision_hidden_states=output.last_hidden_state)
        torch.testing.assert_close(cached.pooler_output, output.pooler_output)
        frames = inputs["pixel_values"][None]  # (1, 2, C, H, W)
        video = model.get_video_features(frames, torch.tensor([[0, 1]])).pooler_output
        torch.testing.assert_close(video[0], output.pooler_output[1], atol=1e-5, rtol=1e-4)


# A Swin has patches of 4 pixels, and joins them.
@pytest.mark.parametrize("family, side", [("dinov3_vit", 4), ("swin", 4), ("convnext", 4), ("segformer", 5)])
def test_maps_have_a_value_for_every_place_and_none_for_other_tokens(family, side):
    model, processor = model_on(family), make_processor(make_tokenizer())
    maps = attention_maps(model, see(model, processor, images=PICTURES[:1]))[:, 0]  # (1, K, h, w)
    with torch.no_grad():
        weights = model.get_image_features(processor(images=PICTURES[:1])["pixel_values"]).pooling_attentions.mean(dim=2)
    assert maps.shape == (1, 2, side, side)
    torch.testing.assert_close(maps.flatten(2), weights[..., -(side**2) :])


@pytest.mark.parametrize("family", ["pvt", "cvt"])
def test_the_class_token_is_that_of_the_output(family):
    """The last stage of both has one; CvT does not return it."""
    if family == "cvt":
        with pytest.raises(ValueError, match="CvtModel has none"):
            model_on(family, image_pooling="cls")
    else:
        assert model_on(family, image_pooling="cls").image_pooling is None


def test_a_class_token_that_is_left_out_cannot_be_pooled():
    with pytest.raises(ValueError, match="image_tokens='patches' leaves out"):
        model_on("vit", image_pooling="cls", image_tokens="patches")


@pytest.mark.parametrize("config_class", [VideoMAEConfig, VivitConfig, VJEPA2Config, TimesformerConfig])
def test_video_encoders_are_refused_with_what_to_use(config_class):
    with pytest.raises(ValueError, match=f"'{config_class.model_type}' .*Give an image encoder.*get_video_features"):
        vision_encoder.vision_model_class(config_class())


@pytest.mark.parametrize("config_class", [SamVisionConfig, LlamaConfig])
def test_other_models_are_refused_and_the_families_are_named(config_class):
    with pytest.raises(
        ValueError, match=f"'{config_class.model_type}' is not an encoder of a supported .*dinov3_vit.*siglip2_vis"
    ):
        vision_encoder.vision_model_class(config_class())


def test_an_encoder_is_refused_before_the_llm_is_loaded(tmp_path):
    VideoMAEConfig().save_pretrained(tmp_path / "vision")
    TEXT_CONFIGS["llama"]().save_pretrained(tmp_path / "text")  # without weights
    with pytest.raises(ValueError, match="VideoMAE"):
        MPCLIPModel.from_pretrained_towers(tmp_path / "text", tmp_path / "vision", tokenizer=make_tokenizer())


def model_from_towers(folder) -> MPCLIPModel:
    """Of the encoder in folder/vision and a tiny LLM."""
    AutoModel.from_config(TEXT_CONFIGS["llama"]()).save_pretrained(folder / "text")
    options = dict(tokenizer=make_tokenizer(), num_prompts=2, projection_dim=8, pooling_width=8, pooling_heads=2)
    return MPCLIPModel.from_pretrained_towers(folder / "text", folder / "vision", **options).eval()


def dual_encoder(kind: str):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    pictures = dict(image_size=32, patch_size=8) if kind != "siglip2" else dict(num_patches=16, patch_size=8)
    text = sizes | dict(vocab_size=30, projection_size=16, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = CONFIG_MAPPING[kind](text_config=text, vision_config=sizes | pictures)
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_the_encoder_of_a_dual_encoder_is_found(kind, tmp_path):
    whole = dual_encoder(kind)
    whole.save_pretrained(tmp_path / "vision")
    model = model_from_towers(tmp_path)
    inputs = inputs_for(model.config.vision_config)
    with torch.no_grad():
        expected = whole.vision_model(**inputs).last_hidden_state
        torch.testing.assert_close(model.vision_tokens(**inputs), expected)


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("kind, encoder", [("llava", "clip_vision_model"), ("gemma3", "siglip_vision_model")])
def test_the_encoder_of_a_vision_language_model_is_found(kind, encoder, old_names, tmp_path):
    text = {"llava": "llama", "gemma3": "gemma3"}[kind]
    config = CONFIG_MAPPING[kind](text_config=TEXT_CONFIGS[text](), vision_config=tiny_vision_config(encoder))
    whole = AutoModel.from_config(config).eval()
    whole.save_pretrained(tmp_path / "vision")
    if old_names:
        file = tmp_path / "vision" / "model.safetensors"
        names = {
            name: re.sub(r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_tower.vision_model.", name)
            for name in load_file(file)
        }
        assert any(new.startswith("vision_tower.vision_model.") for new in names.values())
        save_file({names[name]: weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    model = model_from_towers(tmp_path)
    inputs = inputs_for(model.config.vision_config)
    with torch.no_grad():
        torch.testing.assert_close(model.vision_tokens(**inputs), whole.vision_tower(**inputs).last_hidden_state)
