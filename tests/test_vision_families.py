"""A model on any vision encoder of the table gives the encoder's own tokens and trains all its weights; others are refused."""

import re

import datasets
import pytest
import torch
from conftest import TEXT_CONFIGS, make_processor, make_tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vision import FOUND, inputs_for, plain_encoder, plain_tokens, tiny_vision_config
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
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from model_card.attention_grid import pooling_maps
from modeling_mpclip import MPCLIPConfig, MPCLIPModel, MPCLIPProcessor, vision_encoder
from modeling_mpclip.pipelines_mpclip import MPCLIPImageFeatureExtractionPipeline
from modeling_mpclip.sentence_mpclip import MPCLIPSentenceModule
from modeling_mpclip.unused_weights import freeze_unread
from modeling_mpclip.vision_families import VISION_FAMILIES, class_tokens, leading_tokens
from mpclip.encoding import load_encoder
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.state_cache import cache_image_states

PICTURES = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((40, 32), (32, 40), (90, 20))]


def model_on(family: str, **options) -> MPCLIPModel:
    """A tiny model whose vision encoder has the weights of `plain_encoder(family)`."""
    text = TEXT_CONFIGS["llama"]()
    text.num_hidden_layers = 1
    sizes = dict(num_prompts=2, projection_dim=8, pooling_width=8, pooling_heads=2)
    config = MPCLIPConfig(text, tiny_vision_config(family), **{**sizes, **options})
    config.compile_prompts(make_tokenizer())
    torch.manual_seed(0)
    model = MPCLIPModel(config)
    found = model.vision_model.load_state_dict(plain_encoder(family).state_dict(), strict=False)
    assert not found.missing_keys
    return model.eval()


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
    "clip_vision_model": (1, 1),
    "convnextv2": (0, 0),
    "deit": (1, 2),
    "dinov2_with_registers": (1, 4),
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
    _, maps = pooling_maps(model, processor, PICTURES[:1])
    with torch.no_grad():
        weights = model.get_image_features(processor(images=PICTURES[:1])["pixel_values"]).pooling_attentions.mean(dim=2)
    assert maps.shape == (1, 2, side, side)
    torch.testing.assert_close(torch.from_numpy(maps).flatten(2), weights[..., -(side**2) :])


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


def naflex_processor(patches: int = 20) -> MPCLIPProcessor:
    return MPCLIPProcessor(Siglip2ImageProcessorPil(patch_size=8, max_num_patches=patches), make_tokenizer())


@pytest.mark.parametrize("pooling", ["attention_per_prompt", "mean"])
def test_padding_of_naflex_is_not_seen(pooling):
    model, processor = model_on("siglip2_vision_model", image_pooling=pooling), naflex_processor()
    together = processor(images=PICTURES)
    assert set(together) <= set(processor.model_input_names)
    assert together["pixel_attention_mask"].sum(dim=1).tolist() == together["spatial_shapes"].prod(dim=1).tolist()
    together["pixel_values"][~together["pixel_attention_mask"].bool()] = 7.0
    with torch.no_grad():
        expected = model(**together).image_embeds
        for i, n in enumerate(together["spatial_shapes"].prod(dim=1)):
            alone = {
                name: x[i : i + 1, :n] if x.dim() > 1 and name != "spatial_shapes" else x[i : i + 1]
                for name, x in together.items()
            }
            torch.testing.assert_close(model(**alone).image_embeds[0], expected[i], atol=1e-5, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-4


def test_naflex_trains_from_pictures_and_from_cached_tokens(tmp_path):
    model, processor = model_on("siglip2_vision_model"), naflex_processor()
    rows = datasets.Dataset.from_dict({"image": PICTURES}, features=datasets.Features({"image": datasets.Image()}))
    examples = [{"captions": ["a cat"], "image": picture, "index": i} for i, picture in enumerate(PICTURES)]
    loss = model(**MPCLIPCollator(processor)(examples), return_loss=True).loss
    loss.backward()
    assert model.vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0
    model.vision_model.requires_grad_(False)
    states = cache_image_states(model, processor.image_processor, rows, tmp_path, format="float32")
    batch = MPCLIPCollator(processor, image_states=states)(examples)
    assert "pixel_values" not in batch and batch["pixel_attention_mask"].shape == batch["vision_hidden_states"].shape[:2]
    torch.testing.assert_close(model(**batch, return_loss=True).loss, loss, atol=1e-5, rtol=1e-5)


def test_every_way_to_embed_gives_naflex_its_mask(tmp_path):
    model, processor = model_on("siglip2_vision_model"), naflex_processor()
    with torch.no_grad():
        expected = model(**processor(images=PICTURES)).image_embeds
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MPCLIPProcessor.from_pretrained(tmp_path)
    module = MPCLIPSentenceModule(model, loaded)
    extract = MPCLIPImageFeatureExtractionPipeline(model=model, image_processor=loaded.image_processor)
    with torch.no_grad():
        ways = [
            load_encoder(str(tmp_path), device="cpu").images(PICTURES),
            module(module.preprocess(PICTURES))["sentence_embedding"],
            torch.tensor([extract(picture)[0] for picture in PICTURES]),
        ]
    for embeds in ways:
        torch.testing.assert_close(embeds.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)


def test_what_naflex_cannot_do_is_refused():
    model, processor = model_on("siglip2_vision_model"), naflex_processor()
    inputs = processor(images=PICTURES)
    with pytest.raises(ValueError, match="need pixel_attention_mask and spatial_shapes"):
        model.get_image_features(inputs["pixel_values"])
    with pytest.raises(ValueError, match="1 for every patch"):
        model.get_image_features(**{**inputs, "pixel_attention_mask": inputs["pixel_attention_mask"][:, 1:]})
    for embed_videos in (lambda: processor(videos=[PICTURES]), lambda: model.get_video_features(torch.randn(1, 2, 3, 32, 32))):
        with pytest.raises(ValueError, match="google/siglip2-base-patch16-256"):
            embed_videos()
    with pytest.raises(ValueError, match="Maps of SigLIP 2 NaFlex are not drawn"):
        pooling_maps(model, processor, PICTURES)


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
