"""Counts the rows that loaders leave out, so that a result can say how many are missing.

with count_skipped() as skipped:
    rows = load_image_text("photos", "test")
skipped                                    # {"rows without a caption": 2}
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

_counting: ContextVar[Counter | None] = ContextVar("skipped", default=None)


@contextlib.contextmanager
def count_skipped() -> Iterator[Counter]:
    """Context manager that gives a counter: what is wrong -> number of rows that were left out for it."""
    counter: Counter = Counter()
    before = _counting.set(counter)
    try:
        yield counter
    finally:
        _counting.reset(before)


def tell_skipped(what: str, number: int) -> None:
    """Called by a loader that leaves something out and has said so in a warning.

    Args:
        what: such as "rows without a caption".
        number: how many.
    """
    counter = _counting.get()
    if counter is not None:
        counter[what] += number
