"""Writes files completely or not at all, reads JSON, and compares files by hash or by size and date."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mpclip.progress import progress


def cache_folder() -> Path:
    """The folder for what is computed once per machine: $MPCLIP_CACHE, or ~/.cache/mpclip."""
    return Path(os.environ.get("MPCLIP_CACHE") or "~/.cache/mpclip").expanduser()


@contextlib.contextmanager
def aside(path: str | os.PathLike) -> Iterator[Path]:
    """Context manager that gives a temporary path beside `path`, and renames it to `path` at the end of the block.

    A reader sees the old file or the new one, never a part. If the block fails, the temporary file is deleted and `path` is
    unchanged. Several processes may write the same file: each has its own temporary path, and the last one wins.

    Args:
        path: the file to replace or to create. Its folder is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield written
        with open(written, "rb+") as file:
            os.fsync(file.fileno())  # otherwise a power cut could leave an incomplete file
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file completely or not at all."""
    with aside(path) as written:
        written.write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write a UTF-8 file completely or not at all."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike, content: object, indent: int = 1) -> None:
    """Write a JSON file completely or not at all.

    Args:
        path: the file.
        content: the value. Parts that JSON has no type for, such as paths and dtypes, are written as strings.
        indent: spaces per level.
    """
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, default=str) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """The content of a JSON file; {} if there is no such file.

    Raises:
        ValueError: the file is not JSON; the message names it.
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


def xxh128_file(path: str | os.PathLike) -> str:
    """XXH3 of a file's bytes, 32 hexadecimal digits. It notices damage as SHA-256 does and is several times faster.

    Unlike SHA-256 it does not protect from a file that was made to have a given hash.
    """
    import xxhash  # not at the top: `--help` of a command must be fast

    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def sha256_files(paths: Collection[Path]) -> dict[Path, str]:
    """SHA-256 of several files: path -> 64 hexadecimal digits. The files are read in parallel."""
    return hash_files(paths, sha256_file)


def hash_files(
    paths: Collection[Path],
    hash_file: Callable[[Path], str],
    title: str = "Checking files",
    quiet: bool = False,
) -> dict[Path, str]:
    """Hashes of several files, which are read in parallel.

    Args:
        paths: the files.
        hash_file: `sha256_file` or `xxh128_file`.
        title, quiet: as for `progress`.

    Returns:
        path -> its hash.
    """
    sizes = [os.stat(path).st_size for path in paths]
    found = {}
    shown = progress(title, sum(sizes), "byte", quiet=quiet, scaled=True)
    with shown, ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the GIL
        for path, size, digest in zip(paths, sizes, pool.map(hash_file, paths), strict=True):
            found[path] = digest
            shown.update(size)
    return found


def stamp(path: str | os.PathLike) -> list[int]:
    """[size in bytes, time of the last change in nanoseconds]. Two stamps show whether a file has changed without reading it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
