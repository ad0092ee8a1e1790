"""projection_start="closed_form": what is written into a model equals a regression by the book, by every road."""

import json
from contextlib import nullcontext

import datasets
import pytest
import several_processes
import torch
import torch.nn.functional as F
from conftest import arguments, make_model, make_processor, make_tokenizer
from PIL import Image

from model_card.card import write_card
from mpclip.training import ImageTextDataset, ModelArguments, build_trainer, parse_options, prepare_tuning, train
from mpclip.training.closed_form import RIDGE, solve_projections
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.ridge import RIDGES, WHITENING, Ridge, Sums, whitened_axes
from mpclip.training.state_cache import cache_image_states, cache_text_states

FORMS = {
    "own": {},
    "words": {"words": True},
    "joint": {"joint_projection": True, "words": True},
    "one query": {"image_pooling": "attention", "words": True},
    "mean": {"text_pooling": "mean", "num_prompts": 1, "words": True},
    "sigmoid": {"loss": "sigmoid", "joint_projection": True},
}
BOUNDARY = {"adaptive_tokens": "boundary", "boundary_layer": 2}


def rows_of(count: int) -> datasets.Dataset:
    """Pictures of one colour, and captions that name its three parts."""
    draw = torch.randint(0, 4, (count, 3), generator=torch.Generator().manual_seed(0)).tolist()
    words = ["none", "little", "much", "all"]
    captions = [[f"red {words[r]}, green {words[g]}, blue {words[b]}", f"{words[r]} {words[g]} {words[b]}"] for r, g, b in draw]
    pictures = [Image.new("RGB", (32, 32), tuple(80 * part for part in colour)) for colour in draw]
    return datasets.Dataset.from_dict({"image": pictures, "captions": captions})


def solve(model, rows, collator=None, **options):
    dataset = ImageTextDataset(rows, "random", with_images=collator is None)
    collator = collator or MPCLIPCollator(make_processor(make_tokenizer()), words=model.config.words)
    return solve_projections(model, dataset, collator, batch_size=8, context=nullcontext, **options)


def inputs_of(rows):
    processor = make_processor(make_tokenizer())
    texts = [text for row in rows["captions"] for text in row]
    owner = torch.tensor([i for i, row in enumerate(rows["captions"]) for _ in row])
    return processor(text=texts, truncation=True), processor(images=list(rows["image"])), owner


@torch.no_grad()
def by_the_book(model, rows, strength: float):
    """(T, D) and (I, D) embeddings: least squares on augmented rows, where the solver uses sums."""
    config = model.config
    texts, pictures, owner = inputs_of(rows)
    tokens = model.vision_tokens(**pictures)
    means = F.layer_norm(tokens, tokens.shape[-1:]).mean(dim=1)
    centre, axes = whitened_axes(means, config.pooling_width)
    y = (means - centre) @ axes  # (I, r)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.text_projection), "forward", lambda self, x: seen.append(x) or x[..., :4])
        model.get_text_features(**texts)
    K, d, H = config.num_prompts, config.projection_dim // config.num_prompts, config.text_config.hidden_size
    text_parts, image_parts = [], []
    for k in range(1 if config.joint_projection else K):
        x, target = seen[0][:, k], y[owner]
        parts = x.split(H, dim=1)
        scale = torch.cat([(p - p.mean(0)).square().sum(1).mean().sqrt().expand(H) for p in parts])
        z = x / scale
        load = (strength * len(parts) / x.shape[1] * len(x)) ** 0.5
        augmented = torch.cat([z, load * torch.eye(z.shape[1])]).double()
        padded = torch.cat([target, torch.zeros(z.shape[1], y.shape[1])]).double()
        weight = torch.linalg.lstsq(augmented, padded, driver="gelsd").solution.float()
        predicted = z @ weight  # (T, r)
        directions = torch.linalg.eigh(torch.cov(predicted.T))[1].flip(1)
        for turn in [range(j, y.shape[1], K)[:d] for j in range(K)] if config.joint_projection else [range(d)]:
            text_parts.append(predicted @ directions[:, list(turn)])
            image_parts.append(y @ directions[:, list(turn)])
    return F.normalize(torch.cat(text_parts, 1), dim=-1), F.normalize(torch.cat(image_parts, 1), dim=-1)


