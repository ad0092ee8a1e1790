"""index.json: what an index was built from and with, and how its files are told from damaged ones (integrity.py)."""

from pathlib import Path

from mpclip.files import read_json, sha256_files, write_json

LOCK = "build.lock"  # held by whoever writes the index
MEND = "build the index again, with the command that built it: what is whole is kept"


def read_manifest(index: Path) -> dict:
    """The content of index.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON.
    """
    file = index / "index.json"
    if not file.is_file():
        raise FileNotFoundError(f"no index at {index}: make one with python -m mpclip.search build")
    try:
        return read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error.__cause__}): remove {index}, and build the index again") from error


def write_manifest(index: Path, settings: dict) -> None:
    """Replaces index.json, whole or not at all."""
    write_json(index / "index.json", settings, indent=2)


def checksums(store: Path) -> dict[str, str]:
    """SHA-256 of every file below a store, by its path in there."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): digest for path, digest in sha256_files(files).items()}
