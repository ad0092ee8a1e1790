"""Which checkpoint a run resumes from, and what it does in a folder that another run has used or is using."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import arguments
from safetensors.torch import load_file, save_file

import train_hf
from mpclip.training.checkpoints import checkpoints_in, fault_of, last_complete_checkpoint
from mpclip.training.command_line import parse_options
from mpclip.training.folder_lock import locked
from mpclip.training.resume import Start, changed_options, find_start, mark_finished, prepare_folder, shaping_options
from mpclip.training.run import build_trainer, train


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The output folder of a finished run."""
    out = tmp_path_factory.mktemp("finished")
    train_hf.main(arguments(folder, out))
    return out


@pytest.fixture
def interrupted(finished, tmp_path):
    """A copy of its checkpoints: a run that was ended before its model was saved."""
    out = tmp_path / "run"
    out.mkdir()
    for checkpoint in checkpoints_in(finished):
        shutil.copytree(checkpoint, out / checkpoint.name)
    run = json.loads((finished / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({name: value for name, value in run.items() if name != "finished"}))
    return out


def start_of(folder, out, *extra: str) -> Start:
    return find_start(parse_options(arguments(folder, out, *extra)))


def cut(file) -> None:
    file.write_bytes(file.read_bytes()[:200])


def poison(file) -> None:
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[-1] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


FAULTS = {
    "optimizer.pt": "optimizer",
    "scheduler.pt": "schedule of the learning rates",
    "rng_state.pth": "it lacks rng_state.pth",
    "trainer_state.json": "it lacks trainer_state.json",
    "model.safetensors": "it lacks its weights",
}


@pytest.mark.parametrize("file", FAULTS)
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_faulty_checkpoint_is_passed_over_and_refused_if_it_is_named(folder, interrupted, caplog, file, harm):
    """Trainer goes on without the state of the optimizer, and the learning rate climbs from 0 again."""
    newest, before = checkpoints_in(interrupted)
    if harm == "cut":
        cut(newest / file)
    else:
        (newest / file).unlink()
    assert start_of(folder, interrupted).checkpoint == str(before)
    assert f"{newest} is skipped: it" in caplog.text
    assert (FAULTS[file] if harm == "missing" else f"its {file} is cut short or damaged") in caplog.text
    with pytest.raises(
        ValueError, match=rf"--resume_from_checkpoint {newest}: .*The checkpoints in .* checkpoint-4, checkpoint-2"
    ):
        start_of(folder, interrupted, "--resume_from_checkpoint", str(newest))


def test_a_checkpoint_of_weights_that_are_not_finite_is_passed_over(folder, interrupted, caplog):
    newest, before = checkpoints_in(interrupted)
    poison(newest / "model.safetensors")
    assert start_of(folder, interrupted).checkpoint == str(before)
    assert f"{newest} is skipped: its weights " in caplog.text and "NaN or infinite" in caplog.text


def test_each_process_and_a_loss_scaler_have_a_part_in_a_checkpoint(interrupted):
    newest = checkpoints_in(interrupted)[0]
    assert fault_of(newest) is None
    assert fault_of(newest, processes=2) == "it lacks rng_state_0.pth, rng_state_1.pth"
    assert fault_of(newest, scaled=True) == "it lacks scaler.pt"
    (newest / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    assert fault_of(newest) == "it lacks model-00002-of-00002.safetensors"


def test_folders_that_trainer_did_not_name_are_not_its_checkpoints(folder, interrupted, tmp_path):
    for name in ("checkpoint-best", "checkpoint-9-copy", "checkpoint-"):
        (interrupted / name).mkdir()
    (interrupted / "checkpoint-12").touch()
    assert [path.name for path in checkpoints_in(interrupted)] == ["checkpoint-4", "checkpoint-2"]
    prepare_folder(parse_options(arguments(folder, interrupted)), Start(None))
    assert (interrupted / "checkpoint-best").exists() and not (interrupted / "checkpoint-4").exists()
    assert last_complete_checkpoint(interrupted) is None


def test_a_named_checkpoint_may_lie_elsewhere_if_the_options_are_the_same(folder, interrupted, tmp_path):
    named = ("--resume_from_checkpoint", str(interrupted / "checkpoint-2"))
    start = start_of(folder, tmp_path / "new", *named)
    assert start == Start(str(interrupted / "checkpoint-2"))
    options = parse_options(arguments(folder, tmp_path / "new", *named))
    prepare_folder(options, start)
    assert changed_options(json.loads((tmp_path / "new" / "run.json").read_text()), shaping_options(options)) == {}
    with pytest.raises(ValueError, match=r"run holds checkpoints of a run with other options \(seed: 42 -> 7\)"):
        start_of(folder, tmp_path / "new", *named, "--seed", "7")
    (interrupted / "run.json").unlink()
    with pytest.raises(ValueError, match=r"There is no run\.json beside .*checkpoint-2, so the options of its run are unknown"):
        start_of(folder, tmp_path / "new", *named)


def test_a_checkpoint_that_is_not_there(folder, interrupted, tmp_path):
    nowhere = ("--resume_from_checkpoint", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"nowhere: there is no such folder\. Give the folder checkpoint-N of a run"):
        start_of(folder, tmp_path / "new", *nowhere)
    with pytest.raises(ValueError, match=r"run: it lacks .*\. The checkpoints in .*run are checkpoint-4, checkpoint-2\."):
        start_of(folder, tmp_path / "new", "--resume_from_checkpoint", str(interrupted))


@pytest.mark.parametrize("spelling", ["{}/", "{}/../data", "./data", "~/data"])
def test_every_spelling_of_a_path_is_the_same_data_set(folder, interrupted, monkeypatch, spelling):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    dataset = spelling.format(folder / "data")
    assert start_of(folder, interrupted, "--dataset", dataset).checkpoint == str(interrupted / "checkpoint-4")
    with pytest.raises(ValueError, match="dataset: "):
        start_of(folder, interrupted, "--dataset", f"{dataset}2")


# Machines that are fastest in another dtype ------------------------------------------------------------------------------


@pytest.fixture
def float32_machine(monkeypatch):
    found = {"device": "a CPU", "gflops": {"float32": 95.0, "bfloat16": 0.8}, "dtype": "float32"}
    for module in ("mpclip.hardware", "mpclip.training.resume"):
        monkeypatch.setattr(f"{module}.speeds", lambda device: found)


def began_in(out, dtype: str) -> None:
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(run | {"bf16": dtype == "bfloat16", "fp16": dtype == "float16"}))


def test_a_run_goes_on_in_its_dtype_on_a_machine_that_is_faster_in_another(folder, interrupted, float32_machine, caplog):
    caplog.set_level("INFO")
    began_in(interrupted, "bfloat16")
    shutil.rmtree(interrupted / "checkpoint-4")
    before = json.loads((interrupted / "run.json").read_text())
    train_hf.main(arguments(folder, interrupted, "--precision", "auto"))
    told = "began in bfloat16 and goes on in it, although float32 is faster here (GFLOPS of a matrix product: bfloat16 0.8, "
    assert told + "float32 95)" in caplog.text and "Computing in bfloat16 on cpu" in caplog.text
    record = json.loads((interrupted / "training.json").read_text())
    assert record["resumed_from"] == "checkpoint-2" and record["MPCLIPTrainingArguments"]["precision"] == "bfloat16"
    after = json.loads((interrupted / "run.json").read_text())
    assert after.pop("finished") and after == before


def test_a_dtype_that_is_asked_for_is_that_of_another_run(folder, interrupted, float32_machine):
    began_in(interrupted, "bfloat16")
    for asked in (["--precision", "float32"], ["--precision", "auto", "--bf16", "false"]):
        with pytest.raises(ValueError, match=r"a run with other options \(bf16: True -> False\)"):
            start_of(folder, interrupted, *asked)
    began_in(interrupted, "float16")
    for checkpoint in interrupted.glob("checkpoint-*"):
        shutil.copy(checkpoint / "scheduler.pt", checkpoint / "scaler.pt")  # a run in float16 saves one
    with pytest.raises(ValueError, match=r"a run with other options \(fp16: True -> False\)"):  # which needs a GPU
        start_of(folder, interrupted, "--precision", "auto")


def test_a_new_run_takes_no_dtype_from_a_run_without_checkpoints(folder, interrupted, float32_machine):
    began_in(interrupted, "bfloat16")
    for checkpoint in checkpoints_in(interrupted):
        shutil.rmtree(checkpoint)
    options = parse_options(arguments(folder, interrupted, "--precision", "auto"))
    assert find_start(options) == Start(None) and options.training.precision == "float32"


# Runs that are finished ------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(folder, finished, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("mpclip.training.run.build_model", None)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    metrics = train_hf.main(arguments(folder, finished))
    assert metrics == json.loads((finished / "eval_results.json").read_text())
    assert "is finished" in caplog.text and f"--checkpoint {finished} --output_dir ANOTHER" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit, match=r"num_train_epochs: 2\.0 -> 3\.0"):
        train_hf.main(arguments(folder, finished, "--num_train_epochs", "3"))


