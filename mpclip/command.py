"""How a command ends: stopped by Ctrl-C with a sentence, or done with the commands that come next.

    with Stoppable("mpclip maps", arguments) as stoppable:
        ...                               # Ctrl-C: "mpclip maps: Stopped. To run it again: mpclip maps --model ..."
        stoppable.kept = "The maps stay." # Ctrl-C: "mpclip maps: Stopped. The maps stay. To go on: mpclip maps --model ..."

Nothing large is imported here, because a signal may come while torch is being imported.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence

from mpclip.stop import StopSignals


class Stoppable(StopSignals):
    """Context manager of a command: Ctrl-C and SIGTERM end it without a traceback, and with the command that goes on.

    The exit status is 128 plus the number of the signal, as in shells: 130 after Ctrl-C. Of the processes of a job (`accelerate
    launch`), the first of a machine writes the sentence. These managers may be nested; the inner one writes.

    Args:
        prog: name of the command, such as "mpclip eval" or "python -m mpclip.data.composition".
        arguments: words of the command line that follow it.

    Attributes:
        kept: a sentence on what is kept and where, for commands that go on from it. Empty: the command starts again.
    """

    def __init__(self, prog: str, arguments: Sequence[str]):
        super().__init__()
        self.prog, self.arguments, self.kept = prog, arguments, ""

    def __enter__(self) -> "Stoppable":
        super().__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback) -> None:
        super().__exit__(kind, error, traceback)
        # A signal in the import of a compiled module comes out as another error, such as ImportError.
        if not (isinstance(error, KeyboardInterrupt) or (error is not None and self.raised)):
            return
        if os.environ.get("LOCAL_RANK", "0") in ("0", "-1"):
            print(f"{self.prog}: {self.told()}", file=sys.stderr, flush=True)
        raise SystemExit(128 + (self.received or signal.SIGINT)) from None

    def told(self) -> str:
        """What is kept, and the command that goes on."""
        goes_on = f"Stopped. {self.kept} To go on" if self.kept else "Stopped. To run it again"
        launched = " (by the same launcher)" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        return f"{goes_on}{launched}: {shlex.join([*self.prog.split(), *self.arguments])}"


def start(main: Callable[[], object]) -> None:
    """Run the `main` of a module as a program, which Ctrl-C ends with a sentence.

    Args:
        main: takes its arguments from the command line.
    """
    module = sys.modules["__main__"].__spec__  # None for `python FILE`
    prog = f"python -m {module.name.removesuffix('.__main__')}" if module else f"python {sys.argv[0]}"
    with Stoppable(prog, sys.argv[1:]):
        main()


def next_steps(steps: Iterable[tuple[Sequence[str], str]]) -> str:
    """What can be done with the files that a command has written: the last lines of its output.

    Args:
        steps: pairs of a command's words and what it is for.

    Returns:
        "next:", and a line "    COMMAND  # what for" for each; "" if there are none.
    """
    commands = [(shlex.join(words), what) for words, what in steps]
    width = max((len(command) for command, _ in commands), default=0)
    lines = [f"    {command:<{width}}  # {what}" for command, what in commands]
    return "\n".join(["next:", *lines]) if lines else ""
