"""Embeddings on disk, in chunks that are either whole or not there.

A chunk is an Arrow file of some pictures: key (its content's hash), stamp (where it was read; see mpclip/data/identity.py),
thumbnail, embedding. Its name carries the SHA-256 of its bytes, by which a damaged one is found. A chunk is written aside and
renamed, so a killed build leaves whole chunks only. Chunks are memory-mapped; a query checks a chunk when it first needs a row
of it (integrity.py).

In chunks of the first format the key was a picture's name, the stamp its file's size and date, and there was a caption.
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
        rows: `key` (str), `stamp` (str) and `thumbnail` (JPEG bytes), one of each per picture.
        embeddings: (n, D) fp32.

    Returns:
        the file.
    """
    width = embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(embeddings, dtype=np.float32).reshape(-1))
    columns = {"key": pa.array(rows["key"], pa.string()), "stamp": names_to_arrow(rows["stamp"])}
    columns |= {"thumbnail": pa.array(rows["thumbnail"], pa.binary())}
    batch = pa.record_batch(columns | {"embedding": pa.FixedSizeListArray.from_arrays(flat, width)})
    return write_arrow(folder, f"{number:06d}", batch)


def write_arrow(folder: Path, prefix: str, batch: pa.RecordBatch) -> Path:
    """Writes PREFIX-SHA256.arrow, whole or not at all. Returns the file."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    content = buffer.getvalue()
    path = folder / f"{prefix}-{hashlib.sha256(content).hexdigest()}.arrow"
    write_bytes(path, content)
    return path


def read_arrow(path: Path) -> pa.RecordBatch:
    """The content of a file of `write_arrow`, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def checksum(path: Path) -> str:
    """The SHA-256 that the name of a file of `write_arrow` carries."""
    return path.stem.partition("-")[2]


def names_to_arrow(names: Iterable[str]) -> pa.Array:
    """Names of files as bytes: a file's name need not be text."""
    return pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.large_binary())


def names_from_arrow(column: pa.Array) -> list[str]:
    """The names of `names_to_arrow`, as Python calls the files."""
    return [name.decode("utf-8", "surrogateescape") for name in column.to_pylist()]


def chunk_files(folder: Path) -> dict[int, Path]:
    """The chunks of a folder by number."""
    return {int(path.stem.partition("-")[0]): path for path in sorted(folder.glob("*-*.arrow"))}


class Live:
    """The vectors of the pictures `live` (n,) of some chunks, as stores take them: each call goes over them afresh.

    It can be sent to another process, and `part` gives the vectors for one of several.
    """

    def __init__(self, chunks: "Chunks", live: np.ndarray):
        self._chunks, self._folder, self._live = chunks, chunks.folder, live

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self._chunks.iterate(self._live)

    def part(self, i: int, of: int) -> "Live":
        """Part i, from 0 on, of `of`: whole chunks."""
        numbers = self._live >> ROW_BITS
        chosen = np.array_split(np.unique(numbers), of)[i]
        return Live(self._chunks, self._live[np.isin(numbers, chosen)])

    def __getstate__(self) -> dict:
        return {"_folder": self._folder, "_live": self._live}

    def __setstate__(self, state: dict) -> None:
        self.__init__(Chunks(state["_folder"]), state["_live"])


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
        return read_arrow(self.files[number])

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

    def pictures(self, first_format: bool = False) -> Iterator[tuple[str, str, int]]:
        """Key, stamp and id of every picture in the chunks of this format, or of the first one."""
        for number in self.files:
            batch = self._open(number)
            if ("caption" in batch.schema.names) == first_format:
                stamps = batch["stamp"].to_pylist() if first_format else names_from_arrow(batch["stamp"])
                for row, (key, stamp) in enumerate(zip(batch["key"].to_pylist(), stamps, strict=True)):
                    yield key, stamp, number << ROW_BITS | row

    def keys(self) -> dict[str, int]:
        """Key -> id of every picture whose key is its content's hash."""
        return {key: i for key, _, i in self.pictures()}

    def rows(self, ids: Iterable[int]) -> list[dict]:
        """`key` and `thumbnail` of pictures; of those in chunks of the first format also `caption`."""
        batches = [(self._table(i >> ROW_BITS), i & (1 << ROW_BITS) - 1) for i in map(int, ids)]
        wanted = {"key", "caption", "thumbnail"}
        return [{name: batch[name][row].as_py() for name in wanted & set(batch.schema.names)} for batch, row in batches]

    def embeddings(self, ids: Iterable[int]) -> np.ndarray:
        """(n, D) fp32 of pictures."""
        rows = [_matrix(self._table(i >> ROW_BITS))[i & (1 << ROW_BITS) - 1] for i in map(int, ids)]
        return np.stack(rows).astype(np.float32, copy=False)

    def iterate(self, live: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids (n,) int64, embeddings (n, D) fp32) chunk by chunk, of the sorted ids `live`; each chunk with any."""
        numbers = live >> ROW_BITS
        for number in np.unique(numbers).tolist():
            ids = live[np.searchsorted(numbers, number) : np.searchsorted(numbers, number, "right")]
            yield ids, _matrix(self._open(number))[ids & (1 << ROW_BITS) - 1].astype(np.float32, copy=False)

    def drop_all_but(self, live: np.ndarray) -> None:
        """Deletes the chunks without any of the ids `live`."""
        for number in self.files.keys() - set((live >> ROW_BITS).tolist()):
            self.files.pop(number).unlink()


def _matrix(batch: pa.RecordBatch) -> np.ndarray:
    """(n, D), a view of the file; fp32, or fp16 where files of embeddings had that."""
    column = batch["embedding"]
    return column.flatten().to_numpy().reshape(len(column), -1)
