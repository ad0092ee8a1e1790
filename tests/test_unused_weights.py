"""Every weight that is trained gets a gradient: what no embedding depends on is frozen, whatever is trained and however."""

import gc

import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS, enable_checkpointing, make_model
from torch.nn.parallel import DistributedDataParallel

from modeling_mpclip import MPCLIPModel
from mpclip.training.options import ModelArguments
from mpclip.training.tuning import boundary_layer, prepare_tuning

TUNINGS = ("frozen", "last", "lora", "full")


def batch(model) -> dict[str, torch.Tensor]:
    size = model.config.vision_config.image_size
    return {"input_ids": torch.randint(3, 300, (4, 5)), "pixel_values": torch.randn(4, 3, size, size)}


def untrained(model) -> list[str]:
    """Names of the trainable weights that a step leaves without gradient."""
    model.zero_grad()
    model(**batch(model.get_base_model() if hasattr(model, "peft_config") else model), return_loss=True).loss.backward()
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


def assert_every_trained_weight_gets_a_gradient(text: str, vision: str, tuning: str, adaptive_tokens: str, **kwargs) -> None:
    options = ModelArguments(text_tuning=tuning, vision_tuning="full")
    if adaptive_tokens == "boundary":
        kwargs["boundary_layer"] = boundary_layer(2, options)
    model = make_model(text, vision, layers=2, adaptive_tokens=adaptive_tokens, **kwargs)
    assert untrained(prepare_tuning(model, options).train()) == []


@pytest.mark.parametrize("adaptive_tokens", ["input", "boundary"])
@pytest.mark.parametrize("vision, tuning", [*zip(VISION_CONFIGS, [*TUNINGS, "lora"], strict=True)])
def test_vision_families(vision, tuning, adaptive_tokens):
    assert_every_trained_weight_gets_a_gradient("llama", vision, tuning, adaptive_tokens)


@pytest.mark.parametrize("text", TEXT_CONFIGS)
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_text_families(text, tuning):
    assert_every_trained_weight_gets_a_gradient(text, "clip", tuning, "boundary", negation_weight=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"image_pooling": "attention_per_prompt", "loss": "sigmoid"},
        {"image_pooling": "mean", "shared_projection": True},
        {"image_pooling": "cls"},
        {"text_pooling": "mean", "num_prompts": 1},
        {"text_pooling": "last_token", "num_prompts": 1, "pooling_queries": 2},
        {"text_pooling": "attention", "num_prompts": 1, "pooling_queries": 2},
        {"num_prompts": 1, "templates": ["It means:"]},  # no adaptive token
        {"elastic_prompts": True, "diversity_weight": 0.1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("tuning, adaptive_tokens", [("lora", "boundary"), ("full", "input")])
def test_poolings_and_losses(options, tuning, adaptive_tokens):
    assert_every_trained_weight_gets_a_gradient("llama", "dinov2", tuning, adaptive_tokens, **options)


def test_what_is_frozen_stays_so_when_loaded_and_when_all_is_unfrozen(tmp_path):
    make_model(vision="clip", adaptive_tokens="boundary").save_pretrained(tmp_path)
    model = MPCLIPModel.from_pretrained(tmp_path)
    unused = {"text_model.adaptive_embedding.weight"}
    unused |= {f"vision_model.post_layernorm.{name}" for name in ("weight", "bias")}
    for prepare in (lambda: model, lambda: model.requires_grad_(False).requires_grad_(True)):
        frozen = {name for name, parameter in prepare().named_parameters() if not parameter.requires_grad}
        assert frozen == unused and untrained(model) == []


def test_a_fully_trained_tower_under_ddp_with_gradient_checkpointing(tmp_path):
    """DDP refuses the second step if a weight got no gradient in the first."""
    model = make_model(vision="clip")
    enable_checkpointing(model.train())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    parallel = DistributedDataParallel(model)
    try:
        for _ in range(2):
            parallel(**batch(model), return_loss=True).loss.backward()
    finally:
        del parallel  # before its group: its destructor would wait, holding Python's lock, for a thread that needs the lock
        gc.collect()
        torch.distributed.destroy_process_group()
