"""Files of embeddings, as `mpclip embed` writes them -> chunks -> a vector store, with nothing embedded again.

Each file becomes a chunk of its own, in the dtype that it has. A later build takes in new and changed files alone. A picture
that several shards have is in the store once; its other places are kept, as in an index of a folder.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa

from mpclip.encoding.shard_files import read_embeddings, read_note
from mpclip.files import stamp
from mpclip.progress import track
from mpclip.search.build import ELSEWHERE, begin, drop_damaged, finish, refuse_unknown
from mpclip.search.chunks import ROW_BITS, Chunks, chunk_files, names_to_arrow, write_arrow
from mpclip.search.manifest import LOCK, write_manifest
from mpclip.search.queries import QueryEncoder

SAME = ("fingerprint", "dtype", "width", "stored")  # what all files of an index have in common


def build_from_embeddings(
    model: str,
    embeddings: str | Path,
    index: str | Path,
    *,
    store: str = "faiss",
    kind: str = "flat",
    processes: int = 1,
    device: str | None = None,
    verify: bool = False,
) -> dict:
    """Makes an index of all files of embeddings in a folder, or brings one up to date.

    Args:
        model, device: as in `QueryEncoder`; the model that made the embeddings, in the dtype that it had then.
        embeddings: the folder.
        index: the folder to write, or one written before from embeddings of the same model.
        store, kind, verify: as in `build_index`.
        processes: how many read files, and with kind="ivfpq" of FAISS make codes.

    Returns:
        numbers: `pictures` in the index, `names` that they have, `files` of embeddings, and those `read` now.

    Raises:
        ValueError: no file, files of several models, another model than given, a damaged file, or one of more than 1,048,576
            rows; or an index of something else.
        ImportError, TimeoutError: as in `build_index`.
    """
    refuse_unknown(store, kind)
    index, folder = Path(index), Path(embeddings)
    notes = notes_of(folder)
    first = next(iter(notes.values()))
    encoder = QueryEncoder(model, first["dtype"], device)
    index.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(index / LOCK, timeout=1):
            if not (index / "index.json").exists():
                _refuse_other_model(encoder, encoder.fingerprint(), folder, first)
            settings, integrity = begin(index, encoder, str(folder), None, verify)
            if "shards" not in settings and (settings["vectors"] or chunk_files(index / "chunks")):
                raise ValueError(f"{index} is an index of pictures, not of files of embeddings. {ELSEWHERE}")
            _refuse_other_model(encoder, settings["fingerprint"], folder, first)
            settings.setdefault("shards", {})
            write_manifest(index, settings)
            drop_damaged(settings, integrity)
            settings["data"] = os.path.abspath(folder)
            read = _take_in(folder, notes, settings, index, processes)
            integrity.accept(index / "chunks" / shard["chunk"] for name, shard in settings["shards"].items() if name in read)
            places, live = _places(folder, settings["shards"], index)
            finish(settings, integrity, Chunks(index / "chunks"), live, places, store, kind, processes)
    except filelock.Timeout:
        raise TimeoutError(f"another build is writing {index}: wait until it is done") from None
    return {"pictures": len(live), "names": places.num_rows, "files": len(notes), "read": len(read)}


def notes_of(folder: Path) -> dict[str, dict]:
    """File name -> note of every file of embeddings in a folder, in the order of their names.

    Raises:
        ValueError: no file, a damaged one, files of several models, or more rows than a chunk holds.
    """
    notes = {path.name: read_note(path) for path in sorted(folder.glob("*.parquet"))}
    if not notes:
        raise ValueError(f"no file of embeddings in {folder}: make some with mpclip embed --out {folder}")
    first_name, first = next(iter(notes.items()))
    for name, note in notes.items():
        if differs := [key for key in SAME if note[key] != first[key]]:
            told = "; ".join(f"{key} {note[key]!r} and {first[key]!r}" for key in differs)
            raise ValueError(f"{folder / name} and {first_name} differ: {told}. Keep embeddings of one kind in a folder")
        if note["rows"] > 1 << ROW_BITS:
            raise ValueError(f"{folder / name} has {note['rows']:,} rows, and an index takes {1 << ROW_BITS:,} of a file")
    return notes


def _refuse_other_model(encoder: QueryEncoder, fingerprint: str, folder: Path, note: dict) -> None:
    if fingerprint != note["fingerprint"]:
        raise ValueError(
            f"{folder} has embeddings of {note['model']} in {note['dtype']} (fingerprint {note['fingerprint'][:12]}), and "
            f"{encoder.name} in that dtype is another model ({fingerprint[:12]}). Give the model that made them"
        )


def _take_in(folder: Path, notes: dict[str, dict], settings: dict, index: Path, processes: int) -> set[str]:
    """Makes chunks of files that are new or changed, and notes them in `settings`. Returns the names of these files."""
    chunks, before = index / "chunks", settings.get("shards", {})
    dates = {name: stamp(folder / name) for name in notes}
    kept = {
        name: before[name]
        for name, date in dates.items()
        if name in before and before[name]["stamp"] == date and (chunks / before[name]["chunk"]).exists()
    }
    todo = [name for name in notes if name not in kept and notes[name]["rows"]]
    number = max(chunk_files(chunks), default=-1) + 1
    jobs = [(folder / name, chunks, number + i) for i, name in enumerate(todo)]
    with mapping(min(processes, len(jobs))) as run:
        made = track(run(write_shard, jobs), "Reading embeddings", len(jobs), "file")
        new = {name: {"chunk": path, "stamp": dates[name]} for name, path in zip(todo, made, strict=True)}
    # In the order in which they were taken in: a picture keeps its id and its first name when other shards have it too.
    settings["shards"] = dict(sorted((kept | new).items(), key=lambda item: _chunk_number(item[1])))
    return new.keys()


@contextlib.contextmanager
def mapping(processes: int) -> Iterator[Callable]:
    """Context manager that gives a `map` over several processes, or over this one."""
    if processes < 2:
        yield map
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))  # threads of FAISS and torch survive no fork
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def write_shard(job: tuple[Path, Path, int]) -> str:
    """Makes a chunk of a file of embeddings.

    Args:
        job: the file, the folder of the chunks, and the chunk's number.

    Returns:
        the chunk's name.
    """
    path, chunks, number = job
    table = pa.Table.from_batches(read_embeddings(path, ["sha256", "embedding"])).combine_chunks()
    columns = {
        "thumbnail": pa.repeat(pa.scalar(b"", pa.binary()), table.num_rows),
        "sha256": table["sha256"].chunk(0),
        "embedding": table["embedding"].chunk(0),
    }
    return write_arrow(chunks, f"{number:06d}", pa.record_batch(columns)).name


def _chunk_number(shard: dict) -> int:
    return int(shard["chunk"].partition("-")[0])


def _places(folder: Path, shards: dict[str, dict], index: Path) -> tuple[pa.RecordBatch, np.ndarray]:
    """The places of all rows, in the form of places.py, and the ids (n,) of the pictures, each of which is there once."""
    if not shards:
        raise ValueError(f"{folder}: its files have no rows")
    ids, keys, names, captions = [], [], [], []
    for file, shard in track(shards.items(), "Reading names", len(shards), "file"):
        there = read_note(folder / file)
        columns = ["key", "place", "url", "sha256", *(["caption"] if there["captions"] else [])]
        table = pa.Table.from_batches(read_embeddings(folder / file, columns))
        ids.append(np.arange(table.num_rows, dtype=np.int64) + (_chunk_number(shard) << ROW_BITS))
        keys += table["sha256"].to_pylist()
        # Ray's files have rows of several shards, which their keys and places name.
        shard_name = "" if there["source"].get("engine") == "ray" else f"{Path(file).stem}/"
        rows = zip(*(table[name].to_pylist() for name in ("key", "place", "url")), strict=True)
        names += [url or f"{shard_name}{place or key}" for key, place, url in rows]
        captions += [caption or "" for caption in table["caption"].to_pylist()] if there["captions"] else [""] * table.num_rows
    _, first, which = np.unique(np.array(keys, dtype="S32"), return_index=True, return_inverse=True)
    of_picture = np.concatenate(ids)[first]  # (pictures,)
    id_of = of_picture[which]  # (rows,) that of the first row with the same picture
    order = np.argsort(id_of, kind="stable")
    columns = {
        "id": pa.array(id_of),
        "name": names_to_arrow(names),
        "stamp": names_to_arrow([""] * len(names)),
        "caption": pa.array(captions, pa.large_string()),
        "key": pa.array([key.hex() for key in keys], pa.large_string()),
    }
    return pa.record_batch(columns).take(pa.array(order)), np.sort(of_picture)
