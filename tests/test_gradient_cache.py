"""The gradient cache and the loss in tiles: a batch in chunks gives loss and gradients of the plain step, dropout included."""

import copy

import pytest
import torch
from conftest import arguments, make_model
from torch import nn

from modeling_mpclip.contrastive_losses import total_loss
from mpclip.training import build_trainer, parse_options, tiled_loss
from mpclip.training.gradient_cache import cached_step, chunks_of_rows, chunks_of_tokens, without_padding
from mpclip.training.sentence_pairs import SentencePairTrainer
from mpclip.training.tiled_loss import loss_of_pairs, total_loss_in_tiles

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
        chunks_of_rows(B, ROWS),
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
    with pytest.raises(ValueError, match=r"A batch in chunks: vision_model\..*batch norm in training mode"):
        cached_step(model, make_batch(4), chunks_of_rows(4, 2), None, [])


TUNINGS = {
    "last layer": ["--elastic_prompts", "true"],
    "LoRA on cached states": [
        "--text_tuning",
        "lora",
        "--lora_layers",
        "1",
        "--cache_states",
        "true",
        "--loss",
        "sigmoid",
        "--words",
        "true",
    ],
}
CHUNKS = {"last layer": ["--forward_chunk", "3"], "LoRA on cached states": ["--forward_chunk_tokens", "100"]}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_training_in_chunks_equals_training(folder, tmp_path, tuning):
    """Through the Trainer, with gradient accumulation: the same weights after two steps, and the same log."""
    weights, logs = [], []
    for chunk in ([], CHUNKS[tuning]):
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


def test_other_losses_and_two_sizes_refuse_chunks(tmp_path):
    from mpclip.training import MPCLIPTrainer, MPCLIPTrainingArguments

    options = {"use_cpu": True, "eval_strategy": "no", "load_best_model_at_end": False, "precision": "float32"}
    training = MPCLIPTrainingArguments(str(tmp_path), forward_chunk=2, **options)
    with pytest.raises(ValueError, match=r"forward_chunk=2.*SentencePairTrainer"):
        SentencePairTrainer(make_model(), training, data_collator=list)
    training.forward_chunk_tokens = 99
    with pytest.raises(ValueError, match=r"forward_chunk=2 and forward_chunk_tokens=99 .* Give one of them"):
        MPCLIPTrainer(make_model(), training, data_collator=list)


