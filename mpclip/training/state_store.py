"""Rows of states on disk: Arrow shards, memory-mapped, filled by any number of processes.

A store stands in a folder named by a hash of everything its rows depend on:

    <hash>/key.json           what they depend on
           000000000.arrow    1,024 rows
           000000000.sha256   of that shard; it is written last, so the shard is whole
           000000000.lock     held by the process that computes it

What has changed therefore misses, and is never silently used. Processes take the shards that nobody holds: the ranks of a job,
or several jobs, share the work. A killed one lets go of its shard, and another computes it, as it does a damaged one.
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
        stored: dtype on disk. int8 has a float32 scale for each token, its largest magnitude / 127.
    """

    compute: torch.dtype
    stored: torch.dtype

    def encode(self, states: torch.Tensor) -> bytes:
        """(T, C) states -> bytes.

        Raises:
            ValueError: a value that float16 cannot hold; LLMs have some tokens of very large states.
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


# float16 has eight times bfloat16's precision, which only a float32 computation has to give.
FORMATS = {
    "float32": StateFormat(compute=torch.float32, stored=torch.float32),
    "float16": StateFormat(compute=torch.float32, stored=torch.float16),
    "bfloat16": StateFormat(compute=torch.bfloat16, stored=torch.bfloat16),
    "int8": StateFormat(compute=torch.bfloat16, stored=torch.int8),
}


# Reading ----------------------------------------------------------------------------------------------------------


class StateStore:
    """Rows of states, (tokens, width) each with its own number of tokens.

    Args:
        folder: of a finished store.
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
        """[(tokens, width)] of some rows."""
        cells = self.rows[indices]["states"]
        return [self.format.decode(cell.as_buffer(), self.width) for cell in cells]

    @property
    def nbytes(self) -> int:
        """Size of the states."""
        return sum(chunk.nbytes for chunk in self.rows.data["states"].chunks)


def complete_key(key: dict, count: int, format: str) -> dict:
    """A key with what every store depends on.

    Raises:
        ValueError: an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"cache_format={format!r} is unknown; use one of {', '.join(map(repr, FORMATS))}.")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "revision": REVISION}
    return {**key, **versions, "count": count, "format": format}


def read_key(folder: Path) -> dict:
    return json.loads((folder / "key.json").read_text())


def shards_of(key: dict) -> dict[str, range]:
    """File name of each shard and its rows."""
    starts = range(0, key["count"], SHARD_ROWS)
    return {f"{start:09d}.arrow": range(start, min(start + SHARD_ROWS, key["count"])) for start in starts}


def is_whole(shard: Path) -> bool:
    """Whether a shard is there and what was written."""
    digest = shard.with_suffix(".sha256")
    return shard.exists() and digest.exists() and digest.read_text() == sha256_file(shard)


# Filling ----------------------------------------------------------------------------------------------------------


def open_store(
    folder: str | os.PathLike, key: dict, width: int, compute: Callable[[range], Iterable[torch.Tensor]], title: str
) -> StateStore:
    """The store for `key` under `folder`, computed as far as it is not there yet.

    Args:
        key: from `complete_key`, as JSON values.
        width: channels of a token.
        compute: a range of rows -> (tokens, width) states of each.
        title: of the progress bar.
    """
    text = json.dumps(key, sort_keys=True)
    target = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:20]
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "key.json", text.encode())
    waiting = {name: rows for name, rows in shards_of(key).items() if not is_whole(target / name)}
    if waiting:
        with tqdm(
            total=key["count"],
            initial=key["count"] - sum(map(len, waiting.values())),
            desc=title,
            unit="row",
            disable=not PartialState().is_local_main_process,
        ) as progress:
            for patient in (False, True):  # first what nobody works on, then what others did or were killed at
                for name in list(waiting):
                    if _fill(target / name, waiting[name], FORMATS[key["format"]], compute, patient):
                        progress.update(len(waiting.pop(name)))
    return StateStore(target, width)


def _fill(shard: Path, rows: range, format: StateFormat, compute: Callable, patient: bool) -> bool:
    """Compute a shard unless it is whole by now; False if another process is at it and we are not patient."""
    try:
        with FileLock(shard.with_suffix(".lock"), blocking=patient):
            if is_whole(shard):
                return True
            if shard.with_suffix(".sha256").exists():
                logger.warning("%s is damaged or missing; its states are computed again.", shard)
            aside = shard.with_suffix(".part")
            try:
                with datasets.arrow_writer.ArrowWriter(path=str(aside), features=_FEATURES) as writer:
                    for states in compute(rows):
                        writer.write({"states": format.encode(states)})
                    writer.finalize()
                digest = sha256_file(aside)
                os.replace(aside, shard)
            finally:
                aside.unlink(missing_ok=True)
            _write(shard.with_suffix(".sha256"), digest.encode())
            return True
    except Timeout:
        return False


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Written aside and renamed; several processes may write the same."""
    if not path.exists() or path.read_bytes() != data:
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_bytes(data)
        os.replace(aside, path)
