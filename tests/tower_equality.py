"""Whether a text tower equals separate passes of the untouched decoder: values and gradients."""

import torch
from tiny_llms import TREE, batch, separate_passes

from modeling_mpclip.prompt_tree import PromptTree
from modeling_mpclip.text_families import text_tower_class


def tower_of(decoder, path: str | None = None, adaptive_token_ids: tuple[int, ...] = ()):
    """The text tower with the weights of a decoder."""
    tower = text_tower_class(type(decoder.config), path)(decoder.config, adaptive_token_ids).eval()
    own = tower.load_state_dict(decoder.state_dict(), strict=False)
    assert own.missing_keys == ["adaptive_embedding.weight"] and not own.unexpected_keys
    return tower


def assert_equal(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5, least: float = 1e-3) -> None:
    """Up to rounding: relative to the largest value, or to `least`."""
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < tolerance * expected.abs().max().clamp(min=least)


def assert_equals_separate_passes(decoder, tower, texts=None, tree: PromptTree = TREE, full: bool = True) -> None:
    """At the readouts, of the readout-only layer; values and gradients. With `full` also of a pass over all columns."""
    ids, mask = texts or batch()
    readouts = ids.shape[1] + torch.tensor(tree.readouts)
    expected = separate_passes(decoder, ids, mask, tree)
    ours = tower(ids, mask, tree=tree, readouts=readouts.expand(len(ids), -1)).last_hidden_state
    assert_equal(ours, expected)
    theirs, own = _gradients(decoder, expected), _gradients(tower, ours)
    assert theirs.keys() == own.keys()
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert_equal(own[name], gradient, 1e-4, least=0.01 * largest)  # what almost cancels out has a larger error
    if full:
        with torch.no_grad():
            assert_equal(tower(ids, mask, tree=tree).last_hidden_state[:, readouts], expected)


def _gradients(model, readouts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss that weighs every number differently."""
    weights = torch.randn(readouts.shape, generator=torch.Generator().manual_seed(7))
    model.zero_grad()
    (readouts * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
