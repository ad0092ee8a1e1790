"""Rows of states on disk: Arrow shards, memory-mapped, filled by any number of processes.

A store is a folder. Its name is a hash of everything that its rows depend on:

    <hash>/key.json           what the rows depend on
           000000000.arrow    a shard of 1,024 rows
           000000000.sha256   hash of that shard, written after it
           000000000.lock     held by the process that computes it

So a change of anything gives another folder, and old states are never used by mistake. Processes take the shards that nobody
holds: the ranks of a job, or several jobs, share the work. If a process is killed, another computes its shard. When a store is
opened every shard is hashed once, and a damaged one is computed again.
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
from tqdm.auto import tqdm

from mpclip.files import aside, read_json, sha256_file, sha256_files, write_text

logger = logging.getLogger(__name__)
SHARD_ROWS = 1024
REVISION = 2  # of the code that computes and writes states; raise it when that changes what it gives
_FEATURES = datasets.Features({"states": datasets.Value("large_binary")})


# Formats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateFormat:
    """How states are computed and written.

    Attributes:
        compute: dtype in which the frozen towers run.
        stored: dtype on disk. int8 has a float32 scale for each token: its largest magnitude / 127.
    """

    compute: torch.dtype
    stored: torch.dtype

    def encode(self, states: torch.Tensor) -> bytes:
        """(T, C) states -> bytes.

        Raises:
            ValueError: a value is too large for float16. LLMs have some tokens of very large states.
        """
        states = states.contiguous()
        if self.stored == torch.int8:
            states = states.float()
            scale = states.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127  # (T, 1)
            return _bytes(scale) + _bytes((states / scale).round().to(torch.int8))
        if self.stored == torch.float16 and states.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(
                f"A state of magnitude {states.abs().max():.0f} does not fit float16, which ends at 65504. "
                "Use --cache_format bfloat16 or float32."
            )
        return _bytes(states.to(self.stored))

    def decode(self, data: bytes, width: int) -> torch.Tensor:
        """bytes -> (T, C) in `stored`; float32 from int8."""
        if self.stored != torch.int8:
            return torch.frombuffer(bytearray(data), dtype=self.stored).view(-1, width)
        T = len(data) // (width + 4)
        scale = torch.frombuffer(bytearray(data[: 4 * T]), dtype=torch.float32)  # (T,)
        values = torch.frombuffer(bytearray(data[4 * T :]), dtype=torch.int8).view(T, width)
        return values * scale[:, None]


def _bytes(x: torch.Tensor) -> bytes:
    return x.view(torch.uint8).numpy().tobytes()


# float16 keeps three bits more than bfloat16, so states for it are computed in float32.
FORMATS = {
    "float32": StateFormat(compute=torch.float32, stored=torch.float32),
    "float16": StateFormat(compute=torch.float32, stored=torch.float16),
    "bfloat16": StateFormat(compute=torch.bfloat16, stored=torch.bfloat16),
    "int8": StateFormat(compute=torch.bfloat16, stored=torch.int8),
}


# Reading ----------------------------------------------------------------------------------------------------------


class StateStore:
    """Rows of states, each (tokens, width) with its own number of tokens.

    Args:
        folder: a finished store.
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
        """The states of some rows: a list of (tokens, width), in the dtype of `StateFormat.decode`."""
        cells = self.rows[indices]["states"]
        return [self.format.decode(cell.as_buffer(), self.width) for cell in cells]

    @property
    def nbytes(self) -> int:
        """Size of the states in bytes."""
        return sum(chunk.nbytes for chunk in self.rows.data["states"].chunks)


def complete_key(key: dict, count: int, format: str) -> dict:
    """A key with what every store depends on: the versions of the code, the number of rows, the format.

    Raises:
        ValueError: an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"cache_format={format!r} is unknown; use one of {', '.join(map(repr, FORMATS))}.")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "revision": REVISION}
    return {**key, **versions, "count": count, "format": format}


def read_key(folder: Path) -> dict:
    """What the rows of a store depend on."""
    return read_json(folder / "key.json")


def shards_of(key: dict) -> dict[str, range]:
    """File name of each shard and its rows."""
    starts = range(0, key["count"], SHARD_ROWS)
    return {f"{start:09d}.arrow": range(start, min(start + SHARD_ROWS, key["count"])) for start in starts}


def shards_to_compute(folder: Path, key: dict) -> dict[str, range]:
    """File names and rows of the shards that are missing or not as they were written. Reads every shard."""
    shards = shards_of(key)
    whole = _whole([folder / name for name in shards])
    return {name: rows for name, rows in shards.items() if folder / name not in whole}


def _whole(shards: list[Path]) -> set[Path]:
    """Those shards that are there as they were written. Several are read at a time."""
    there = [shard for shard in shards if shard.exists() and shard.with_suffix(".sha256").exists()]
    found = sha256_files(there, "Checking cached states", quiet=not PartialState().is_local_main_process)
    return {shard for shard, digest in found.items() if shard.with_suffix(".sha256").read_text() == digest}


# Filling ----------------------------------------------------------------------------------------------------------


def open_store(
    folder: str | os.PathLike,
    key: dict,
    width: int,
    compute: Callable[[range], Iterable[torch.Tensor]],
    title: str,
    waiting: dict[str, range] | None = None,
) -> StateStore:
    """The store for `key` under `folder`. Shards that are missing or damaged are computed.

    Args:
        key: from `complete_key`, as JSON values.
        width: channels of a token.
        compute: a range of rows -> (tokens, width) states of each.
        title: of the progress bar.
        waiting: from `shards_to_compute`, where the caller has called it already; by default it is called here.
    """
    text = json.dumps(key, sort_keys=True)
    target = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:20]
    if not (target / "key.json").exists() or (target / "key.json").read_text() != text:
        write_text(target / "key.json", text)
    waiting = shards_to_compute(target, key) if waiting is None else dict(waiting)
    if waiting:
        with tqdm(
            total=key["count"],
            initial=key["count"] - sum(map(len, waiting.values())),
            desc=title,
            unit="row",
            disable=not PartialState().is_local_main_process,
        ) as progress:
            for patient in (False, True):  # first the shards that nobody holds, then those that others held
                for name in list(waiting):
                    if _fill(target / name, waiting[name], FORMATS[key["format"]], compute, patient):
                        progress.update(len(waiting.pop(name)))
    return StateStore(target, width)


def _fill(shard: Path, rows: range, format: StateFormat, compute: Callable, patient: bool) -> bool:
    """Computes a shard unless it is whole by now. False if another process holds it and `patient` is not set."""
    hash_file = shard.with_suffix(".sha256")
    try:
        with FileLock(shard.with_suffix(".lock"), blocking=patient):
            if _whole([shard]):
                return True
            if hash_file.exists():
                logger.warning("%s is damaged or missing; its states are computed again.", shard)
            for unfinished in shard.parent.glob(f".{shard.name}.*.part"):
                unfinished.unlink()  # of a process that was killed
            with aside(shard) as written:
                with datasets.arrow_writer.ArrowWriter(path=str(written), features=_FEATURES) as writer:
                    for states in compute(rows):
                        writer.write({"states": format.encode(states)})
                    writer.finalize()
                digest = sha256_file(written)
            write_text(hash_file, digest)
            return True
    except Timeout:
        return False
