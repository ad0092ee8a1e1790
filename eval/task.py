"""What a task of `python -m eval` is."""

import argparse
from typing import Any, Protocol

from eval.result import Result


class Task(Protocol):
    """One class per task, in a file of its own under eval/tasks/. A new one is also named in `eval.__main__.TASKS`.

    A module imports torch and its relatives inside functions, so that the command's help is shown at once.

    Attributes:
        name: as on the command line.
        takes: which data it takes, in words.
    """

    name: str
    takes: str

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the options that only this task has."""

    def __init__(self, options: argparse.Namespace | None = None):
        """Keep what the task's own options say; None takes their defaults."""

    def load(self, source: str, split: str, limit: int | None = None) -> Any:
        """Open the data.

        Raises:
            ValueError, OSError: it is not what the task takes; the message says what it takes.
        """

    def run(self, encoder, data: Any, **encoding) -> Result:
        """Measure a model.

        Args:
            encoder: an `mpclip.encoding.Encoder`.
            data: as `load` gives it.
            encoding: options of `mpclip.encoding.encode_dataset`, such as `batch_size`.
        """
