"""Embeddings on disk, in chunks that are either whole or not there.

A chunk is an Arrow file of some pictures: key, stamp, caption, thumbnail, embedding. Its name carries the SHA-256 of its bytes,
by which a damaged one is found. A chunk is written aside and renamed, so a killed build leaves whole chunks only. Chunks are
memory-mapped; a query checks a chunk when it first needs a row of it (integrity.py).
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from mpclip.files import write_bytes
from mpclip.search.integrity import Integrity
from mpclip.search.manifest import MEND

ROW_BITS = 20  # id of a picture = chunk number << ROW_BITS | row in the chunk: the same through every later build


def write_chunk(folder: Path, number: int, rows: dict[str, list], embeddings: np.ndarray) -> Path:
    """Writes a chunk, whole or not at all.

    Args:
        folder: of the chunks; it exists.
        number: of the chunk; none there has it.
        rows: `key`, `stamp`, `caption` (str) and `thumbnail` (JPEG bytes), one of each per picture.
        embeddings: (n, D) fp32.

    Returns:
        the file.
    """
    width = embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(embeddings, dtype=np.float32).reshape(-1))
    types = {"key": pa.string(), "stamp": pa.string(), "caption": pa.string(), "thumbnail": pa.binary()}
    columns = {name: pa.array(rows[name], type) for name, type in types.items()}
    batch = pa.record_batch(columns | {"embedding": pa.FixedSizeListArray.from_arrays(flat, width)})
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    content = buffer.getvalue()
    path = folder / f"{number:06d}-{hashlib.sha256(content).hexdigest()}.arrow"
    write_bytes(path, content)
    return path


def checksum(path: Path) -> str:
    """The SHA-256 that a chunk's name carries."""
    return path.stem.partition("-")[2]


def chunk_files(folder: Path) -> dict[int, Path]:
    """The chunks of a folder by number."""
    return {int(path.stem.partition("-")[0]): path for path in sorted(folder.glob("*-*.arrow"))}


class Chunks:
    """The chunks of an index, read by the ids of pictures.

    Args:
        folder: of the chunks.
        integrity: knows which of them need not be read to be checked; by default every chunk is hashed at its first use.
    """

    def __init__(self, folder: Path, integrity: Integrity | None = None):
        self.folder, self.files = folder, chunk_files(folder)
        self._integrity = integrity or Integrity(folder.parent, {})
        self._table = lru_cache(maxsize=256)(self._checked)  # each holds a file open

    def _open(self, number: int) -> pa.RecordBatch:
        return pa.ipc.open_file(pa.memory_map(str(self.files[number]))).get_batch(0)

    def check(self, numbers: Iterable[int]) -> None:
        """
        Raises:
            ValueError: one of these chunks is missing or damaged.
        """
        files = [self.files.get(number, self.folder / f"{number:06d}-*.arrow") for number in numbers]
        if damaged := self._integrity.damaged({path: checksum(path) for path in files}):
            raise ValueError(f"{damaged[0]} is missing or damaged: {MEND}")

    def _checked(self, number: int) -> pa.RecordBatch:
        """For queries; a build has dropped what is damaged before it reads."""
        self.check([number])
        return self._open(number)

    def keys(self) -> dict[str, tuple[str, int]]:
        """(stamp, id) of every key; of a picture that was embedded again, the later one."""
        found = {}
        for number in self.files:
            batch = self._open(number)
            pairs = zip(batch["key"].to_pylist(), batch["stamp"].to_pylist(), strict=True)
            found |= {key: (stamp, number << ROW_BITS | row) for row, (key, stamp) in enumerate(pairs)}
        return found

    def rows(self, ids: Iterable[int]) -> list[dict]:
        """`key`, `caption`, `thumbnail` of pictures."""
        batches = [(self._table(i >> ROW_BITS), i & (1 << ROW_BITS) - 1) for i in map(int, ids)]
        return [{name: batch[name][row].as_py() for name in ("key", "caption", "thumbnail")} for batch, row in batches]

    def embeddings(self, ids: Iterable[int]) -> np.ndarray:
        """(n, D) fp32 of pictures."""
        return np.stack([_matrix(self._table(i >> ROW_BITS))[i & (1 << ROW_BITS) - 1] for i in map(int, ids)])

    def iterate(self, live: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids (n,) int64, embeddings (n, D) fp32) chunk by chunk, of the sorted ids `live`; each chunk with any."""
        numbers = live >> ROW_BITS
        for number in np.unique(numbers).tolist():
            ids = live[np.searchsorted(numbers, number) : np.searchsorted(numbers, number, "right")]
            yield ids, _matrix(self._open(number))[ids & (1 << ROW_BITS) - 1]

    def drop_all_but(self, live: np.ndarray) -> None:
        """Deletes the chunks without any of the ids `live`."""
        for number in self.files.keys() - set((live >> ROW_BITS).tolist()):
            self.files.pop(number).unlink()


def _matrix(batch: pa.RecordBatch) -> np.ndarray:
    """(n, D) fp32: a view of the file."""
    column = batch["embedding"]
    return column.flatten().to_numpy().reshape(len(column), -1)
