"""Parts of a model that differ in their dtype come back as they were saved."""

import pytest
import torch
from conftest import make_model, save_towers

from modeling_mpclip import MPCLIPModel

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def dtypes(model) -> dict[str, torch.dtype]:
    """Of every weight that is no integer, and of the buffers that are saved."""
    return {name: tensor.dtype for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


@pytest.mark.parametrize("text, vision", [(BF16, FP32), (BF16, BF16), (FP32, BF16), (BF16, FP16), (FP32, FP32)])
def test_every_part_keeps_its_dtype_and_its_numbers(tmp_path, text, vision):
    save_towers(tmp_path, vision="efficientnet")  # with buffers
    dtype = {"text_kwargs": {"dtype": text}, "vision_kwargs": {"dtype": vision}}
    sizes = {"num_prompts": 2, "projection_dim": 8, "pooling_width": 16, "pooling_heads": 2}
    model = MPCLIPModel.from_pretrained_towers(str(tmp_path / "text"), str(tmp_path / "vision"), **sizes, **dtype).eval()
    assert {model.text_model.dtype, model.vision_model.dtype, model.text_projection.weight.dtype} == {text, vision, FP32}
    batch = {"input_ids": torch.randint(3, 300, (2, 5)), "pixel_values": torch.randn(2, 3, 64, 64)}
    for time in ("once", "twice"):
        model.save_pretrained(tmp_path / time, max_shard_size="20KB" if time == "once" else "1GB")
        loaded = MPCLIPModel.from_pretrained(tmp_path / time)
        assert dtypes(loaded) == dtypes(model)
        for name, tensor in model.state_dict().items():
            assert loaded.state_dict()[name].equal(tensor), name
        with torch.no_grad():
            assert loaded(**batch).logits_per_image.equal(model(**batch).logits_per_image)
        model = loaded


@pytest.mark.parametrize("asked", [BF16, FP16, FP32])
def test_a_dtype_that_is_asked_for_is_every_parts_but_the_scales(tmp_path, asked):
    model = make_model()
    model.text_model.to(BF16)
    model.save_pretrained(tmp_path)
    found = dtypes(MPCLIPModel.from_pretrained(tmp_path, dtype=asked))
    assert found.pop("logit_scale.log_scale") == FP32 and set(found.values()) == {asked}


def test_a_model_of_one_dtype_says_nothing_about_parts(tmp_path):
    model = make_model()
    model.text_model.to(BF16)
    model.save_pretrained(tmp_path)
    assert model.config.part_dtypes == dict.fromkeys(
        ["text_projection", "vision_model", "image_pooling", "image_projection"], "float32"
    )
    model.text_model.to(FP32)
    model.save_pretrained(tmp_path)
    assert MPCLIPModel.from_pretrained(tmp_path).config.part_dtypes is None
    assert not hasattr(make_model().config, "part_dtypes")
