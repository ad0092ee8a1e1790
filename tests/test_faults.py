"""Runs that die while they write, disks that are full, processes that go away: the same command goes on as if nothing had been.

The program runs in processes of its own and dies by the kernel's hand, in the middle of a write.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from conftest import arguments
from safetensors.torch import load_file
from transformers import TrainerState

import train_hf
from mpclip.training.arguments import MPCLIPTrainingArguments
from mpclip.training.checkpoints import checkpoints_in, fault_of, last_complete_checkpoint
from mpclip.training.command_line import parse_options
from mpclip.training.resume import find_start
from mpclip.training.trainer import MPCLIPTrainer

# Where a run is when it dies or the disk is full: a method, its which call in an undisturbed run, and how many bytes of a file
# can still be written from then on. There are checkpoint-2, checkpoint-4 and the final model; weights have 250 KB.
IN_WEIGHTS_OF_2 = ("save_model", 1, 100_000)
IN_OPTIMIZER_OF_2 = ("_save_optimizer_and_scheduler", 1, 20_000)
IN_RANDOM_STATE_OF_4 = ("_save_rng_state", 2, 2_000)
IN_LAST_FILE_OF_4 = ("save_to_json", 2, 300)
IN_FINAL_WEIGHTS = ("save_model", 3, 100_000)


@pytest.fixture(scope="module")
def command(folder):
    """The command line of a run without evaluation, for an output folder."""
    return lambda out, *extra: arguments(folder, out, "--eval_split", "none", *extra)


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The output folder of a run that nothing has disturbed."""
    out = tmp_path_factory.mktemp("whole")
    train_hf.main(command(out))
    return out


def assert_equal_runs(one, other) -> None:
    """The same weights, bit by bit, and the same losses, learning rates and norms of gradients at each step."""
    weights = [load_file(out / "model.safetensors") for out in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    curves = []
    for out in (one, other):
        log = json.loads((checkpoints_in(out)[0] / "trainer_state.json").read_text())["log_history"]
        curves.append([{name: line[name] for name in ("step", "loss", "learning_rate", "grad_norm")} for line in log])
    assert curves[0] == curves[1] and len(curves[0]) == 4


def run_until(
    argv: list[str], place: tuple | None, environment: dict, dies_in_step: int | None, disk: Connection | None
) -> None:
    """A process: the program itself, with what awaits it. `disk` is told how it ends where files can only not be written."""
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_WRONLY)  # the limit would hold for a file that output goes to
    os.dup2(nothing, 1), os.dup2(nothing, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if disk is None:
        signal.signal(
            signal.SIGXFSZ, signal.SIG_DFL
        )  # the kernel ends who writes beyond the limit. Python has this switched off
    if place is not None:
        method, which, size = place
        last = last_complete_checkpoint(Path(argv[argv.index("--output_dir") + 1]))
        before = int(last.name.removeprefix("checkpoint-")) // 2 if last else 0  # saved by runs before
        at_call(method, which - before, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)))
    if dies_in_step is not None:
        at_call("compute_loss", dies_in_step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    try:
        train_hf.main(argv)
    except SystemExit as refusal:
        if disk is None:
            raise
        disk.send(str(refusal.code))


def at_call(method: str, which: int, act: Callable[[], None]) -> None:
    """Act before a call of a method of the trainer, or of its state, in this process."""
    owner = TrainerState if method == "save_to_json" else MPCLIPTrainer
    own, calls = getattr(owner, method), []

    def watched(*args, **kwargs):
        calls.append(None)
        if len(calls) == which:
            act()
        return own(*args, **kwargs)

    setattr(owner, method, watched)


def start(argv: list[str], place: tuple | None = None, environment: dict | None = None, dies_in_step=None, disk=None):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sentence_transformers", "mpclip.training.run"])
    process = context.Process(target=run_until, args=(argv, place, environment or {}, dies_in_step, disk))
    process.start()
    return process


def ended(process) -> int:
    """The exit status; that of a process which a signal has ended is its negative number."""
    process.join(250)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(command, whole, tmp_path):
    left = []
    for place in (IN_WEIGHTS_OF_2, IN_OPTIMIZER_OF_2, IN_RANDOM_STATE_OF_4, IN_LAST_FILE_OF_4, IN_FINAL_WEIGHTS):
        assert ended(start(command(tmp_path), place)) == -signal.SIGXFSZ, place
        last = last_complete_checkpoint(tmp_path)
        left.append(last and last.name)
    assert left == [None, None, "checkpoint-2", "checkpoint-2", "checkpoint-4"]
    assert not (tmp_path / "model.safetensors").exists()  # a part of it is in a folder of its own
    assert ended(start(command(tmp_path))) == 0
    assert json.loads((tmp_path / "training.json").read_text())["resumed_from"] == "checkpoint-4"
    assert_equal_runs(tmp_path, whole)


def test_a_disk_that_is_full_at_any_moment_is_told_and_the_run_goes_on_later(command, whole, tmp_path):
    places = {
        IN_OPTIMIZER_OF_2: "checkpoint-2 could not be saved and is removed",
        IN_RANDOM_STATE_OF_4: "checkpoint-4 could not be saved and is removed",
        IN_LAST_FILE_OF_4: "checkpoint-4 could not be saved and is removed",
        IN_FINAL_WEIGHTS: "The model could not be saved",
    }
    for place, told in places.items():
        here, there = multiprocessing.Pipe()
        assert ended(start(command(tmp_path), place, disk=there)) == 0
        message = here.recv()
        assert message.startswith("train_hf.py: ") and told in message and "Its disk has" in message
        assert all(fault_of(checkpoint) is None for checkpoint in checkpoints_in(tmp_path))
        assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "_saving").exists()
    train_hf.main(command(tmp_path))
    assert_equal_runs(tmp_path, whole)


def test_no_pickle_is_in_the_model_and_none_holds_the_arguments(whole):
    """A checkpoint within a run has those that torch needs to go on; they are read without running what they name."""
    assert {path.name for path in whole.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")} == {
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }
    for file in whole.iterdir():
        assert file.is_dir() or (file.suffix not in (".pt", ".pth") and file.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04"))


def test_another_number_of_processes_is_told_and_nothing_is_moved(command, whole, tmp_path, monkeypatch):
    """Each process has a random state of its own, so a checkpoint of one would seem to lack those of two."""
    out = shutil.copytree(whole, tmp_path / "run")
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({name: value for name, value in run.items() if name != "finished"}))
    monkeypatch.setattr(MPCLIPTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match=r"holds checkpoints of a run with other options \(world_size: 1 -> 2\)"):
        find_start(parse_options(command(out)))
    assert [checkpoint.name for checkpoint in checkpoints_in(out)] == ["checkpoint-4", "checkpoint-2"]


def test_a_process_that_dies_ends_the_others_and_all_go_on_together(command, tmp_path):
    def job(dies_in_step: int | None) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        argv = command(tmp_path, "--per_device_train_batch_size", "2", "--ddp_timeout", "60")
        processes = [start(argv, None, rank, dies_in_step if rank["RANK"] == "1" else None) for rank in ranks]
        return [ended(process) for process in processes]

    first, second = job(dies_in_step=3)
    assert second == -signal.SIGKILL and first not in (0, -signal.SIGKILL)
    assert last_complete_checkpoint(tmp_path, processes=2).name == "checkpoint-2"
    assert job(dies_in_step=None) == [0, 0]
    assert json.loads((tmp_path / "training.json").read_text())["resumed_from"] == "checkpoint-2"
    assert checkpoints_in(tmp_path)[0].name == "checkpoint-4" and (tmp_path / "model.safetensors").exists()
