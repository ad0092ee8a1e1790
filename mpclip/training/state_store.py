"""Stores of cached states on disk: memory-mapped Arrow shards, which any number of processes fill together.

A store is a folder. Its name is a hash of its key, which contains everything that the states depend on:

    <hash>/key.json           the key
           000000000.arrow    a shard of 1,024 rows
           000000000.xxh128   hash of that shard, written after it; earlier versions wrote 000000000.sha256
           000000000.lock     locked by the process that computes the shard

A changed weight, text or setting gives another folder, so outdated states are never used. Every process computes the shards
that no other process has locked. So the ranks of a job, or several jobs, share the work, and the shard of a killed process is
computed by another one. When a store is opened, every shard is hashed once, and a damaged one is computed again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import PartialState
from filelock import FileLock, Timeout

from mpclip.files import aside, hash_files, read_json, sha256_file, write_text, xxh128_file
from mpclip.progress import progress

logger = logging.getLogger(__name__)
SHARD_ROWS = 1024
HASHES = {".xxh128": xxh128_file, ".sha256": sha256_file}  # suffix of a file with a hash -> how the hash is computed
REVISION = 2  # part of every key; raise it when the code computes or writes other states than before
_FEATURES = datasets.Features({"states": datasets.Value("large_binary")})


# Formats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateFormat:
    """How states are stored.

    Attributes:
        stored: dtype on disk. int8 has in addition a float32 scale per token, its largest magnitude / 127.
        once_computed_in: dtype in which earlier versions computed states of this format. Their keys do not say it.
    """

    stored: torch.dtype
    once_computed_in: str

    def encode(self, states: torch.Tensor) -> bytes:
        """(T, C) states -> bytes.

        Raises:
            ValueError: a value is too large for float16. Some tokens of LLMs have very large states.
        """
        if states.numel() == 0:  # of an empty text without prompts
            return b""
        states = states.contiguous()
        if self.stored == torch.int8:
            states = states.float()
            scale = states.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127  # (T, 1)
            return _bytes(scale) + _bytes((states / scale).round().to(torch.int8))
        if self.stored == torch.float16 and states.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(
                f"A state of magnitude {states.abs().max():.0f} does not fit float16, whose largest value is 65504. "
                "Use --cache_format bfloat16 or float32."
            )
        return _bytes(states.to(self.stored))

    def decode(self, data: bytes, width: int) -> torch.Tensor:
        """bytes -> (T, C) states of `width` = C channels, in the dtype `stored`; float32 for int8."""
        if len(data) == 0:  # frombuffer takes no empty buffer
            return torch.empty(0, width, dtype=torch.float32 if self.stored == torch.int8 else self.stored)
        if self.stored != torch.int8:
            return torch.frombuffer(bytearray(data), dtype=self.stored).view(-1, width)
        T = len(data) // (width + 4)
        scale = torch.frombuffer(bytearray(data[: 4 * T]), dtype=torch.float32)  # (T,)
        values = torch.frombuffer(bytearray(data[4 * T :]), dtype=torch.int8).view(T, width)
        return values * scale[:, None]


def _bytes(x: torch.Tensor) -> bytes:
    return x.view(torch.uint8).numpy().tobytes()


FORMATS = {
    "float32": StateFormat(torch.float32, once_computed_in="float32"),
    "float16": StateFormat(torch.float16, once_computed_in="float32"),
    "bfloat16": StateFormat(torch.bfloat16, once_computed_in="bfloat16"),
    "int8": StateFormat(torch.int8, once_computed_in="bfloat16"),
}


# Reading ----------------------------------------------------------------------------------------------------------


class StateStore:
    """A complete store. Each row is (tokens, width); the number of tokens differs between rows.

    Args:
        folder: of the store.
        width: channels of a token.
    """

    def __init__(self, folder: Path, width: int):
        key = read_key(folder)
        rows = [datasets.Dataset.from_file(str(folder / name)) for name in shards_of(key)]
        self.rows = datasets.concatenate_datasets(rows).with_format("arrow")
        self.format, self.width = FORMATS[key["format"]], width

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> list[torch.Tensor]:
        """The states of the rows with these indices, (tokens, width) each, in the dtype of `StateFormat.decode`."""
        cells = self.rows[indices]["states"]
        return [self.format.decode(cell.as_buffer(), self.width) for cell in cells]

    @property
    def nbytes(self) -> int:
        """Size of the states in bytes."""
        return sum(chunk.nbytes for chunk in self.rows.data["states"].chunks)


def complete_key(key: dict, count: int, format: str, precision: str) -> dict:
    """Add to a key what every store depends on: versions of the code, number of rows, format, dtype of the computation.

    Args:
        key: what the states of this store depend on, as JSON values.
        count: number of rows.
        format: one of `FORMATS`.
        precision: name of the dtype that the states are computed in. It is part of the key only if earlier versions computed
            this format in another one, so that their stores are found again.

    Returns:
        A new key.

    Raises:
        ValueError: the format is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f"cache_format={format!r} is unknown; use one of {', '.join(map(repr, FORMATS))}.")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "revision": REVISION}
    complete = {**key, **versions, "count": count, "format": format}
    return complete if precision == FORMATS[format].once_computed_in else {**complete, "computed_in": precision}


