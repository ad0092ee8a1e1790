"""What ends a run: too few pictures, a loss or weights that are not finite, a full disk. And what is left of it then."""

import contextlib
import errno
import json
import math
import re
import resource
from types import SimpleNamespace

import pytest
import torch
from conftest import COLORS, arguments
from PIL import Image
from transformers import TrainerState

import train_hf
from mpclip.training.batch_size import refuse_few_examples
from mpclip.training.checkpoints import fault_of
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.command_line import parse_options
from mpclip.training.finite import NAMED, Batch, FiniteSteps, NotFinite, examples_named
from mpclip.training.run import build_trainer
from mpclip.training.trainer import MPCLIPTrainer

NAN = float("nan")


def weights_in(out) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.safetensors"))


# Batches without negatives, runs without steps -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra, message",
    [
        (
            ("--per_device_train_batch_size", "9"),
            r"There are 8 pictures .* split 'train', fewer than a batch of 9.*to 8 or less",
        ),
        (("--per_device_train_batch_size", "9", "--max_steps", "3"), "There are 8 pictures"),
        (("--per_device_train_batch_size", "1"), "per_device_train_batch_size=1: .*Set it to 2 or more"),
        (("--per_device_train_batch_size", "1", "--loss", "sigmoid"), "per_device_train_batch_size=1"),
        (("--train_split", "train[:1]", "--dataloader_drop_last", "false"), "There are 1 pictures.*Give more pictures"),
        (("--max_steps", "0"), "max_steps=0: no step would be made"),
        (("--num_train_epochs", "0"), "num_train_epochs=0 trains nothing"),
    ],
    ids=lambda value: "-".join(value[1::2]) if isinstance(value, tuple) else None,
)
def test_a_run_that_would_learn_nothing_is_refused_before_anything_is_computed(folder, tmp_path, monkeypatch, extra, message):
    monkeypatch.setattr("mpclip.training.run.build_model", None)
    with pytest.raises(SystemExit, match=rf"(?s)^train_hf\.py: .*{message}"):
        train_hf.main(arguments(folder, tmp_path / "out", *extra))
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_skipped_do_not_count(folder, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"file_name": f"{i}.png", "captions": ["a square"], "split": "train"} for i in range(4)]
    for row in rows:
        Image.new("RGB", (8, 8), COLORS[int(row["file_name"][0])]).save(tmp_path / "data" / row["file_name"])
    (tmp_path / "data" / "2.png").write_bytes(b"no picture")
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--dataset", str(tmp_path / "data"), "--eval_split", "none", "--check_images", "true")
    with pytest.warns(match=r"1 of 4 rows"), pytest.raises(SystemExit, match=r"There are 3 pictures .*fewer than a batch of 4"):
        train_hf.main(arguments(folder, tmp_path / "out", *options))


def test_every_process_needs_a_batch_and_no_batch_has_a_single_pair():
    given = {"per_device_train_batch_size": 4, "world_size": 2, "dataloader_drop_last": True}
    refuse_few_examples(8, SimpleNamespace(**given))
    with pytest.raises(
        ValueError, match=r"7 examples, fewer than a batch of 4 for each of 2 processes, 8 in all.* to 3 or less"
    ):
        refuse_few_examples(7, SimpleNamespace(**given))
    refuse_few_examples(4, SimpleNamespace(**given | {"dataloader_drop_last": False}))
    given |= {"dataloader_drop_last": False, "world_size": 1}
    refuse_few_examples(10, SimpleNamespace(**given))
    with pytest.raises(ValueError, match=r"9 examples; in batches of 4 the last .* Leave dataloader_drop_last true"):
        refuse_few_examples(9, SimpleNamespace(**given))


def test_the_trainer_alone_refuses_too_few_examples(folder, tmp_path):
    """In Python, without train_hf.py, too: transformers' Trainer would make no step and end well."""
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, "--max_steps", "2")))
    trainer.train_dataset.rows = trainer.train_dataset.rows.select(range(3))
    with pytest.raises(ValueError, match="There are 3 examples, fewer than a batch of 4"):
        trainer.train()


# Values that are not finite --------------------------------------------------------------------------------------------


def poison(monkeypatch, row: int, calls: int) -> None:
    """Make the picture of a row NaN from the given batch on."""
    collate, seen = MPCLIPCollator.__call__, []

    def poisoned(self, examples):
        batch = collate(self, examples)
        seen.append(None)
        if len(seen) >= calls:
            batch["pixel_values"][[example["index"] == row for example in examples]] = NAN
        return batch

    monkeypatch.setattr(MPCLIPCollator, "__call__", poisoned)


@pytest.mark.parametrize("extra", [("--eval_split", "none"), ("--num_train_epochs", "3", "--gradient_accumulation_steps", "2")])
def test_the_first_loss_that_is_not_finite_ends_the_run_and_names_the_example(folder, tmp_path, monkeypatch, extra):
    poison(monkeypatch, row=3, calls=3)  # from the second epoch on
    with pytest.raises(SystemExit) as ended:
        train_hf.main(arguments(folder, tmp_path, *extra))
    told = ended.value.code
    steps, last = ("2", tmp_path / "checkpoint-1") if "--num_train_epochs" in extra else ("[34]", tmp_path / "checkpoint-2")
    assert re.match(
        rf"train_hf\.py: Step {steps}: the loss is nan\. Not finite are the embeddings of 1 of its 4 examples: ", told
    )
    assert re.search(r': 3\.png \(".*yellow.*"\)\. ', told)
    assert f"The last good checkpoint is {last}. Lower the learning rates (learning_rate=0.001, " in told
    assert weights_in(tmp_path) == [f"{last.name}/model.safetensors"] and fault_of(last) is None


