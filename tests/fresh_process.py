"""Python processes that know neither this project nor transformers, for the price of a fork.

    run = fresh_process.run("from transformers import AutoModel; ...", cwd=tmp_path)
    assert run.returncode == 0, run.stderr

Three quarters of the time in which a new interpreter imports transformers go into torch and the packages below it. Here one
interpreter per test worker imports those, and a script runs in a fork of it. transformers, huggingface_hub and whatever else
a script needs are imported anew, under the script's own environment.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# -I keeps this repository, the working folder and PYTHONPATH off the path.
SERVER = """
import json, os, select, sys
import jinja2, numpy, pandas, PIL.Image, pyarrow, scipy.optimize, sklearn.metrics, sympy, tokenizers, yaml
import torch, torch._dynamo, torch.distributed.checkpoint, torch.distributed.tensor

known = {"transformers", "huggingface_hub", "datasets", "modeling_mpclip", "mpclip"} & set(sys.modules)
assert not known, known
requests, running = open(0, "rb", buffering=0, closefd=False), {}
while True:
    if select.select([requests], [], [], 0.02 if running else None)[0]:
        line = requests.readline()
        if not line:
            break
        job = json.loads(line)
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(job["stdout"], os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_CREAT), 2)
            os.chdir(job["cwd"])
            os.environ.clear()
            os.environ.update(job["environment"])
            sys.argv = ["script", *job["arguments"]]
            exec(compile(job["code"], "script", "exec"), {"__name__": "__main__"})
            sys.exit()
        running[child] = job["stdout"]
        print(json.dumps([job["stdout"], "pid", child]), flush=True)
    for child in list(running):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            print(json.dumps([running.pop(child), "returncode", os.waitstatus_to_exitcode(status)]), flush=True)
for child in running:
    os.kill(child, 9)
"""


class _Server:
    """The interpreter that forks; started when the first script comes."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.started, self.told = 0, {}
        environment = plain_environment() | {"OMP_NUM_THREADS": "1"}  # threads do not survive a fork
        command = [sys.executable, "-I", "-c", SERVER]
        self.process = subprocess.Popen(
            command, env=environment, cwd=self.folder.name, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self.stop)

    def ask(self, job: dict) -> str:
        """Start a script; returns its name."""
        self.started += 1
        name = str(Path(self.folder.name, str(self.started)))
        files = {"stdout": name, "stderr": f"{name}.err"}
        self.process.stdin.write(json.dumps(job | files) + "\n")
        self.process.stdin.flush()
        return name

    def hear(self, name: str, what: str) -> int:
        """Wait until the pid or the returncode of a script is told."""
        while (name, what) not in self.told:
            line = self.process.stdout.readline()
            assert line, "the interpreter that forks has ended"
            *key, value = json.loads(line)
            self.told[tuple(key)] = value
        return self.told[name, what]

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


_servers: list[_Server] = []


class Script:
    """A script that runs; `pid` is its process."""

    def __init__(self, server: _Server, name: str):
        self._server, self._name = server, name
        self.pid = server.hear(name, "pid")

    def wait(self) -> subprocess.CompletedProcess:
        """Its exit status and output, once it has ended."""
        returncode = self._server.hear(self._name, "returncode")
        stdout, stderr = (Path(self._name + suffix).read_text() for suffix in ("", ".err"))
        return subprocess.CompletedProcess("script", returncode, stdout, stderr)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def plain_environment() -> dict[str, str]:
    """The variables of this process without those that configure Python or the Hub."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}


def start(code: str, cwd: Path, environment: dict[str, str] | None = None, arguments: tuple[str, ...] = ()) -> Script:
    """Start a script.

    Args:
        code: of a module that is run as `__main__`.
        cwd: its working folder.
        environment: all its variables; by default those of this process, without which no Hub is asked.
        arguments: of its command line.
    """
    if not _servers:
        _servers.append(_Server())
    environment = dict(os.environ) if environment is None else environment
    job = {"code": code, "cwd": str(cwd), "environment": environment, "arguments": list(arguments)}
    return Script(_servers[0], _servers[0].ask(job))


def run(code: str, cwd: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a script to its end; the arguments are those of `start`."""
    return start(code, cwd, environment).wait()
