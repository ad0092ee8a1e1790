"""Progress of long work: a bar on a terminal, a line every ten seconds in a log file."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")
EVERY = 10  # seconds between two lines in a log file


def progress(title: str, total: int, unit: str = "row", initial: int = 0, quiet: bool = False, scaled: bool = False):
    """Show how far a loop is; a context manager with a method `update(n)`.

    Nothing is shown of work that takes less than three seconds (in a log file: ten).

    Args:
        title: what is done.
        total: number of things to do.
        unit: name of one thing.
        initial: number of things that were done before.
        quiet: show nothing. Of the processes of a job (`accelerate launch`), only the first of a machine shows anything.
        scaled: write numbers as 1.5M; for bytes.
    """
    quiet = quiet or os.environ.get("LOCAL_RANK", "0") not in ("0", "-1")
    if sys.stderr.isatty() and not quiet:
        from tqdm.auto import tqdm  # not at the top: `--help` of a command must be fast

        return tqdm(total=total, desc=title, unit=unit, initial=initial, delay=3, unit_scale=scaled)
    return ProgressLines(title, total, unit, initial, quiet=quiet)


def track(items: Iterable[Item], title: str, total: int, unit: str = "row") -> Iterator[Item]:
    """The items one by one, with `progress`."""
    with progress(title, total, unit) as shown:
        for item in items:
            yield item
            shown.update(1)


class ProgressLines:
    """Lines such as "text states: 1,024 of 5,600 rows, 2.1 minutes left"; for output that is not a terminal.

    Args:
        title, total, unit, initial, quiet: as for `progress`.
        file: where to write; by default stderr.
    """

    def __init__(self, title: str, total: int, unit: str, initial: int = 0, file: TextIO | None = None, quiet: bool = False):
        self.title, self.total, self.initial, self.done = title, total, initial, initial
        self.units = unit + ("es" if unit.endswith("ch") else "s")
        self.file, self.quiet = file or sys.stderr, quiet
        self.started = self.shown = time.monotonic()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error) -> None:
        now = time.monotonic()
        if error[0] is None and self.shown > self.started:
            self._write(f"done in {duration(now - self.started)}")

    def update(self, n: int) -> None:
        """Count n more things as done."""
        self.done += n
        now = time.monotonic()
        if now - self.shown >= EVERY and self.done > self.initial:
            left = (now - self.started) * (self.total - self.done) / (self.done - self.initial)
            self._write(f"{duration(left)} left")
            self.shown = now

    def _write(self, what: str) -> None:
        if not self.quiet:
            print(f"{self.title}: {self.done:,} of {self.total:,} {self.units}, {what}", file=self.file, flush=True)


def duration(seconds: float) -> str:
    """A duration in words: "45 seconds", "2.1 minutes", "3.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def printable(line: str) -> str:
    """A line for a terminal. File names and captions may hold control characters, which the terminal would obey."""
    return "".join(sign if sign.isprintable() else "�" for sign in line)
