"""Ctrl-C and SIGTERM: what a run saves, what it says, and that it goes on as if nothing had happened."""

import functools
import json
import os
import shlex
import signal

import pytest
import torch
from conftest import arguments
from safetensors.torch import load_file

import train_hf
from mpclip.stop import Interrupted, StopSignals
from mpclip.training.checkpoints import checkpoints_in
from mpclip.training.command_line import parse_options
from mpclip.training.resume import how_to_go_on
from mpclip.training.trainer import MPCLIPTrainer


def send(monkeypatch, number: int, step: int, times: int = 1) -> None:
    """Send this process a signal in the training step of that number, while its forward pass runs."""
    compute, made = MPCLIPTrainer.compute_loss, []

    def interrupted(self, *args, **kwargs):
        made.append(None)
        if len(made) == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(MPCLIPTrainer, "compute_loss", interrupted)


def stop_status(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        train_hf.main(argv)
    return ended.value.code


@pytest.fixture(scope="module")
def whole_run(folder, tmp_path_factory):
    """The folder of an uninterrupted run with the given options; equal ones are run once."""

    @functools.cache
    def run(extra: tuple[str, ...]):
        out = tmp_path_factory.mktemp("whole")
        train_hf.main(arguments(folder, out, *extra))
        return out

    return run


@pytest.mark.parametrize(
    "number, step, extra",
    [
        (signal.SIGINT, 3, ()),
        (signal.SIGTERM, 2, ()),  # the last step of an epoch, whose evaluation comes first
        (signal.SIGTERM, 3, ("--train_sampling_strategy", "group_by_length", "--save_strategy", "no")),
    ],
)
def test_a_stopped_run_saves_a_checkpoint_and_goes_on_as_if_nothing_had_happened(
    folder, whole_run, tmp_path, monkeypatch, capsys, number, step, extra
):
    extra = ("--load_best_model_at_end", "false", *extra)
    whole, cut = whole_run(extra), tmp_path
    argv = arguments(folder, cut, *extra)
    with monkeypatch.context() as patch:
        send(patch, number, step)
        assert stop_status(argv) == 128 + number
    told = capsys.readouterr().err.splitlines()[-1]
    assert checkpoints_in(cut)[0].name == f"checkpoint-{step}" and not (cut / "model.safetensors").exists()
    assert told == f"train_hf.py: Stopped. {cut}/checkpoint-{step} is saved. To go on: python train_hf.py {shlex.join(argv)}"
    train_hf.main(shlex.split(told.split("To go on: python train_hf.py ")[1]))
    one, other = (load_file(out / "model.safetensors") for out in (whole, cut))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=0, rtol=0)
    if "no" not in extra:
        assert told_by(cut) == told_by(whole)


def told_by(out) -> list[float]:
    """The losses and recalls in the log of a run."""
    log = json.loads((checkpoints_in(out)[0] / "trainer_state.json").read_text())["log_history"]
    return [line[name] for line in log for name in ("loss", "eval_mean_recall") if name in line]


def test_a_second_signal_ends_the_run_at_once(folder, tmp_path, monkeypatch, capsys):
    send(monkeypatch, signal.SIGINT, step=3, times=2)
    assert stop_status(arguments(folder, tmp_path)) == 130
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    assert f"Stopped. {tmp_path}/checkpoint-2 is saved. To go on:" in capsys.readouterr().err


def test_a_signal_while_a_checkpoint_is_written_waits_for_it_and_a_second_one_removes_it(folder, tmp_path, monkeypatch):
    save = torch.save
    for times, left in ((1, ["checkpoint-2"]), (2, [])):

        def saving(content, path, *args, times=times, **kwargs):
            if str(path).endswith("optimizer.pt"):
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGTERM)
            return save(content, path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr("torch.save", saving)
            assert stop_status(arguments(folder, tmp_path / str(times))) == 143
        assert [path.name for path in checkpoints_in(tmp_path / str(times))] == left


@pytest.mark.parametrize("where", ["mpclip.training.run.cached_states", "mpclip.training.run.save_final"])
def test_a_signal_before_or_after_the_training_acts_at_once(folder, tmp_path, monkeypatch, capsys, where):
    def stopped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the signal was not taken")

    monkeypatch.setattr(where, stopped)
    extra = ("--cache_states", "true", "--num_train_epochs", "1", "--hub_token", "secret", "--resume_from_checkpoint=false")
    assert stop_status(arguments(folder, tmp_path, *extra)) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    first = "before the first checkpoint" if where.endswith("states") else f"{tmp_path}/checkpoint-2 is saved"
    assert first in told and f"The states that are stored in {tmp_path / 'cache'} are kept. To go on: " in told
    assert "secret" not in told and "resume_from_checkpoint=false" not in told
    assert told.endswith("--hub_token '<HUB_TOKEN>'" if where.endswith("states") else "--resume_from_checkpoint true")


def test_the_command_that_goes_on_is_the_one_that_was_given(tmp_path):
    options = parse_options(["--output_dir", str(tmp_path)])
    argv = ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "x", "--seed", "7"]
    assert how_to_go_on(options, argv, "mpclip train").endswith(f"To go on: mpclip train --output_dir {tmp_path} --seed 7")


def test_signals_that_the_shell_ignores_stay_ignored():
    """Such as those of a program that `nohup` starts. Handlers are as before at the end."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            with pytest.raises(Interrupted, match="SIGTERM"):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_workers_of_a_data_loader_leave_ctrl_c_to_their_parent():
    with StopSignals():
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
