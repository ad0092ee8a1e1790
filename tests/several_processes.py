"""Jobs of several processes on a CPU, as code: a program imports the libraries once, and forks into the processes of each job.

    done = several_processes.run("in_processes(2, work)", tmp_path, "an argument")

The code finds `in_processes`, `argv` (the arguments), torch, `torch.distributed` as dist, and the training of this project.
"""

import os
from pathlib import Path

import fresh_process

START = """
import os, socket, sys, traceback
repository, *argv = sys.argv[1:]
sys.path[:0] = [repository, repository + "/tests"]
import peft, torch
import torch.distributed as dist
import mpclip.training.run
from mpclip.training import build_trainer, parse_options

def in_processes(count, work, *given):
    # work(rank, count, *given) in `count` processes, which have to end without an error.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(count):
        children.append(os.fork())
        if not children[-1]:
            names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")
            if count > 1:
                os.environ.update(zip(names, ("127.0.0.1", port, str(count), str(rank), str(rank))))
            try:
                work(rank, count, *given)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
    assert not any([os.waitpid(child, 0)[1] for child in children]), count
"""


def run(code: str, folder: Path, *argv: str) -> None:
    """Run code in a folder; its error fails the test."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = fresh_process.start(START + code, folder, environment, (str(Path(__file__).parent.parent), *argv)).wait()
    assert done.returncode == 0, done.stderr[-3000:]
