"""What trackers get: read back from the event file of tensorboard, and equal on one process and on several."""

import glob
import math

import pytest
import torch
from conftest import arguments, make_model

from mpclip.training import ModelArguments, build_trainer, parse_options, prepare_tuning, watch
from mpclip.training.watch import Watch, mean_similarity, norms_by_group, show_matrix

NO_CHECKPOINTS = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]


def test_tensorboard_shows_what_a_user_watches(folder, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    monkeypatch.setattr(watch, "MATRIX_EVERY", 2)
    extra = ["--report_to", "tensorboard", "--text_tuning", "lora", "--lora_rank", "4", "--vision_tuning", "full"]
    extra += ["--max_steps", "3", "--diversity_weight", "0.5", *NO_CHECKPOINTS]
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, *extra)))
    trainer.train()
    (file,) = glob.glob(str(tmp_path / "events" / "**" / "events*"), recursive=True)
    events = EventAccumulator(file)
    events.Reload()
    scalars = {tag.removeprefix("train/"): [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    names = ("loss", "contrastive_loss", "diversity_loss", "logit_scale", "prompt_similarity", "waiting_share")
    names += ("samples_per_second", "tokens_per_second")
    names += tuple(f"grad_norm_{group}" for group in ("new", "adaptive", "lora", "image_tower"))
    assert scalars.keys() >= set(names) and "grad_norm_llm" not in scalars
    assert all(len(scalars[name]) == 3 and all(map(math.isfinite, scalars[name])) for name in names)
    assert all(0 < value < 1 for value in scalars["waiting_share"])
    assert all(-1 <= value <= 1 for value in scalars["prompt_similarity"])
    # The texts of this set have 3 to 40 tokens, and the prompts are more.
    prompts = len(trainer.model.prompt_tree())
    rates = zip(scalars["samples_per_second"], scalars["tokens_per_second"], strict=True)
    assert all(prompts + 1 < tokens / pairs < prompts + 40 for pairs, tokens in rates)
    # The groups are all gradients there are: Trainer clips them to a norm of 1.
    groups = [sum(scalars[name][step] ** 2 for name in names if name.startswith("grad_norm")) for step in range(3)]
    clipped = [min(1.0, norm) for norm in scalars["grad_norm"]]
    assert [math.sqrt(square) for square in groups] == pytest.approx(clipped, rel=1e-2)
    pictures = events.Images("train/prompt_similarity_matrix")
    assert [picture.step for picture in pictures] == [1, 3] and pictures[0].width == 16 * 3


def test_without_a_tracker_nothing_is_computed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "norms_by_group", None)
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, "--max_steps", "1", *NO_CHECKPOINTS)))
    trainer.train()
    assert trainer.watch is None and "samples_per_second" not in trainer.state.log_history[0]


def test_similarity_of_prompts():
    segments = torch.tensor([[[1.0, 0], [0, 2]], [[1, 0], [3, 0]]])  # (B, K, D/K)
    torch.testing.assert_close(mean_similarity(segments), torch.tensor([[1, 0.5], [0.5, 1]]))


def test_trackio_gets_the_matrix_as_a_picture(monkeypatch):
    trackio = pytest.importorskip("trackio", reason="pip install trackio")
    logged = {}
    monkeypatch.setattr(trackio, "log", logged.update)

    class TrackioCallback:
        pass

    show_matrix(torch.tensor([[1.0, -1], [-1, 1]]), [TrackioCallback(), object()], step=1)
    (picture,) = logged.values()
    pixels = picture._value
    assert isinstance(picture, trackio.Image) and pixels.shape == (32, 32, 3)
    assert pixels[0, 0].tolist() == [255] * 3 and pixels[0, 16].tolist() == [0] * 3


def test_groups_of_gradients():
    model = prepare_tuning(make_model(layers=1, adaptive_tokens="boundary", boundary_layer=0), ModelArguments())
    expected = {"new": 0.0, "adaptive": 0.0, "llm": 0.0}
    for i, (name, weight) in enumerate(model.named_parameters()):
        if weight.requires_grad:
            weight.grad = torch.full_like(weight, 1.0 + i)
            group = "adaptive" if "boundary_embedding" in name else "llm" if name.startswith("text_model.") else "new"
            expected[group] += weight.numel() * (1.0 + i) ** 2
    found = norms_by_group(model, None)
    assert {name: norm.item() ** 2 for name, norm in found.items()} == pytest.approx(expected, rel=1e-5)


def test_rates_count_all_processes(monkeypatch):
    """Two processes of which the other has waited longer; `reduce` gives the mean."""

    class Accelerator:
        @staticmethod
        def reduce(told, how):
            assert how == "mean"
            other = told.clone()
            other[0] += 2.0  # seconds of waiting
            return (told + other) / 2

    class Trainer:
        accelerator = Accelerator

        class args:
            device, world_size = torch.device("cpu"), 2

        class callback_handler:
            callbacks = ()

        class state:
            global_step = 1

    seen = Watch(Trainer)
    seen.waited, seen.computed = 1.0, 2.0
    seen.saw({"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}, prompt_tokens=5)
    seen.segments = torch.eye(2).expand(3, 2, 2)
    values = seen.values()
    # 2 seconds of waiting and 2 of computing on average; 2 pairs and 15 tokens in each process.
    assert values == {"waiting_share": 0.5, "samples_per_second": 1.0, "tokens_per_second": 7.5, "prompt_similarity": 0.0}
    assert seen.pairs == seen.tokens == seen.waited == seen.computed == 0
