"""benchmarks/closed_form.py: projections solved in closed form, and the features that they are solved for."""

import pytest
import torch
from conftest import make_model

from benchmarks.closed_form import design, in_segments, regression, texts_read, together
from benchmarks.frozen_features import Features, text_features
from modeling_mpclip.prompt_attention import tree_tensors

K = 3


@pytest.fixture
def made():
    """30 texts of 12 pictures: three prompts and the words, 5 values each."""
    torch.manual_seed(0)
    text = {"prompts 2": torch.randn(30, K, 5).half(), "words": (3 + 2 * torch.randn(30, 1, 5)).half()}
    return Features(text, torch.randn(12, 8).half(), torch.arange(30) % 12)


def test_a_row_takes_the_parts_of_its_name():
    rows = texts_read([2], [0])
    assert rows["prompt_2+words"] == (("prompts 2", 1), ("words", None))
    assert rows["words"] == (("words", None),)
    assert set(rows) == {"words", "mean_0", "mean_0+words", "prompt_2", "prompt_2+words", "prompts_2", "prompts_2+words"}


def test_vectors_are_centred_and_of_one_length_by_the_training_texts(made):
    x = design(made, texts_read([2], [])["prompts_2+words"])  # (30, 4, 5)
    assert x.shape == (30, K + 1, 5)
    assert x.mean(dim=0).abs().max() < 1e-6
    assert torch.allclose(x.square().sum(-1).mean(0), torch.ones(K + 1), atol=1e-5)
    one = Features({k: v[:1] for k, v in made.text.items()}, made.image[:1], made.owner[:1])
    assert torch.allclose(design(one, texts_read([2], [])["prompts_2+words"], like=made), x[:1])


@pytest.mark.parametrize("strength", [0.05, 0.8])
def test_the_ridge_is_that_of_the_normal_equations(made, strength):
    x, y = design(made, texts_read([2], [])["prompts_2"]), made.image.float()
    flat = x.flatten(1)
    gram = flat.T @ flat
    expected = torch.linalg.solve(
        gram + strength * gram.diagonal().mean() * torch.eye(len(gram)), flat.T @ y[made.owner]
    )  # (15, 8)
    matrices = regression(x, y, made.owner).solve(strength).view(K, 5, 8)
    assert torch.allclose(matrices, expected.view(K, 5, 8), atol=1e-5)
    predicted, pictures = together(x, matrices, y, x)
    assert torch.allclose(predicted, flat @ expected, atol=1e-4) and pictures is y


def test_segments_without_loss_of_rank_add_up_to_the_prediction(made, monkeypatch):
    monkeypatch.setattr("benchmarks.closed_form.DIMENSIONS", 8 * K)
    x, y = design(made, texts_read([2], [])["prompts_2"]), made.image.float()
    matrices = regression(x, y, made.owner).solve(0.1).view(K, 5, 8)
    texts, pictures = in_segments(x, matrices, y, x)  # (30, 24), (12, 24)
    assert torch.allclose(texts @ pictures.T, torch.einsum("tnh,nhr->tr", x, matrices) @ y.T, atol=1e-4)
    monkeypatch.setattr("benchmarks.closed_form.DIMENSIONS", 2 * K)
    texts, pictures = in_segments(x, matrices, y, x)
    assert texts.shape == (30, 2 * K) and pictures.shape == (12, 2 * K)
    changed = x.clone()
    changed[:, 1] += 1.0  # vector 1 takes part in segment 1 alone
    moved = (in_segments(changed, matrices, y, x)[0] - texts).abs().amax(dim=0)  # (6,)
    assert (moved[2:4] > 1e-3).all() and moved[[0, 1, 4, 5]].max() < 1e-6


@pytest.mark.parametrize("starts", [False, True])
def test_features_of_a_batch_are_those_of_each_text_alone(tokenizer, starts):
    start = tokenizer.eos_token if starts else ""
    model = make_model(tokenizer=tokenizer).eval()
    texts = ["a dog", "a", "a cat and a dog on a street"]
    found = text_features(model, tokenizer, texts, [1, 2], [0, 1], start)
    front = len(tokenizer(start)["input_ids"]) if start else 0
    for i, text in enumerate(texts):
        ids = torch.tensor([tokenizer(start + text)["input_ids"]])
        tree = model.prompt_tree()
        with torch.inference_mode():
            states = model.text_model(ids, torch.ones_like(ids), tree=tree, output_hidden_states=True).hidden_states
        ends = ids.shape[1] + tree_tensors(tree, ids.device).readouts
        own = slice(front, ids.shape[1])
        assert torch.allclose(found["prompts 2"][i].float(), states[2][0, ends], rtol=2e-3, atol=1e-4)
        assert torch.allclose(found["mean 1"][i, 0].float(), states[1][0, own].mean(0), rtol=2e-3, atol=1e-4)
        assert torch.allclose(found["words"][i, 0].float(), states[0][0, own].mean(0), rtol=2e-3, atol=1e-4)