@pytest.mark.parametrize("form", FORMS)
def test_the_model_computes_the_regression(form):
    rows = rows_of(12)
    model = make_model(**FORMS[form])
    found = solve(model, rows)
    assert found["pictures"] == 12 and found["texts"] == 24 and found["ridge"] == RIDGE and "mean_recall" not in found
    texts, pictures, owner = inputs_of(rows)
    with torch.no_grad():
        output = model(**texts, **pictures)
    expected = by_the_book(model, rows, RIDGE)
    # Directions have no sign, and those of equal strength no order: similarities have both.
    torch.testing.assert_close(output.text_embeds @ output.image_embeds.T, expected[0] @ expected[1].T, atol=2e-3, rtol=1e-2)
    weights = output.vision_model_output.pooling_attentions
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / weights.shape[-1]))  # the pooling is a mean


def test_it_finds_pictures_that_it_has_not_seen():
    rows = rows_of(120)
    model = make_model(**FORMS["joint"], projection_dim=24)
    before = model.logit_scale.log_scale.item()
    found = solve(model, rows.select(range(100)))
    assert found["ridge"] in RIDGES
    texts, pictures, owner = inputs_of(rows.select(range(100, 120)))
    with torch.no_grad():
        output = model(**texts, **pictures)
    ranks = (output.logits_per_text >= output.logits_per_text.gather(1, owner[:, None])).sum(1)  # of 20
    assert ranks.float().mean() < 4  # 10.5 by chance
    assert model.logit_scale.log_scale.item() != before and model.logit_scale.log_scale.grad is None


def test_cached_states_and_adapters_give_the_same_solution(tmp_path):
    rows, tokenizer = rows_of(24), make_tokenizer()
    processor = make_processor(tokenizer)
    captions = [text for row in rows["captions"] for text in row]
    solved = []
    for road in ("plain", "cached", "adapter"):
        model = make_model(tokenizer=tokenizer, **FORMS["joint"], **BOUNDARY, negation_weight=0.5)
        model.requires_grad_(False)
        collator = MPCLIPCollator(processor, words=True)
        if road == "cached":
            states = cache_text_states(model, tokenizer, captions, tmp_path, negated=True, format="float32")
            images = cache_image_states(model, processor.image_processor, rows, tmp_path, format="float32")
            collator = MPCLIPCollator(processor, states, images, words=True)
        wrapped = prepare_tuning(model, ModelArguments(text_tuning="lora", lora_layers=1)) if road == "adapter" else model
        solve(wrapped, rows, collator if road == "cached" else None)
        texts, pictures, _ = inputs_of(rows)
        with torch.no_grad():
            solved.append(wrapped(**texts, **pictures).logits_per_text)
    for other in solved[1:]:
        torch.testing.assert_close(other, solved[0], atol=1e-2, rtol=1e-2)