@pytest.mark.parametrize("clipped", ["0", "1"])
def test_a_gradient_that_is_not_finite_ends_the_run_before_a_weight_is_changed(folder, tmp_path, clipped):
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, "--max_grad_norm", clipped)))
    trainer.model.text_projection.weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(NotFinite, match=r"Step 1: .* not finite, though the loss is\. Its batch: .*No checkpoint was saved"):
        trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    "scale, loss, gradient, ends",
    [(2.0**16, 1.0, math.inf, False), (1e-5, 1.0, math.inf, True), (2.0**16, NAN, math.inf, True), (1e-5, 1.0, 1.0, False)],
)
def test_a_loss_scaler_may_skip_steps_until_its_scale_is_tiny(tmp_path, scale, loss, gradient, ends):
    """With fp16, gradients of the scaled loss overflow now and then. The loss itself must not."""
    model = torch.nn.Linear(1, 1)
    model.weight.grad = torch.tensor([[gradient]])
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    checks = FiniteSteps(SimpleNamespace(accelerator=SimpleNamespace(scaler=scaler)))
    checks.batches = [Batch(torch.tensor(loss), rows=None, embeds=[])]
    args = parse_options(["--output_dir", str(tmp_path)]).training
    with pytest.raises(NotFinite, match=r"^Step 1: ") if ends else contextlib.nullcontext():
        checks.on_pre_optimizer_step(args, TrainerState(), None, model=model)


def test_only_some_examples_are_named(folder, tmp_path):
    dataset = build_trainer(parse_options(arguments(folder, tmp_path))).train_dataset
    told = examples_named(dataset, list(range(8)))
    assert told.count(".png (") == NAMED and told.endswith(f" and {8 - NAMED} more")
    assert examples_named([], [4, 7]) == "row 4, row 7"  # of a data set of another kind


def test_weights_that_are_not_finite_are_neither_saved_nor_evaluated(folder, tmp_path):
    trainer = build_trainer(parse_options(arguments(folder, tmp_path)))
    with torch.no_grad():
        trainer.model.image_projection.weight[0, 0] = NAN
    with pytest.raises(NotFinite, match=r"not saved: image_projection\.weight has NaN"):
        trainer.save_model()
    with pytest.raises(NotFinite, match=r"embeddings of 4 of 4 examples are not finite\. No checkpoint"):
        trainer.evaluate()
    assert not weights_in(tmp_path)


@pytest.mark.parametrize("cached", ["true", "false"])
def test_examples_are_named_by_file_with_cached_states_too(folder, tmp_path, cached):
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, "--cache_states", cached)))
    batch = Batch(torch.tensor(NAN), torch.tensor([2, 5]), [torch.tensor([[1.0], [NAN]])])
    assert re.match(r'Not finite are .* 1 of its 2 examples: 5\.png \(".*white.*"\)\. $', trainer.finite_steps._told([batch]))


# A full disk -----------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_leaves_the_checkpoint_before(folder, tmp_path, monkeypatch):
    """Files of more than 50 KB cannot be written after the first checkpoint; those of the weights have 250 KB."""
    save, saved = MPCLIPTrainer._save, []

    def limited(self, *args, **kwargs):
        saved.append(None)
        limit = 50_000 if len(saved) == 2 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            return save(self, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    monkeypatch.setattr(MPCLIPTrainer, "_save", limited)
    with pytest.raises(SystemExit) as ended:
        train_hf.main(arguments(folder, tmp_path))
    first, second = tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"
    assert ended.value.code.startswith(f"train_hf.py: {second} could not be saved and is removed: ")
    assert f"The same command goes on from {first}." in ended.value.code and "MB left" in ended.value.code
    assert weights_in(tmp_path) == ["checkpoint-2/model.safetensors"] and not second.exists()
    assert fault_of(first) is None


@pytest.mark.parametrize("when", ["optimizer.pt", "_saving/training_args.bin"])
def test_a_full_disk_is_told_by_the_error_of_the_system(folder, tmp_path, monkeypatch, when):
    """While a checkpoint is saved, and while the model is: the one of an earlier run stays."""
    full, save = OSError(errno.ENOSPC, "No space left on device"), torch.save
    (tmp_path / "model.safetensors").write_bytes(b"of an earlier run")

    def saving(content, path, *args, **kwargs):
        if str(path).endswith(when):
            raise RuntimeError("[enforce fail] unexpected pos") from full
        return save(content, path, *args, **kwargs)

    monkeypatch.setattr("torch.save", saving)
    with pytest.raises(SystemExit, match=r"could not be saved.*: \[Errno 28\] No space left on device\. Its disk has") as ended:
        train_hf.main(arguments(folder, tmp_path, "--num_train_epochs", "1"))
    kept = tmp_path / "checkpoint-2"
    assert (f"goes on from {kept}." in ended.value.code) is (when != "optimizer.pt") is kept.exists()
    assert (tmp_path / "model.safetensors").read_bytes() == b"of an earlier run" and not (tmp_path / "_saving").exists()
