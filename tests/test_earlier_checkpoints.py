"""Checkpoints that earlier versions of this code wrote load to the same model."""

import json

import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from transformers import AutoModel

from modeling_mpclip import MPCLIPModel, MPCLIPProcessor

# What the first version wrote: these files of code, and a config without the options that came later.
FIRST_FILES = ["configuration", "contrastive_losses", "image_tower", "modeling", "processing", "prompt_attention"]
FIRST_FILES += ["prompt_tree", "text_tower"]
LATER_OPTIONS = ("shared_projection", "elastic_prompts", "text_only", "pooling_queries")
LATER_OPTIONS += ("joint_projection", "words")
LATER_FILES = ("modules.json", "config_sentence_transformers.json")


@pytest.mark.parametrize(
    "options",
    [
        {"adaptive_tokens": "input"},
        {"adaptive_tokens": "boundary", "negation_weight": 0.5},
        {"text_pooling": "mean", "num_prompts": 1, "loss": "sigmoid"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_checkpoint_of_the_first_version_loads(tmp_path, options):
    tokenizer = make_tokenizer()
    model = make_model(tokenizer=tokenizer, **options)
    model.save_pretrained(tmp_path)
    make_processor(tokenizer).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["adaptive_tokens"] == model.config.adaptive_tokens  # written even where it is the default, which has changed
    for option in LATER_OPTIONS:
        del config[option]
    config["auto_map"] = {"AutoConfig": "configuration_mpclip.MPCLIPConfig", "AutoModel": "modeling_mpclip.MPCLIPModel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in tmp_path.iterdir():
        if file.name in LATER_FILES or (file.suffix == ".py" and file.stem.removesuffix("_mpclip") not in FIRST_FILES):
            file.unlink()

    processor = MPCLIPProcessor.from_pretrained(tmp_path)
    inputs = processor(text=["The cat sits on the mat", "a dog"]) | {"pixel_values": torch.randn(2, 3, 32, 32)}
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
        for load in (MPCLIPModel.from_pretrained, AutoModel.from_pretrained):
            assert load(tmp_path).eval()(**inputs).logits_per_image.equal(expected)