class Clips(ImageTextDataset):
    """Pictures as clips of two equal frames."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item | {"image": [item["image"]] * 2}


def test_clips_are_read_as_the_tokens_of_their_frames():
    """Where nothing tells frames apart, a clip of equal frames is its picture."""
    rows, solved = rows_of(12), []
    for dataset in (ImageTextDataset(rows), Clips(rows)):
        model = make_model(**FORMS["words"], frame_position="none")
        collator = MPCLIPCollator(make_processor(make_tokenizer()))
        solve_projections(model, dataset, collator, batch_size=8, context=nullcontext)
        texts, pictures, _ = inputs_of(rows)
        with torch.no_grad():
            solved.append(model(**texts, **pictures).logits_per_text)
    torch.testing.assert_close(solved[1], solved[0], atol=1e-2, rtol=1e-2)


def test_everything_learns_after_it():
    """Also dimensions for which the pictures have no direction."""
    rows = rows_of(12)
    model = make_model(**FORMS["joint"], projection_dim=96)  # 16 axes for 96 dimensions
    solve(model, rows)
    texts, pictures, _ = inputs_of(rows)
    model.train()
    first = {name: value[::2] for name, value in texts.items()}
    model(**first, **pictures, return_loss=True).loss.backward()
    without = (model.image_projection.weight == 0).all(dim=1)  # (K, D/K)
    assert without.sum() == 96 - 12  # as many axes as pictures
    assert all((part.weight.grad != 0).any(dim=1).all() for part in (model.image_projection, model.text_projection))


def test_ridges_are_those_of_their_definition():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=draw) + 3, torch.randn(50, 2, generator=draw)
    sums = Sums.of(x[:20], y[:20]) + Sums.of(x[20:], y[20:])
    weight = Ridge(sums, [6]).solve(1e-9)  # all but ordinary least squares
    torch.testing.assert_close(weight, torch.linalg.lstsq(x, y).solution, atol=1e-4, rtol=1e-3)
    stronger = [Ridge(sums, [2, 4]).solve(strength).norm() for strength in RIDGES]
    assert stronger == sorted(stronger, reverse=True)
    mean, axes = whitened_axes(x, most=4)
    assert axes.shape == (6, 4)
    variance = ((x - mean) @ axes).var(dim=0, correction=0)
    every = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    torch.testing.assert_close(variance, every[-4:] / (every[-4:] + WHITENING * every.mean()), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"image_pooling": "mean"}, "image_pooling='mean' does not have"),
        ({"shared_projection": True}, "shared_projection=True has one for all"),
    ],
)
def test_models_that_cannot_hold_it_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        solve(make_model(**options), rows_of(4))


def test_one_picture_is_refused():
    with pytest.raises(ValueError, match="needs two pictures or more, and there are 1"):
        solve(make_model(), rows_of(1))


def test_a_run_without_epochs_ends_with_the_solution(folder, tmp_path):
    given = [*arguments(folder, tmp_path, "--words", "true", "--joint_projection", "true"), "--num_train_epochs", "0"]
    few = ["--per_device_train_batch_size", "64"]  # no batch is made, so that none is too large
    options = parse_options([*given, "--projection_start", "closed_form", *few])
    trainer = build_trainer(options, write_card=write_card)
    metrics = train(trainer, options=options)
    assert "solved in closed form" in (tmp_path / "README.md").read_text()
    assert metrics["eval_mean_recall"] > 0
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["trained_parameters"] == 0
    assert record["closed_form"]["pictures"] == 8 and (tmp_path / "model.safetensors").exists()
    with pytest.raises(ValueError, match="num_train_epochs=0 trains nothing"):
        build_trainer(parse_options(given))
    clips = ["--projection_start", "closed_form", "--video_column", "v", "--clip_pooling", "mean", "--frame_position", "none"]
    with pytest.raises(ValueError, match="clip_pooling='mean' takes a mean"):
        build_trainer(parse_options([*given, *clips]))
    with pytest.raises(ValueError, match="closed_form cannot be combined with --streaming"):
        build_trainer(parse_options([*given, "--projection_start", "closed_form", "--streaming", "true"]))


def test_a_resumed_run_keeps_what_it_has_learnt(folder, tmp_path, monkeypatch):
    given = arguments(folder, tmp_path, "--projection_start", "closed_form", "--max_steps", "2")
    options = parse_options(given)
    train(build_trainer(options), options=options)
    (tmp_path / "training.json").unlink()
    monkeypatch.setattr("mpclip.training.closed_form.solve_projections", None)
    train(build_trainer(options), options=options)


PROCESSES = """
out, *argv = argv

def work(rank, count):
    # With batches of all pictures, the second process has none.
    trainer = build_trainer(parse_options([*argv, "--output_dir", f"{out}/{count}"]))
    found = mpclip.training.run.solve_start(trainer, parse_options(argv).model)
    images, texts, _ = map(torch.from_numpy, trainer.predict(trainer.eval_dataset).predictions)
    if rank == 0:
        torch.save([found["texts"], texts @ images.T], f"{out}/{count}.pt")

for count in (1, 2):
    in_processes(count, work)
"""


def test_processes_share_the_work(folder, tmp_path):
    given = arguments(folder, tmp_path, "--words", "true", "--joint_projection", "true", "--projection_start", "closed_form")
    given += ["--per_device_train_batch_size", "8", "--dataloader_drop_last", "false"]
    several_processes.run(PROCESSES, tmp_path, str(tmp_path), *given)
    (texts, one), (texts_of_two, two) = (torch.load(tmp_path / f"{count}.pt") for count in (1, 2))
    assert texts == texts_of_two == 20
    torch.testing.assert_close(two, one, atol=2e-3, rtol=1e-2)
