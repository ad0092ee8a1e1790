"""Ctrl-C and SIGTERM, at once or after a step. Training saves a checkpoint first; mpclip/command.py ends all other commands.

    with StopSignals() as signals:
        ...                      # a signal raises Interrupted at once
        with signals.waiting():
            ...                  # the first signal is only noted, in `signals.received`; a second one raises Interrupted

SIGTERM is how Slurm and other schedulers end a job. This module imports nothing large, because a signal may come while torch is
being imported.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

WATCHED = (signal.SIGINT, signal.SIGTERM)
TOLD = b"\nStopping after this step, with a checkpoint. A second Ctrl-C ends the run at once, without one.\n"


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run. `number` is its number."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignals:
    """Context manager that watches SIGINT (Ctrl-C) and SIGTERM.

    A signal that the process was started to ignore, as by `nohup` or in the background of a shell, stays ignored. Outside the
    main thread Python allows no handlers; nothing is watched there.

    Attributes:
        received: number of the signal that was received, or None.
        raised: whether a signal has raised Interrupted.
    """

    def __init__(self):
        self.received: int | None = None
        self.raised = False
        self._waits, self._owner, self._before = False, os.getpid(), {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            known = {number: signal.getsignal(number) for number in WATCHED}
            self._before = {n: handler for n, handler in known.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager in which the first signal is only noted."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self._owner:
            self._handle_in_fork(number)
        elif self._waits and self.received is None:
            self.received = number
            os.write(2, TOLD)  # not print(): the signal may have come while something was being printed
        else:
            self.received, self.raised = number, True
            raise Interrupted(number)

    def _handle_in_fork(self, number: int) -> None:
        """In a data loader's worker. A terminal sends Ctrl-C to it too, but it is its parent that ends it."""
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
