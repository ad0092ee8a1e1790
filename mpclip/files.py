"""Files that are whole or not there: written aside and renamed; and how a file is told from another."""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


@contextlib.contextmanager
def aside(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` at the end of the block.

    A reader sees the old file or the new one, never half of it. Where the block fails, what it wrote is deleted and `path`
    stays as it was. Several processes may write the same file: each has its own path, the last one wins.

    Args:
        path: the file to replace or to create; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield written
        with open(written, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name on old bytes
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file whole or not at all."""
    with aside(path) as written:
        written.write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike, content: object, indent: int = 1) -> None:
    """Write JSON whole or not at all. Values that JSON does not know (paths, dtypes) are written as text."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, default=str) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """The content of a JSON file; {} where there is no such file.

    Raises:
        ValueError: the file is no JSON; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Delete it, or restore it from a copy.") from error


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Collection[Path], title: str = "Checking files", quiet: bool = False) -> dict[Path, str]:
    """SHA-256 of several files, which are read in parallel. A progress bar appears where it takes longer than three seconds.

    Args:
        paths: the files.
        title: of the progress bar.
        quiet: show no progress bar; for all processes of a job but one.
    """
    from tqdm.auto import tqdm  # not on top: `--help` of a command loads nothing large

    sizes = [os.stat(path).st_size for path in paths]
    progress = tqdm(total=sum(sizes), desc=title, unit="B", unit_scale=True, delay=3, disable=quiet)
    found = {}
    with progress, ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets other threads run
        for path, size, digest in zip(paths, sizes, pool.map(sha256_file, paths), strict=True):
            found[path] = digest
            progress.update(size)
    return found


def stamp(path: str | os.PathLike) -> list[int]:
    """[size in bytes, time of the last change in nanoseconds]: tells a changed file without reading it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
