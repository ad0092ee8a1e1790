"""Long work says how far it is: a bar on a terminal, a line every ten seconds in a log file."""

import io
import sys

import pytest
from tqdm import tqdm

from mpclip import progress as module
from mpclip.progress import ProgressLines, duration, progress, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_every_ten_seconds(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress("text states", 5000, initial=1000) as shown:
        for _ in range(8):
            clock[0] += 6
            shown.update(500)
    assert log.getvalue().splitlines() == [
        "text states: 2,000 of 5,000 rows, 36 seconds left",
        "text states: 3,000 of 5,000 rows, 24 seconds left",
        "text states: 4,000 of 5,000 rows, 12 seconds left",
        "text states: 5,000 of 5,000 rows, 0 seconds left",
        "text states: 5,000 of 5,000 rows, done in 48 seconds",
    ]


def test_quiet_work_writes_nothing(clock, capsys):
    with progress("work", 3, quiet=True) as shown:
        clock[0] += 60
        shown.update(3)
    assert capsys.readouterr() == ("", "")


def test_short_or_failed_work_ends_without_a_line(clock):
    log = io.StringIO()
    with ProgressLines("short", 10, "row", file=log) as shown:
        clock[0] += 9
        shown.update(10)
    with pytest.raises(ValueError, match="stop"), ProgressLines("failed", 10, "row", file=log) as shown:
        clock[0] += 11
        shown.update(1)
        raise ValueError("stop")
    assert log.getvalue() == "failed: 1 of 10 rows, 99 seconds left\n".replace("99 seconds", "1.6 minutes")


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("work", 3) as shown:
        assert isinstance(shown, tqdm)
    assert list(track("abc", "work", 3)) == ["a", "b", "c"]


@pytest.mark.parametrize("seconds, words", [(45, "45 seconds"), (126, "2.1 minutes"), (12600, "3.5 hours")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_several_things_are_named(clock, capsys):
    with progress("Expanding captions", 3, "batch") as shown:
        clock[0] += 12
        shown.update(3)
    assert "Expanding captions: 3 of 3 batches, done in 12 seconds" in capsys.readouterr().err
