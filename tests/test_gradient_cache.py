"""The gradient cache: a batch in chunks gives the loss and the gradients of the plain step, dropout included."""

import copy

import pytest
import torch
from conftest import arguments, make_model
from torch import nn

from modeling_mpclip.contrastive_losses import total_loss
from mpclip.training import build_trainer, parse_options
from mpclip.training.gradient_cache import cached_step
from mpclip.training.sentence_pairs import SentencePairTrainer

EVERYTHING = {"negation_weight": 0.7, "diversity_weight": 0.3, "adaptive_tokens": "boundary"}
B, ROWS = 7, 3  # the last chunk is short


def make_batch(B: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(3, 300, (B, 5), generator=generator),
        "attention_mask": torch.ones(B, 5, dtype=torch.long),
        "pixel_values": torch.randn(B, 3, 32, 32, generator=generator),
    }


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_gradients_are_those_of_the_plain_step(loss, dropout):
    model = make_model(loss=loss, layers=2, **EVERYTHING).train()
    for layer in model.text_model.layers:
        layer.self_attn.attention_dropout = dropout
    model.image_pooling.mlp_norm = nn.Sequential(model.image_pooling.mlp_norm, nn.Dropout(dropout))
    plain, batch = copy.deepcopy(model), make_batch(B)

    def loss_of(embeds: dict[str, torch.Tensor], scale) -> torch.Tensor:
        logits = scale(embeds["image_embeds"] @ embeds["text_embeds"].T)
        return total_loss({**embeds, "logits_per_image": logits}, model.config, scale, first_prompts=2)["loss"]

    # With dropout the plain step takes the same chunks, so that it draws the same numbers, but it keeps all graphs.
    torch.manual_seed(3)
    step = ROWS if dropout else B
    outputs = [plain(**{n: v[i : i + step] for n, v in batch.items()}, negated=True) for i in range(0, B, step)]
    names = ("text_embeds", "image_embeds", "negated_text_embeds", "text_prompt_embeds", "image_prompt_embeds")
    expected = loss_of({name: torch.cat([output[name] for output in outputs]) for name in names}, plain.logit_scale)
    (expected / 4).backward()
    drawn_next = torch.rand(1)

    torch.manual_seed(3)
    found = cached_step(
        model,
        batch,
        ROWS,
        lambda embeds: loss_of(embeds, model.logit_scale),
        list(model.logit_scale.parameters()),
        negated=True,
        scaled=lambda loss: loss / 4,
    )
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-6)
    assert torch.equal(torch.rand(1), drawn_next)
    ours, theirs = gradients(model), gradients(plain)
    assert ours.keys() == theirs.keys() > {"logit_scale.log_scale"}
    for name in theirs:
        assert (ours[name] - theirs[name]).norm() < 5e-6 * theirs[name].norm().clamp(min=1e-2), name


def test_a_batch_norm_in_training_mode_is_refused():
    model = make_model(vision="efficientnet").train()
    model.vision_model.train()
    with pytest.raises(ValueError, match=r"forward_chunk: vision_model\..*batch norm in training mode"):
        cached_step(model, make_batch(4), 2, None, [])


TUNINGS = {
    "last layer": ["--elastic_prompts", "true"],
    "LoRA on cached states": ["--text_tuning", "lora", "--lora_layers", "1", "--cache_states", "true", "--loss", "sigmoid"],
}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_training_in_chunks_equals_training(folder, tmp_path, tuning):
    """Through the Trainer, with gradient accumulation: the same weights after two steps, and the same log."""
    weights, logs = [], []
    for chunk in ([], ["--forward_chunk", "3"]):
        extra = ["--gradient_accumulation_steps", "2", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
        extra += [
            "--load_best_model_at_end",
            "false",
            "--optim",
            "sgd",
            "--cache_format",
            "float32",
            "--diversity_weight",
            "0.5",
            *TUNINGS[tuning],
            *chunk,
        ]
        trainer = build_trainer(parse_options(arguments(folder, tmp_path, *extra)))
        trainer.train()
        weights.append({name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad})
        logs.append([log for log in trainer.state.log_history if "loss" in log])
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-6, rtol=1e-5)
    assert len(logs[0]) == 2
    for plain, chunked in zip(*logs, strict=True):
        assert chunked == pytest.approx(plain, rel=1e-4, abs=1.1e-4)  # the log rounds to 4 digits


def test_other_losses_refuse_chunks(tmp_path):
    from mpclip.training import MPCLIPTrainingArguments

    training = MPCLIPTrainingArguments(
        str(tmp_path), use_cpu=True, eval_strategy="no", load_best_model_at_end=False, forward_chunk=2
    )
    with pytest.raises(ValueError, match=r"forward_chunk=2.*SentencePairTrainer"):
        SentencePairTrainer(make_model(), training, data_collator=list)
