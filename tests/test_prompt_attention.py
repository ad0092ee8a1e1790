"""What is computed once: tensors of a tree per device, positions and masks per batch."""

import pytest
import torch
from conftest import make_model, make_tokenizer

from modeling_mpclip import prompt_attention
from modeling_mpclip.prompt_attention import PromptLayout, prompt_attention_mask, prompt_position_ids, tree_tensors


def test_tensors_of_a_tree_are_made_once_and_can_train():
    tree = make_model().prompt_tree(negated=False)
    with torch.inference_mode():
        nodes = tree_tensors(tree, torch.device("cpu"))
    assert tree_tensors(tree, torch.device("cpu")) is nodes
    assert tree_tensors(tree, torch.device("meta")) is not nodes
    assert not nodes.token_ids.is_inference()
    embedding = torch.nn.Embedding(400, 4)
    embedding(nodes.token_ids).sum().backward()  # tensors of inference mode could not be saved for this
    assert embedding.weight.grad is not None


def test_a_layout_is_the_plain_functions():
    tree = make_model().prompt_tree()
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    layout = PromptLayout(mask, tree)
    assert layout.positions.equal(prompt_position_ids(mask, tree))
    for window in (None, 2):
        assert layout.allowed(window).equal(prompt_attention_mask(mask, tree, window))
        assert layout.allowed(window) is layout.allowed(window)
        assert layout.mask(window, "eager", torch.float32) is layout.mask(window, "eager", torch.float32)


@pytest.mark.parametrize("family, windows", [("llama", 1), ("gemma3", 2)])
@pytest.mark.parametrize("boundary", [None, 1])
def test_masks_are_made_once_per_forward_pass(family, windows, boundary, monkeypatch):
    """However many layers run, below and above the boundary and in the last layer alone."""
    options = {"adaptive_tokens": "boundary", "boundary_layer": boundary} if boundary else {}
    model, made = make_model(family, tokenizer=make_tokenizer(), **options), []
    real = prompt_attention.prompt_attention_mask
    monkeypatch.setattr(prompt_attention, "prompt_attention_mask", lambda *args: made.append(args[2]) or real(*args))
    with torch.no_grad():
        model.get_text_features(torch.tensor([[5, 6, 7]]))
    assert len(made) == len(set(made)) == windows
