"""A lock on an output folder: two runs at once would overwrite each other's checkpoints."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mpclip.files import read_json, write_json

# Both names begin with an underscore: such files are never pushed.
LOCK_FILE = "_running.lock"
HOLDER_FILE = "_running.json"  # which process holds the lock


class FolderInUse(ValueError):
    """Another run is writing to the output folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager that keeps other runs out of a folder. The operating system ends the lock with the process.

    Within a process the lock may be taken again.

    Args:
        folder: the output folder. It is created, and removed at the end of the block if it is empty.

    Raises:
        FolderInUse: another process has the lock; the message says which one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder.absolute() / LOCK_FILE, timeout=0, is_singleton=True), folder / HOLDER_FILE
    if lock.is_locked:  # by this process, further up
        yield
        return
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUse(
            f"Another run{_told(holder)} is writing to {folder}. Wait for its end, or give another --output_dir."
        ) from None
    try:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(holder, {"process": os.getpid(), "host": socket.gethostname(), "since": now})
        yield
    finally:
        holder.unlink(missing_ok=True)
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def _told(holder: Path) -> str:
    """The holder of a lock in words; "" if its file is not there yet, or half written."""
    try:
        known = read_json(holder)
        return f" (process {known['process']} on {known['host']}, since {known['since']})"
    except (ValueError, KeyError):
        return ""
