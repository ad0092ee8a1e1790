"""A run goes on with another number of processes if a step has as many pairs as before."""

import pytest
from conftest import arguments

from mpclip.files import read_json, write_json
from mpclip.training import build_trainer, parse_options, train
from mpclip.training.checkpoints import RUN_FILE
from mpclip.training.resume import OtherRun, find_start, prepare_folder


def test_a_run_goes_on_with_another_number_of_processes(folder, tmp_path, monkeypatch):
    def options(pairs: int, processes: int):
        extra = ["--per_device_train_batch_size", str(pairs), "--eval_strategy", "no", "--load_best_model_at_end", "false"]
        found = parse_options(arguments(folder, tmp_path, *extra, "--num_train_epochs", "1", "--save_strategy", "epoch"))
        monkeypatch.setattr(type(found.training), "world_size", processes)
        return found

    one = options(4, 1)
    train(build_trainer(one), options=one)
    run = read_json(tmp_path / RUN_FILE)
    del run["finished"]  # as if it had been stopped
    write_json(tmp_path / RUN_FILE, run)

    start = find_start(two := options(2, 2))
    assert start.checkpoint.endswith("checkpoint-2") and not start.finished
    prepare_folder(two, start)
    assert read_json(tmp_path / RUN_FILE) == run | {"per_device_train_batch_size": 2, "world_size": 2}
    assert (tmp_path / "checkpoint-2").is_dir()  # not set aside
    write_json(tmp_path / RUN_FILE, run)
    with pytest.raises(OtherRun, match="world_size: 1 -> 2"):
        find_start(options(4, 2))
