"""The protocol of a task of `python -m eval`."""

import argparse
from typing import Any, Protocol

import numpy as np

from eval.result import Result


class Task(Protocol):
    """Each task is a class in a file of its own in eval/tasks/, listed in `eval.__main__.TASKS`.

    The file imports torch and other large libraries inside functions, so that the command's help appears at once.

    Attributes:
        name: on the command line.
        takes: which data the task takes, in words.
        texts_only: whether the task embeds texts alone. If not, a model that cannot embed pictures is refused at the start.
        writes: names of the task's own options that hold a file to write, such as a picture. With several models, each model's
            file has its name in it.
    """

    name: str
    takes: str
    texts_only: bool = False
    writes: tuple[str, ...] = ()

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the task's own options."""

    def __init__(self, options: argparse.Namespace | None = None):
        """Take the values of the task's own options; None takes their defaults."""

    def load(self, source: str, split: str, limit: int | None = None, **reading) -> Any:
        """Open the data. They are measured with several models, each by a task object of its own: keep nothing in `self`.

        Args:
            source: folder, file or Hub id.
            split: name of the split.
            limit: take the first `limit` rows only.
            reading: the options of `mpclip.data.reading.ReadingOptions`.

        Raises:
            ValueError, OSError: the data are not what the task takes; the message says what it takes.
        """

    def run(self, encoder, data: Any, **encoding) -> Result:
        """Measure a model.

        Args:
            encoder: an `mpclip.encoding.Encoder`.
            data: as from `load`.
            encoding: options of `mpclip.encoding.encode_dataset`: `batch_size`, `shared`, `cache`.

        Returns:
            The metrics, each with its interval, and the items; `python -m eval` adds the origin. In a job of several processes
            all call this method, and all get the same.
        """

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """How many units the bootstrap draws from, such as pictures or pairs.

        Args:
            items: of a `Result` of this task.
        """

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """The metrics, if each unit counts as often as it was drawn. `eval.intervals.bootstrap` makes intervals of them.

        Args:
            items: of a `Result` of this task.
            counts: (units,) int, how often each unit counts. Ones give the metrics of the result.

        Returns:
            Metric -> value, at least the primary one.
        """
