"""Losses against closed forms and against the plain construction they abbreviate."""

import math

import pytest
import torch
import torch.nn.functional as F

from modeling_mpclip.contrastive_losses import (
    diversity_loss,
    hinge_negation_loss,
    sigmoid_contrastive_loss,
    sigmoid_negation_loss,
    softmax_contrastive_loss,
    softmax_negation_loss,
)


def test_softmax_closed_forms():
    B = 5
    assert softmax_contrastive_loss(torch.zeros(B, B)).item() == pytest.approx(math.log(B))
    s = 3.0
    expected = -math.log(math.exp(s) / (math.exp(s) + B - 1))
    assert softmax_contrastive_loss(s * torch.eye(B)).item() == pytest.approx(expected, rel=1e-6)


def test_softmax_is_symmetric():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert softmax_contrastive_loss(logits).item() == pytest.approx(softmax_contrastive_loss(logits.T).item())


def test_sigmoid_closed_forms():
    B = 4
    assert sigmoid_contrastive_loss(torch.zeros(B, B)).item() == pytest.approx(B * math.log(2), rel=1e-6)
    confident = torch.full((B, B), -50.0).fill_diagonal_(50.0)
    assert sigmoid_contrastive_loss(confident).item() == pytest.approx(0, abs=1e-6)


def test_diversity_closed_forms():
    same = torch.ones(2, 3, 4)
    assert diversity_loss(same).item() == pytest.approx(1)
    assert diversity_loss(same, margin=0.25).item() == pytest.approx(0.75)
    orthogonal = torch.eye(4)[:3].expand(2, 3, 4)
    assert diversity_loss(orthogonal).item() == 0
    opposed = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert diversity_loss(opposed).item() == 0  # the hinge: opposite prompts are not pulled together
    # cos 60 degrees between two of three prompts, in both orders, out of six ordered pairs
    angle = math.pi / 3
    tilted = torch.tensor([[[1.0, 0.0, 0.0], [math.cos(angle), math.sin(angle), 0.0], [0.0, 0.0, 1.0]]])
    assert diversity_loss(tilted).item() == pytest.approx(2 * 0.5 / 6, rel=1e-5)


def test_diversity_ignores_length():
    prompts = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert diversity_loss(prompts).item() == pytest.approx(diversity_loss(prompts * 17).item(), rel=1e-5)


def test_softmax_negation_is_one_more_column():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 6, generator=generator).requires_grad_()
    negated = torch.randn(6, generator=generator).requires_grad_()
    target = torch.arange(6)
    image_to_text = F.cross_entropy(torch.cat([logits, negated[:, None]], dim=1), target)
    slow = (image_to_text + F.cross_entropy(logits.T, target)) / 2
    slow_gradients = torch.autograd.grad(slow, [logits, negated])
    fast = softmax_contrastive_loss(logits) + softmax_negation_loss(logits, negated)
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(torch.autograd.grad(fast, [logits, negated]), slow_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_sigmoid_negation_is_a_pair_that_does_not_belong():
    negated = torch.tensor([0.0, 0.0])
    assert sigmoid_negation_loss(negated).item() == pytest.approx(math.log(2))
    assert sigmoid_negation_loss(torch.tensor([-60.0])).item() == pytest.approx(0, abs=1e-6)


def test_hinge_negation_closed_forms():
    text = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    negated = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert hinge_negation_loss(text, negated).item() == pytest.approx(0.5)
    assert hinge_negation_loss(text, negated, margin=0.2).item() == pytest.approx(0.4)


def test_losses_are_float32_from_bfloat16():
    logits = torch.eye(3, dtype=torch.bfloat16)
    assert softmax_contrastive_loss(logits).dtype == torch.float32
    assert diversity_loss(torch.ones(1, 2, 3, dtype=torch.bfloat16)).dtype == torch.float32
