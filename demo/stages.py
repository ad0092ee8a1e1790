"""The stages of the demo: how long each took, also over interruptions, and how long the rest will take."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from mpclip.files import read_json, write_json
from mpclip.hardware import best_device, speeds
from mpclip.progress import duration

REFERENCE = Path(__file__).parent.parent / "docs/cost/demo.json"  # results.json of a recorded run


class Stages:
    """Times the stages of a run and tells the time that is left.

    The time left is that of the recorded run. Before the first stage ends, it is scaled by the speed of the machines; then by
    what the finished stages took here and there.

    Args:
        folder: of the run. `stages.json` in it keeps the seconds of every stage, so that a resumed run counts on.
        size: training and held-out scenes, whose number the time is proportional to.
    """

    def __init__(self, folder: Path, size: int):
        self.file = folder / "stages.json"
        self.found: dict[str, dict] = read_json(self.file)
        recorded = read_json(REFERENCE)
        share = size / (recorded["training_scenes"] + recorded["scenes"])
        self.expected = {name: seconds * share for name, seconds in recorded["stages"].items()}
        there, here = recorded["speed"], speeds(best_device())
        self.slower = there["gflops"][there["dtype"]] / here["gflops"][here["dtype"]]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage."""
        return {name: round(stage["seconds"], 1) for name, stage in self.found.items()}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage. One that was finished by an earlier run keeps its time."""
        stage = self.found.setdefault(name, {"seconds": 0.0, "done": False})
        started = time.monotonic()
        try:
            yield
            finished = True
        except BaseException:
            finished = False
            raise
        finally:
            if not stage["done"]:
                stage["seconds"] += time.monotonic() - started
                stage["done"] = finished
                write_json(self.file, self.found)

    def left(self) -> str:
        """The time left, in words; "" if every stage is done."""
        done = [name for name in self.expected if self.found.get(name, {}).get("done")]
        there, here = (sum(of[name] for name in done) for of in (self.expected, self.seconds))
        slower = here / there if there else self.slower
        rest = sum(seconds for name, seconds in self.expected.items() if name not in done)
        return f"about {duration(rest * slower)} left" if rest else ""
