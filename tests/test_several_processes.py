"""Evaluation by two processes equals that by one: metrics, and every embedding in its place."""

import json
import os
import socket
from pathlib import Path

import fresh_process
import numpy as np
from conftest import arguments

from mpclip.training import build_trainer, parse_options

SCRIPT = """
import json, sys
import numpy
repository, out, *argv = sys.argv[1:]
sys.path.insert(0, repository)
from mpclip.training import build_trainer, parse_options

trainer = build_trainer(parse_options(argv))
assert trainer.args.world_size == 2
found = trainer.predict(trainer.eval_dataset)
numpy.savez(f"{out}/{trainer.args.process_index}.npz", *found.predictions)
print(json.dumps(trainer.evaluate()))
"""


def test_two_processes_evaluate_as_one_does(folder, tmp_path):
    # One batch of pictures, so that a process has none, and three of captions.
    argv = arguments(folder, tmp_path / "run", "--per_device_eval_batch_size", "4")
    trainer = build_trainer(parse_options(argv))
    expected, metrics = trainer.predict(trainer.eval_dataset).predictions, trainer.evaluate()

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
        told = json.loads(run.stdout.splitlines()[-1])
        assert told.keys() == metrics.keys() > {"eval_mean_recall", "eval_t2i_R@1", "eval_i2t_R@10"}
        assert all(told[name] == metrics[name] for name in metrics if name.endswith(("recall", "R@1", "R@5", "R@10")))