def test_a_run_that_was_ended_after_its_last_step_is_finished_without_another(folder, finished, interrupted):
    """From Python, a finished run gives its model and metrics again, and keeps the record of the training."""
    for name in ("train_results.json", "training.json"):  # of an earlier run in this folder
        shutil.copy(finished / name, interrupted)
    before = (interrupted / "train_results.json").read_text()
    options = parse_options(arguments(folder, interrupted, "--load_best_model_at_end", "false"))
    assert not find_start(options).finished
    trainer = build_trainer(options)
    metrics = train(trainer, options=options)
    assert find_start(options).finished
    assert (interrupted / "train_results.json").read_text() == before and metrics["eval_mean_recall"] > 0
    last = load_file(interrupted / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in load_file(interrupted / "model.safetensors").items())


def test_a_new_run_is_not_finished_by_the_files_of_the_one_before(folder, interrupted):
    options = parse_options(arguments(folder, interrupted, "--resume_from_checkpoint", "false"))
    mark_finished(interrupted)
    (interrupted / "training.json").write_text("{}")
    assert start_of(folder, interrupted).finished and not find_start(options).finished
    prepare_folder(options, Start(None))
    assert not start_of(folder, interrupted).finished


def test_a_damaged_best_checkpoint_is_told_at_the_end(folder, interrupted):
    newest, before = checkpoints_in(interrupted)
    state = json.loads((newest / "trainer_state.json").read_text())
    state |= {"best_model_checkpoint": str(before), "best_global_step": 2, "best_metric": 100.0}
    (newest / "trainer_state.json").write_text(json.dumps(state))
    poison(before / "model.safetensors")
    with pytest.raises(
        SystemExit, match=rf"best checkpoint {before} cannot be loaded: its weights .* --load_best_model_at_end false"
    ):
        train_hf.main(arguments(folder, interrupted))
    assert not (interrupted / "model.safetensors").exists()


# Two at once -----------------------------------------------------------------------------------------------------------

HOLD = """
import sys
repository, folder = sys.argv[1:]
sys.path.insert(0, repository)
from pathlib import Path
from mpclip.training.folder_lock import locked
with locked(Path(folder)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_belongs_to_one_run_at_a_time(folder, tmp_path):
    """Two programs; the first of them dies without a word."""
    out = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(Path(train_hf.__file__).parent), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SystemExit, match=rf"Another run \(process {holder.pid} on .*\) is writing to {out}\. Wait"):
            train_hf.main(arguments(folder, out))
        holder.kill()
    with locked(out), locked(out):  # within a process it may be taken again
        assert json.loads((out / "_running.json").read_text())["process"] == os.getpid()
    assert not out.exists()
    with pytest.raises(KeyError), locked(out):
        raise KeyError
    assert not out.exists()