def computed_in(key: dict) -> str:
    """Name of the dtype that the states of a key were computed in."""
    return key.get("computed_in") or FORMATS[key["format"]].once_computed_in


def read_key(folder: Path) -> dict:
    """The key of a store; {} if the folder has none."""
    return read_json(folder / "key.json")


def shards_of(key: dict) -> dict[str, range]:
    """File name of each shard -> its rows."""
    starts = range(0, key["count"], SHARD_ROWS)
    return {f"{start:09d}.arrow": range(start, min(start + SHARD_ROWS, key["count"])) for start in starts}


def shards_to_compute(folder: Path, key: dict) -> dict[str, range]:
    """The shards that are missing or damaged: file name -> rows. Reads every shard."""
    shards = shards_of(key)
    whole = _whole([folder / name for name in shards])
    return {name: rows for name, rows in shards.items() if folder / name not in whole}


def find_store(
    folder: str | os.PathLike, key: dict, holds: Callable[[dict], bool] = lambda found: True
) -> tuple[dict, dict[str, range] | None]:
    """Look for a complete, undamaged store whose states can be used for a key.

    Its entries must be those of the key, but for two. The dtype that it was computed in may be float32 too. And where the keys
    have a `tree`, `holds` decides.

    Args:
        folder: of all stores.
        key: from `complete_key`.
        holds: key of a store -> whether it has all rows and columns that are needed.

    Returns:
        The key of that store, and its `shards_to_compute`, which is empty. If there is none: `key` and the shards to compute of
        its own store; None if that has no folder yet.
    """
    needed = {name: value for name, value in key.items() if name not in ("computed_in", "tree")}
    own = None
    for key_file in sorted(Path(folder).glob("*/key.json")):
        found = read_key(key_file.parent)
        if any(found.get(name) != value for name, value in needed.items()):
            continue
        if computed_in(found) not in (computed_in(key), "float32") or not holds(found):
            continue
        waiting = shards_to_compute(key_file.parent, found)
        if not waiting:
            return found, waiting
        if found == key:
            own = waiting
    return key, own


def _whole(shards: list[Path]) -> set[Path]:
    """Those of the shards that exist and have the hash with which they were written. Several are read in parallel."""
    there = {shard: recorded for shard in shards if shard.exists() and (recorded := _recorded_hash(shard))}
    found = hash_files(
        list(there),
        lambda shard: HASHES[there[shard].suffix](shard),
        "Checking cached states",
        quiet=not PartialState().is_local_main_process,
    )
    return {shard for shard, digest in found.items() if there[shard].read_text() == digest}


def _recorded_hash(shard: Path) -> Path | None:
    """The file with the hash of a shard."""
    return next((file for suffix in HASHES if (file := shard.with_suffix(suffix)).exists()), None)


# Filling ----------------------------------------------------------------------------------------------------------


def open_store(
    folder: str | os.PathLike,
    key: dict,
    width: int,
    compute: Callable[[range], Iterable[torch.Tensor]],
    title: str,
    waiting: dict[str, range] | None = None,
) -> StateStore:
    """Open the store of a key. Shards that are missing or damaged are computed.

    Args:
        folder: of all stores.
        key: from `complete_key`.
        width: channels of a token.
        compute: a range of rows -> the (tokens, width) states of each row.
        title: of the progress bar.
        waiting: result of `shards_to_compute`, if the caller has it already; it reads all shards.
    """
    text = json.dumps(key, sort_keys=True)
    target = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:20]
    if not (target / "key.json").exists() or (target / "key.json").read_text() != text:
        write_text(target / "key.json", text)
    waiting = shards_to_compute(target, key) if waiting is None else dict(waiting)
    if waiting:
        done = key["count"] - sum(map(len, waiting.values()))
        with progress(title, key["count"], initial=done, quiet=not PartialState().is_local_main_process) as shown:
            for patient in (False, True):  # first the unlocked shards, then wait for the locked ones
                for name in list(waiting):
                    if _fill(target / name, waiting[name], FORMATS[key["format"]], compute, patient, shown.update):
                        del waiting[name]
    return StateStore(target, width)


def _fill(
    shard: Path, rows: range, format: StateFormat, compute: Callable, patient: bool, count: Callable[[int], None]
) -> bool:
    """Compute a shard, unless another process has done so. False if it is locked and `patient` is not set.

    `count` is told the number of rows that were finished.
    """
    try:
        with FileLock(shard.with_suffix(".lock"), blocking=patient):
            if _whole([shard]):
                count(len(rows))
                return True
            if _recorded_hash(shard):
                logger.warning("%s is damaged or missing; its states are computed again.", shard)
            for unfinished in shard.parent.glob(f".{shard.name}.*.part"):
                unfinished.unlink()  # left by a killed process
            with aside(shard) as written:
                with datasets.arrow_writer.ArrowWriter(path=str(written), features=_FEATURES) as writer:
                    for states in compute(rows):
                        writer.write({"states": format.encode(states)})
                        count(1)
                    writer.finalize()
                digest = xxh128_file(written)
            write_text(shard.with_suffix(".xxh128"), digest)
            return True
    except Timeout:
        return False
