"""Locks on shards: of several workers on one folder, one at a time embeds a shard, and a dead worker's shard is taken over.

A lock is a file that is created only if it is not there, which every file system does for one worker alone; so it works on
network file systems that know no other locks. Its holder renews its date. One that has not been renewed for ten minutes is
stale, and so is one whose process is known to be dead.

A stale lock is never deleted by others: two workers could delete it, and the second would delete the lock of the first. The
files of a shard are numbered instead. Who finds number n stale creates number n + 1, and that succeeds once.
"""

import contextlib
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

RENEW = 30.0  # seconds between two renewals
STALE = 600.0  # seconds without one after which a lock is stale


class ShardLock:
    """The lock on one file of embeddings.

        lock = ShardLock(out / "00000.parquet")
        if lock.take():
            try: ...
            finally: lock.release()

    Args:
        path: the file that is written under the lock. The lock's own files lie in a folder `.locks` beside it.
        stale: seconds without a renewal after which the lock is anyone's.
    """

    def __init__(self, path: Path, stale: float = STALE):
        self.folder, self.name, self.stale = path.parent / ".locks", path.name, stale
        self.mine: Path | None = None
        self._ended = threading.Event()

    def take(self) -> bool:
        """Take the lock if nobody holds it. It is renewed by a thread until `release`."""
        held = self._files()
        before = held[-1] if held else None
        number, told = 0, None
        if before is not None:
            told = _read(before)
            if told is None or not self._is_stale(before, told):
                return False
            number = _number(before) + 1
        mine = self.folder / f"{self.name}-{number}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(mine, "x", encoding="utf-8") as file:
                json.dump(_this_process(), file)
        except (FileExistsError, FileNotFoundError):  # another was faster, or has just removed the folder, which was empty
            return False
        # The stale lock must still be there: its successor may have come and gone meanwhile, and another have begun anew.
        if (before is not None and _read(before) != told) or self._files()[-1:] != [mine]:
            mine.unlink(missing_ok=True)
            return False
        self.mine = mine
        self._ended.clear()
        threading.Thread(target=self._renew, args=(mine, self._ended), daemon=True).start()
        return True

    def held(self) -> bool:
        """Whether this worker still has the lock; not after it stood still so long that another has taken it over."""
        return self.mine is not None and self._files()[-1:] == [self.mine]

    def release(self) -> None:
        """Give the lock back, with what is left of stale ones before it."""
        self._ended.set()
        if self.mine is None:
            return
        for file in self._files():
            if _number(file) <= _number(self.mine):
                file.unlink(missing_ok=True)
        self.mine = None
        with contextlib.suppress(OSError):  # other locks are in it
            self.folder.rmdir()

    def holder(self) -> str:
        """Who has the lock, in words; "" if nobody has."""
        held = self._files()
        told = _read(held[-1]) if held else None
        return f"process {told['process']} on {told['host']}" if told else ""

    def _files(self) -> list[Path]:
        """The lock's files by number."""
        pattern = re.compile(rf"{re.escape(self.name)}-\d+")
        with contextlib.suppress(FileNotFoundError):
            return sorted((file for file in self.folder.iterdir() if pattern.fullmatch(file.name)), key=_number)
        return []

    def _is_stale(self, file: Path, told: dict) -> bool:
        if _is_dead(told):
            return True
        try:
            return _now(self.folder) - file.stat().st_mtime > self.stale
        except FileNotFoundError:
            return False  # it has just been given back: the next look will tell

    def _renew(self, file: Path, ended: threading.Event) -> None:
        while not ended.wait(min(RENEW, self.stale / 4)):
            try:
                os.utime(file)
            except OSError:  # given back, or the file server is away for a moment
                continue


def _read(file: Path) -> dict | None:
    """Who created a lock's file; {} for one that is half written, None for none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _number(file: Path) -> int:
    return int(file.name.rpartition("-")[2])


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file system, which gives the dates; that of another machine may be off."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.stat(file.name).st_mtime


def _this_process() -> dict:
    return {"process": os.getpid(), "host": socket.gethostname(), "space": _space(), "started": _started(os.getpid())}


def _is_dead(told: dict) -> bool:
    """Whether the process that created a lock is known to have ended: it ran here, and no longer does."""
    if not told.get("space") or told["space"] != _space():
        return False  # on another machine, or in another container: not to be known
    return _started(told["process"]) != told["started"]


def _space() -> str:
    """Names the machine since its start and the processes that are seen from here; "" where the system does not tell."""
    return _told(lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid"))


def _started(process: int) -> str:
    """When a process began; "" if it has ended. A later process with its number began at another time."""
    fields = _told(lambda: Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]).split()
    return fields[19] if fields and fields[0] != "Z" else ""  # Z: it has ended, and its parent has not looked yet


def _told(read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:
        return ""
