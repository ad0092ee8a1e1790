"""The text side of a checkpoint as a checkpoint of its own."""

import json

import numpy as np
import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS, make_model
from sentence_helpers import IMAGES, PAIRS, TEXTS, contents, load, save_checkpoint, train
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoModel, AutoTokenizer

from modeling_mpclip import MPCLIPConfig, MPCLIPModel
from mpclip.export.__main__ import main
from mpclip.export.text import export_text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("whole") / "checkpoint", negation_weight=0.5, words=True)
    load(folder, prompts={"query": "find: "}).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def text_only(whole):
    out = whole.parent / "text"
    main(["text", str(whole), str(out)])
    return out


def test_the_folder_holds_the_text_side_alone(whole, text_only):
    assert not {"processor_config.json", "preprocessor_config.json"} & contents(text_only).keys()
    assert (text_only / "model.safetensors").stat().st_size < 0.7 * (whole / "model.safetensors").stat().st_size
    expected = {n for n in MPCLIPModel.from_pretrained(whole).state_dict() if not n.startswith(("vision_model", "image_"))}
    model, info = AutoModel.from_pretrained(text_only, output_loading_info=True)
    assert model.state_dict().keys() == expected
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert json.loads((text_only / "config.json").read_text())["vision_config"] is None
    # or AutoProcessor, which otherwise gives the tokenizer, would look for our processor
    assert "auto_map" not in json.loads((text_only / "tokenizer_config.json").read_text())


def test_text_features_are_the_same(whole, text_only):
    inputs = AutoTokenizer.from_pretrained(text_only)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    for attention in ("sdpa", {"text_config": "eager"}):
        models = [AutoModel.from_pretrained(folder, attn_implementation=attention) for folder in (whole, text_only)]
        features = [model.get_text_features(**inputs, negated=True) for model in models]
        torch.testing.assert_close(features[0].pooler_output, features[1].pooler_output)
        torch.testing.assert_close(features[0].negated_prompt_embeds, features[1].negated_prompt_embeds)


@pytest.mark.parametrize(
    "images",
    [
        {"pixel_values": torch.zeros(1, 3, 32, 32)},
        {"pixel_values_videos": torch.zeros(1, 2, 3, 32, 32)},
        {"vision_hidden_states": torch.zeros(1, 17, 32)},
    ],
    ids=["images", "videos", "states"],
)
def test_images_are_refused(text_only, images):
    with pytest.raises(ValueError, match="text-only checkpoint"):
        AutoModel.from_pretrained(text_only)(**images)


def test_sentence_transformers_encodes_trains_and_saves_it(whole, text_only, tmp_path):
    model = load(text_only)
    assert model.modalities == ["text"] and model.prompts["query"] == "find: "
    np.testing.assert_array_equal(model.encode_query(TEXTS), load(whole).encode_query(TEXTS))
    with pytest.raises(ValueError, match="'image' is not supported"):
        model.encode(IMAGES)
    with pytest.raises(ValueError, match="Unsupported input type: PosixPath"):
        model.encode([whole / "picture.jpg"])
    assert model.encode(["picture.jpg"]).shape == (1, 12)  # nothing that ends so is a picture here
    model.save_pretrained(str(tmp_path / "again"))
    assert contents(tmp_path / "again").keys() == contents(text_only).keys()
    trainer = train(model, PAIRS, MultipleNegativesRankingLoss(model), tmp_path / "out")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    trainer.save_model(str(tmp_path / "trained"))
    np.testing.assert_array_equal(load(tmp_path / "trained").encode(TEXTS), model.encode(TEXTS))


def test_refusals(whole, text_only, capsys):
    with pytest.raises(ValueError, match="is not empty"):
        export_text(str(whole), text_only)
    with pytest.raises(ValueError, match="text-only checkpoint already"):
        export_text(str(text_only), whole.parent / "twice")
    with pytest.raises(SystemExit):
        main(["text", str(whole), str(text_only)])
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no image side"):
        MPCLIPConfig(TEXT_CONFIGS["llama"](), VISION_CONFIGS["vit"](), text_only=True)
    with pytest.raises(SystemExit):
        main(["text", str(whole / "nowhere"), str(whole.parent / "new")])
    assert "nowhere" in capsys.readouterr().err


def test_a_model_can_be_built_without_an_image_side(tokenizer):
    whole = make_model(tokenizer=tokenizer).config.to_dict()
    config = MPCLIPConfig.from_dict({**whole, "vision_config": None, "text_only": True})
    model = MPCLIPModel(config).train()
    model.text_model.requires_grad_(False)
    assert model.train().text_projection.training and not model.text_model.training
    assert model(**tokenizer(["dog"], return_tensors="pt")).text_embeds.shape == (1, 12)
