"""Two processes: their evaluation equals that by one, they draw new captions each epoch, and they stop at the same step.

So does `python -m eval`: the processes share its work, and one of them prints and writes.
"""

import json
import os
import signal
import socket
from pathlib import Path

import fresh_process
import numpy as np
from conftest import arguments
from sentence_helpers import save_checkpoint

import eval.__main__
from eval.result import load_items
from mpclip.training import build_trainer, parse_options

SCRIPT = """
import json, pathlib, sys
import numpy
repository, out, *argv = sys.argv[1:]
sys.path.insert(0, repository)
from mpclip.training import build_trainer, parse_options

options = parse_options(argv)
trainer = build_trainer(options)
assert trainer.args.world_size == 2
found = trainer.predict(trainer.eval_dataset)
numpy.savez(f"{out}/{trainer.args.process_index}.npz", *found.predictions)
told = {"metrics": trainer.evaluate()}

# Training. The first signal comes to one process; a loss that is not finite, to the other.
import signal, torch
from mpclip.training.finite import NotFinite
from mpclip.training.run import train
from mpclip.stop import Interrupted, StopSignals

signals, rank, epochs, compute = StopSignals(), trainer.args.process_index, [], trainer.compute_loss

def compute_loss(*args, **kwargs):
    epochs.append(trainer.train_dataset.epoch)
    if len(epochs) == 2 and rank == 0:
        signals.received = signal.SIGINT
    loss = compute(*args, **kwargs)
    return loss * torch.tensor(float("nan")) if len(epochs) == 3 and rank == 1 else loss

trainer.compute_loss = compute_loss
try:
    train(trainer, options=options, signals=signals)
except Interrupted as stopped:
    told["stopped"] = [stopped.number, trainer.state.global_step]
signals.received = None
try:
    trainer.train()
except NotFinite as error:
    told["not_finite"] = [str(error), trainer.state.global_step]
told["epochs"] = epochs

# Evaluation of a checkpoint. It ends the communication of the processes.
import eval.__main__
from mpclip.encoding import ModelEncoder

told["embedded"], embed = [], ModelEncoder.embed_images
ModelEncoder.embed_images = lambda self, images: told["embedded"].append(len(images)) or embed(self, images)
eval.__main__.main(json.loads(pathlib.Path(out, "command.json").read_text()))
print(json.dumps(told))
"""


def test_two_processes_evaluate_as_one_does_and_stop_together(folder, tmp_path):
    # One batch of pictures, so that a process has none, and three of captions.
    extra = ("--per_device_eval_batch_size", "4", "--num_train_epochs", "3", "--save_strategy", "no")
    argv = arguments(folder, tmp_path / "run", *extra, "--load_best_model_at_end", "false")
    trainer = build_trainer(parse_options(argv))
    expected, metrics = trainer.predict(trainer.eval_dataset).predictions, trainer.evaluate()

    save_checkpoint(tmp_path / "checkpoint")
    command = ["retrieval", "--model", str(tmp_path / "checkpoint"), "--data", str(folder / "data"), "--split", "validation"]
    command += ["--batch_size", "2", "--precision", "float32", "--device", "cpu"]
    eval.__main__.main([*command, "--json", str(tmp_path / "one.json"), "--no_cache"])
    pictures = ["--json", str(tmp_path / "two.json"), "--cache", str(tmp_path / "cache"), "--grid", str(tmp_path / "found.png")]
    (tmp_path / "command.json").write_text(json.dumps([*command, *pictures]))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    given = (str(Path(__file__).parent.parent), str(tmp_path), *argv)
    ranks = [fresh_process.start(SCRIPT, tmp_path, job | {"RANK": rank, "LOCAL_RANK": rank}, given) for rank in ("0", "1")]
    for rank, run in enumerate([rank.wait() for rank in ranks]):
        assert run.returncode == 0, run.stderr[-3000:]
        with np.load(tmp_path / f"{rank}.npz") as found:
            for ours, theirs in zip(found.values(), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        printed = json.loads(run.stdout.splitlines()[-1])
        told = printed["metrics"]
        assert told.keys() == metrics.keys() > {"eval_mean_recall", "eval_t2i_R@1", "eval_i2t_R@10"}
        assert all(told[name] == metrics[name] for name in metrics if name.endswith(("recall", "R@1", "R@5", "R@10")))
        # One step of two times four pictures per epoch.
        assert printed["epochs"] == [0, 1, 0]
        assert printed["stopped"] == [signal.SIGINT if rank == 0 else signal.SIGTERM, 2]
        text, steps = printed["not_finite"]
        assert steps == 0 and text.startswith(
            f"Step 1: the loss is {'nan' if rank else 'not finite in another process'}. Its batch: "
        )
        assert text.count(".png (") == 4  # of the process with the fault
        assert printed["embedded"] == [2]  # one batch of two
        assert ("mean recall *" in run.stdout) == (rank == 0) == ("written: " in run.stdout)
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert two["processes"] == 2 and all(one[name] == two[name] for name in ("metrics", "intervals", "images", "captions"))
    items = [load_items(tmp_path / name) for name in ("one.json", "two.json")]
    assert items[0].keys() == items[1].keys() and all(np.array_equal(items[0][name], items[1][name]) for name in items[0])
    assert (tmp_path / "found.png").exists()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
