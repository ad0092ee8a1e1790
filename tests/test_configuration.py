import pytest
from conftest import TEXT_CONFIGS, VISION_CONFIGS, make_tokenizer
from transformers import AutoConfig, CLIPVisionConfig, Qwen3Config

from modeling_mpclip import MPCLIPConfig


def test_defaults_follow_the_paper():
    config = MPCLIPConfig()
    assert config.num_prompts == 6 and config.projection_dim % 6 == 0
    assert config.templates[0] == "The [APT-1] of this image means:"
    assert config.negated_templates[5] == "The [APT-6] of this image does NOT mean:"
    assert config.num_adaptive_tokens == 6


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"projection_dim": 100}, "Use projection_dim=102"),
        ({"num_prompts": 0}, "num_prompts=0 is out of range: expected at least 1"),
        ({"text_pooling": "max"}, "use one of 'prompts', 'mean', 'last_token', 'attention'"),
        ({"text_pooling": "mean"}, "set num_prompts=1"),
        ({"image_pooling": "sum"}, "image_pooling='sum' is unknown"),
        ({"loss": "hinge"}, "'softmax', 'sigmoid'"),
        ({"templates": ["a"]}, "1 templates for num_prompts=6"),
        ({"negated_templates": ["a"]}, "1 negated templates for num_prompts=6"),
        ({"negation_weight": 1.0, "negated_templates": []}, "needs negated prompts"),
        ({"diversity_weight": -1.0}, "diversity_weight=-1.0 is out of range: expected at least 0"),
        ({"num_prompts": 1, "diversity_weight": 0.1}, "compares prompts and there is one"),
        ({"adaptive_tokens": "input", "boundary_layer": 2}, "belongs to adaptive_tokens='boundary'"),
        ({"adaptive_tokens": "boundary", "boundary_layer": 99}, "outside 0..3"),
        ({"text_attention": "bidirectional", "adaptive_tokens": "input"}, "boundary_layer=None changes no embedding"),
        ({"text_attention": "bidirectional"}, r"boundary_layer=2 changes no embedding.*'prompts' needs one of at most 1"),
        (
            {"text_attention": "bidirectional", "text_pooling": "mean", "num_prompts": 1, "boundary_layer": 3},
            "'mean' needs one of at most 2",
        ),
        ({"pooling_heads": 0}, "pooling_heads=0 is out of range"),
        ({"logit_scale_init_value": float("nan")}, "logit_scale_init_value=nan is out of range: expected a finite number"),
        ({"negation_margin": 1.5}, "expected at least -1 and at most 1"),
        ({"pooling_width": 100, "pooling_heads": 8}, "not a multiple of pooling_heads"),
        ({"pooling_queries": 5}, "pooling_queries=5 does not divide projection_dim=768"),
        ({"pooling_queries": 2, "image_pooling": "mean"}, "belong to the attention pooling"),
        ({"num_prompts": 1, "elastic_prompts": True}, "drops some of the prompts"),
        ({"text_config": "llama"}, "give a transformers config"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MPCLIPConfig(**{"text_config": TEXT_CONFIGS["llama"](), **kwargs})


@pytest.mark.parametrize(
    "kwargs, queries",
    [
        ({}, 6),
        ({"image_pooling": "attention"}, 1),
        ({"image_pooling": "cls"}, 1),
        ({"num_prompts": 1, "pooling_queries": 4}, 4),
    ],
)
def test_queries_of_the_image_pooling(kwargs, queries):
    config = MPCLIPConfig(TEXT_CONFIGS["llama"](), **kwargs)
    assert config.num_pooling_queries == MPCLIPConfig(**config.to_dict()).num_pooling_queries == queries


def test_round_trip_on_disk(tmp_path):
    config = MPCLIPConfig(Qwen3Config(num_hidden_layers=4), CLIPVisionConfig(), num_prompts=3, adaptive_tokens="boundary")
    config.compile_prompts(make_tokenizer())
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MPCLIPConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert loaded.boundary_layer == 3 and loaded.vision_config.model_type == "clip_vision_model"


@pytest.mark.parametrize("text", TEXT_CONFIGS)
@pytest.mark.parametrize("vision", VISION_CONFIGS)
def test_every_pair_of_towers_has_a_config(text, vision):
    config = MPCLIPConfig(TEXT_CONFIGS[text]().to_dict(), VISION_CONFIGS[vision]().to_dict())
    assert type(config.text_config) is type(TEXT_CONFIGS[text]())
    assert type(config.vision_config) is type(VISION_CONFIGS[vision]())