def test_chunks_of_tokens():
    lengths = torch.tensor([3, 9, 1, 9, 4, 0])
    chunks = chunks_of_tokens(lengths, 28, prompt_tokens=5)
    assert [chunk.tolist() for chunk in chunks] == [[1, 3], [4, 0, 2], [5]]
    with pytest.raises(ValueError, match=r"forward_chunk_tokens=13: one text of this batch has 14 tokens .* Set it to 14"):
        chunks_of_tokens(lengths, 13, prompt_tokens=5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_of_padding_are_left_out(side):
    ids, mask = torch.arange(8).view(2, 4), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    ids, mask = (x.flip(1) if side == "left" else x for x in (ids, mask))
    pixels = torch.ones(2, 3)
    found = without_padding({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]] if side == "right" else [[1, 1, 1], [0, 0, 1]]
    assert found["input_ids"].shape == (2, 3) and found["pixel_values"] is pixels
    empty = {"input_ids": ids, "attention_mask": torch.zeros_like(mask)}
    assert without_padding(empty)["input_ids"].shape == (2, 4)


# Loss -> options of the model.
LOSSES = {
    "softmax": {"negation_weight": 0.7, "diversity_weight": 0.3},
    "softmax, hinge": {"negation_weight": 0.7, "negation_form": "hinge"},
    "sigmoid": {"loss": "sigmoid", "negation_weight": 0.7},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("others", [None, "two more"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_in_tiles_is_the_plain_loss(loss, others, dtype, monkeypatch):
    """Values and gradients, with captions that recur, a loss of the first prompts, and the pairs of other processes."""
    monkeypatch.setattr(tiled_loss, "LEAST_ROWS", 1)
    config = make_model(layers=1, **LOSSES[loss]).config
    generator = torch.Generator().manual_seed(0)
    b, K, D = 11, config.num_prompts, config.projection_dim
    ids = torch.randint(0, 6, (3 * b,), generator=generator)
    segments = torch.randn(3, 3 * b, K, D // K, generator=generator, dtype=dtype)
    results = []
    for compute in (total_loss, total_loss_in_tiles):
        leaves = [part.clone().requires_grad_() for part in segments]
        scale, bias = (torch.full((), value, dtype=dtype, requires_grad=True) for value in (5.0, -1.0))
        whole = [nn.functional.normalize(part.flatten(1), dim=-1) for part in leaves]
        names = ("text_embeds", "image_embeds", "negated_text_embeds")
        embeds = {name: part[:b] for name, part in zip(names, whole, strict=True)}
        embeds |= {"text_prompt_embeds": leaves[0][:b], "image_prompt_embeds": leaves[1][:b]}
        to_logits = lambda x, scale=scale, bias=bias: scale * x + bias  # noqa: E731
        if others is None:
            embeds["logits_per_image"] = to_logits(embeds["image_embeds"] @ embeds["text_embeds"].T)
            given = ()
        else:
            # What is gathered of a tensor of this process: here, what stands behind it in the tensors of all.
            everything = [*whole, *(nn.functional.normalize(part[:, :2].flatten(1), dim=-1) for part in leaves[:2]), ids]

            def gathered(x, everything=everything):
                alike = (part for part in everything if part.shape[1:] == x.shape[1:])
                one = next(part for part in alike if torch.allclose(part[:b].double(), x.double(), atol=1e-6)).to(x.dtype)
                return [one[b : 2 * b], one[2 * b :]]

            given = (gathered,)
        three = {"tile": 4 * b * (1 if others is None else 3)}  # tiles of four rows, and of three
        tile = three if compute is total_loss_in_tiles else {}
        found = compute(embeds, config, to_logits, 2, ids[:b], *given, **tile)
        found["loss"].backward()
        results.append(({k: v.detach() for k, v in found.items()}, [x.grad for x in (*leaves, scale, bias)]))
    (plain, expected), (tiled, gradients) = results
    assert plain.keys() == tiled.keys() > {"negation_loss"}
    close = {"atol": 2e-6, "rtol": 1e-5}  # total_loss computes in float32, whatever is given
    for name, value in plain.items():
        torch.testing.assert_close(tiled[name].to(value.dtype), value, **close)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("autocast, dtype", [(True, torch.float32), (False, torch.bfloat16), (True, torch.bfloat16)])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_tiles_in_bfloat16_are_as_near_to_float32_as_the_plain_loss(loss, autocast, dtype, monkeypatch):
    """64 tiles: gradients that were summed in bfloat16 would be three times as far off with the sigmoid loss."""
    monkeypatch.setattr(tiled_loss, "LEAST_ROWS", 1)
    config = make_model(layers=1, loss=loss).config
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(256, 64, generator=generator)
    parts = [nn.functional.normalize(alike + torch.randn(256, 64, generator=generator), dim=-1) for _ in range(2)]

    def computed(compute, autocast: bool, dtype: torch.dtype, **tile) -> tuple[torch.Tensor, list[torch.Tensor]]:
        scale, leaves = (
            torch.full((1,), 20.0, requires_grad=True),
            [part.to(dtype, copy=True).requires_grad_() for part in parts],
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = (leaves[1] @ leaves[0].T).float() * scale
            embeds = {"text_embeds": leaves[0], "image_embeds": leaves[1], "logits_per_image": logits}
            found = compute(embeds, config, lambda x: x.float() * scale, **tile)["loss"]
        found.backward()
        return found.detach(), [x.grad.float() for x in (*leaves, scale)]

    exact = computed(total_loss, False, torch.float32)
    plain = computed(total_loss, autocast, dtype)
    tiled = computed(total_loss_in_tiles, autocast, dtype, tile=4 * 256)
    torch.testing.assert_close(tiled[0], plain[0], atol=1e-5, rtol=1e-5)  # the products are the same
    for ours, theirs, right in zip(tiled[1], plain[1], exact[1], strict=True):
        assert (ours - right).norm() < 1.2 * (theirs - right).norm() + 1e-5 * right.norm()


def test_large_losses_are_computed_in_tiles(monkeypatch):
    model, used = make_model(layers=1), []
    monkeypatch.setattr(tiled_loss, "TILED_ABOVE", 16)
    monkeypatch.setattr(tiled_loss, "total_loss_in_tiles", lambda *given: used.append(len(given[0]["text_embeds"])))
    for pairs, processes in ((4, 1), (5, 1), (3, 2)):
        embeds = {name: torch.zeros(pairs, 12) for name in ("text_embeds", "image_embeds")}
        others = None if processes == 1 else lambda x: [x]
        loss_of_pairs(embeds, model.config, model.logit_scale, others=others, processes=processes)
    assert used == [5, 3]
