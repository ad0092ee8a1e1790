"""index.json: what an index was built from and with, and the checksums of the store that is searched."""

import hashlib
import json
import os
from pathlib import Path

MEND = "build the index again, with the command that built it: what is whole is kept"


def read_manifest(index: Path) -> dict:
    """
    Raises:
        ValueError: index.json does not hold what was written.
    """
    file = index / "index.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): remove {index}, and build the index again") from error


def write_manifest(index: Path, settings: dict) -> None:
    """Replaces index.json, whole or not at all."""
    aside = index / "index.unfinished"
    aside.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, index / "index.json")


def checksums(store: Path) -> dict[str, str]:
    """SHA-256 of every file below a store, by its path in there."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): sha256(path) for path in files}


def damaged_file(store: Path, expected: dict[str, str]) -> Path | None:
    """The first file of a store that is missing or not as it was written; the whole store is read, once."""
    for name, checksum in expected.items():
        if not (store / name).is_file() or sha256(store / name) != checksum:
            return store / name
    return None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
