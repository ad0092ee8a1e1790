"""Losses against closed forms and against the plain construction they abbreviate."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image

from modeling_mpclip.contrastive_losses import (
    diversity_loss,
    draw_first_prompts,
    hinge_negation_loss,
    sigmoid_contrastive_loss,
    sigmoid_negation_loss,
    softmax_contrastive_loss,
    softmax_negation_loss,
    total_loss,
)
from mpclip.training import MPCLIPTrainer, MPCLIPTrainingArguments


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


# The loss of a config ---------------------------------------------------------------------------------------------

CONFIGS = {
    "softmax": {},
    "sigmoid": {"loss": "sigmoid", "negation_weight": 0.5},
    "all": {"diversity_weight": 0.3, "diversity_margin": 0.1, "negation_weight": 0.7},
    "hinge": {"negation_weight": 0.7, "negation_form": "hinge", "negation_margin": 0.2},
    "elastic": {"elastic_prompts": True},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_trainer_give_the_total_loss(name, folder, tmp_path):
    """One function, three callers: values, parts and gradients."""
    options = CONFIGS[name]
    tokenizer = make_tokenizer()
    model, processor = make_model(tokenizer=tokenizer, **options).train(), make_processor(tokenizer)
    pictures = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    batch = dict(processor(text=["The cat sits.", "A small boat", "red"], images=pictures))

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    torch.manual_seed(4)  # of the number of prompts that elastic_prompts draws
    forward = model(**batch, return_loss=True)
    expected = gradients(forward.loss)
    torch.manual_seed(4)
    embeds = model(**batch, negated=bool(model.config.negation_weight))
    losses = total_loss(embeds, model.config, model.logit_scale, draw_first_prompts(model.config, True))
    training = MPCLIPTrainingArguments(str(tmp_path), use_cpu=True, eval_strategy="no", load_best_model_at_end=False)
    trainer = MPCLIPTrainer(model, training, processing_class=processor)
    torch.manual_seed(4)
    of_trainer = trainer.compute_loss(model, batch)
    for loss in (losses["loss"], of_trainer):
        torch.testing.assert_close(loss, forward.loss, atol=0, rtol=0)
        for ours, theirs in zip(gradients(loss), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    assert losses.keys() - {"loss"} == trainer._parts.keys()
    weights = {
        "contrastive_loss": 1,
        "diversity_loss": model.config.diversity_weight,
        "negation_loss": model.config.negation_weight,
    }
    torch.testing.assert_close(sum(weights[part] * losses[part] for part in losses.keys() - {"loss"}), losses["loss"])


def test_elastic_prompts_are_drawn_in_training_alone():
    config = make_model(elastic_prompts=True).config
    assert draw_first_prompts(config, training=False) is None
    assert {draw_first_prompts(config, training=True) for _ in range(50)} == {1, 2}
    assert draw_first_prompts(make_model().config, training=True) is None
