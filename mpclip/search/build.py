"""Pictures -> chunks of embeddings -> a vector store. What was done before a kill, or in an earlier build, is kept."""

import datetime
import hashlib
import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import PIL.Image
from tqdm import tqdm

from mpclip.hardware import describe_machine
from mpclip.search.chunks import ROW_BITS, Chunks, checksum, chunk_files, write_chunk
from mpclip.search.integrity import Integrity
from mpclip.search.manifest import LOCK, checksums, read_manifest, write_manifest
from mpclip.search.pictures import open_pictures, thumbnail
from mpclip.search.queries import QueryEncoder
from mpclip.search.stores import KINDS, MIN_IVFPQ, STORES, library

CHUNK = 512  # pictures whose embeddings a kill may cost
THUMBNAIL = 256  # pixels of its longer side
NAMES_SHOWN = 20


def build_index(
    model: str,
    data: str,
    index: str | Path,
    split: str | None = None,
    *,
    store: str = "faiss",
    kind: str = "flat",
    batch_size: int = 64,
    dtype: str = "float32",
    device: str | None = None,
    verify: bool = False,
) -> dict:
    """Makes an index of all pictures of `data`, or brings one up to date.

    Pictures embedded before are not embedded again unless their file has changed; those that are gone are dropped. Pictures
    that cannot be read are left out, with a warning that names them, and tried again by the next build. Damaged embeddings
    and a damaged store are named in a warning and made anew.

    Args:
        model, dtype, device: as in `QueryEncoder`.
        data, split: as in `open_pictures`.
        index: the folder to write, or one written before, of the same model and data.
        store: "faiss" or "lancedb".
        kind: "flat", "hnsw" or "ivfpq"; see stores.py. It may change from build to build, as may the store.
        verify: hash every file of an index that is there already, and the model's weights. Otherwise files whose size and
            date are still those of the last build are trusted (integrity.py).

    Returns:
        numbers of pictures: `pictures` in the index, and of those `embedded` now; `removed` since the last build;
        `unreadable`: what is wrong with each that was left out, by name.

    Raises:
        ValueError: the index is of another model or other data; no picture; too few for "ivfpq".
        ImportError: the store's library is not installed.
        TimeoutError: another build is writing the index.
    """
    if store not in STORES or kind not in KINDS:
        raise ValueError(f"store={store!r}, kind={kind!r}: expected one of {list(STORES)} and one of {list(KINDS)}")
    library(store)  # rather than after hours of embedding
    index = Path(index)
    pictures = open_pictures(data, split)
    encoder = QueryEncoder(model, dtype, device)
    index.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(index / LOCK, timeout=1):  # a query holds it for a moment, to note dates of files
            settings, integrity = _begin(index, encoder, data, split, verify)
            _drop_damaged(settings, integrity)
            known = Chunks(index / "chunks").keys()
            before = set(np.load(index / settings["vectors"] / "ids.npy").tolist()) if settings["vectors"] else set()
            todo = [key for key, stamp in pictures.stamps.items() if key not in known or known[key][0] != stamp]
            unreadable = _embed(encoder, pictures, todo, integrity, batch_size)
            chunks = Chunks(index / "chunks")
            live = {key: i for key, (stamp, i) in chunks.keys().items() if pictures.stamps.get(key) == stamp}
            if not live:
                raise ValueError(f"{data}: none of its {len(todo)} pictures could be read: {_named(unreadable)}")
            _finish(settings, integrity, chunks, np.sort(np.fromiter(live.values(), np.int64)), store, kind)
    except filelock.Timeout:
        raise TimeoutError(f"another build is writing {index}: wait until it is done") from None
    return {
        "pictures": len(live),
        "embedded": len(todo) - len(unreadable),
        "removed": sum(i in before and key not in pictures.stamps for key, (_, i) in known.items()),
        "unreadable": unreadable,
    }


def _begin(index: Path, encoder: QueryEncoder, data: str, split: str | None, verify: bool) -> tuple[dict, Integrity]:
    """The settings of an index, new or there already; it must be of this model and this data."""
    exists, chunks = (index / "index.json").exists(), index / "chunks"
    for unfinished in [*index.glob(".index.json.*.part"), *chunks.glob(".*.part")]:
        unfinished.unlink()  # of a build that was killed
    settings = read_manifest(index) if exists else {}
    integrity = Integrity(index, settings, verify)
    wanted = {
        "model": encoder.name,
        "fingerprint": integrity.fingerprint(encoder),
        "dtype": encoder.dtype,
        "aspects": encoder.aspects,
        "data": os.path.abspath(data) if os.path.exists(data) else data,
        "split": split,
    }
    if not exists:
        if any(path.name != LOCK for path in index.iterdir()):
            raise ValueError(f"{index} holds something else than an index: give a new or empty folder")
        settings = wanted | {"vectors": None, "checksums": {}}
        write_manifest(index, settings)
    else:
        differs = [f"{key} {settings[key]!r}, not {wanted[key]!r}" for key in wanted if settings[key] != wanted[key]]
        # A copy of the same checkpoint elsewhere is the same model.
        if differs and (len(differs) > 1 or settings["model"] == wanted["model"]):
            raise ValueError(f"{index} is an index of {'; '.join(differs)}. Build in another folder, or remove this one")
        settings["model"] = wanted["model"]
    chunks.mkdir(exist_ok=True)
    return settings, integrity


def _drop_damaged(settings: dict, integrity: Integrity) -> None:
    """Removes what is not as it was written; a damaged store is forgotten, as if the last build had not finished."""
    index = integrity.index
    for path in integrity.damaged({path: checksum(path) for path in chunk_files(index / "chunks").values()}):
        warnings.warn(f"{path} is damaged; the pictures in it are embedded again", stacklevel=3)
        path.unlink()
    if settings["vectors"]:
        store = {index / settings["vectors"] / name: digest for name, digest in settings["checksums"].items()}
        if damaged := integrity.damaged(store):
            warnings.warn(f"{damaged[0]} is missing or damaged; the store is made anew", stacklevel=3)
            settings["vectors"] = None


def _embed(encoder: QueryEncoder, pictures, keys: list[str], integrity: Integrity, batch_size: int) -> dict[str, str]:
    """Embeds pictures into new chunks. Returns what is wrong with each that could not be read."""
    chunks = integrity.index / "chunks"

    def read(key: str) -> tuple[PIL.Image.Image, bytes, str]:
        picture, caption = pictures.read(key)
        key.encode()  # a name that is no text cannot be written down
        return picture, thumbnail(picture, THUMBNAIL), caption

    unreadable: dict[str, str] = {}
    number = max(chunk_files(chunks), default=-1) + 1
    rows: dict[str, list] = {name: [] for name in ("key", "stamp", "caption", "thumbnail")}
    waiting: list[PIL.Image.Image] = []
    embeddings: list[np.ndarray] = []

    def embed_waiting() -> None:
        if not waiting:
            return
        batch = encoder.embed_pictures(waiting).numpy()  # (B, D)
        waiting.clear()
        embeddings.append(batch)
        if not np.isfinite(batch).all():
            names = rows["key"][-len(batch) :]
            bad = [name for name, row in zip(names, np.isfinite(batch).all(axis=1), strict=True) if not row]
            raise ValueError(f"{encoder.name} gives embeddings that are not finite, of {', '.join(bad[:NAMES_SHOWN])}")

    def write() -> None:
        nonlocal number
        embed_waiting()
        if embeddings:
            integrity.accept([write_chunk(chunks, number, rows, np.concatenate(embeddings))])
            number += 1
            embeddings.clear()
            for column in rows.values():
                column.clear()

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # Pillow only warns of a decompression bomb until it is twice the limit.
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        with tqdm(total=len(keys), desc="Embedding pictures", unit="picture", disable=None) as progress:
            for key, future in _ahead(pool, read, keys, 2 * batch_size):
                progress.update()
                try:
                    picture, small, caption = future.result()
                except Exception as error:  # Pillow's decoders raise a dozen types
                    unreadable[key] = str(error) or type(error).__name__
                    continue
                waiting.append(picture)
                for column, value in zip(rows.values(), (key, pictures.stamps[key], caption, small), strict=True):
                    column.append(value)
                if len(waiting) == batch_size:
                    embed_waiting()
                if len(rows["key"]) == CHUNK:
                    write()
            write()
    if unreadable:
        warnings.warn(f"{len(unreadable)} of {len(keys)} pictures left out: {_named(unreadable)}", stacklevel=3)
    return unreadable


def _ahead(pool: ThreadPoolExecutor, read: Callable, keys: Iterable[str], count: int) -> Iterator[tuple[str, Future]]:
    """Keys in order with what `read` makes of them, begun `count` keys early: never more pictures in memory than that."""
    begun: deque[tuple[str, Future]] = deque()
    for key in keys:
        begun.append((key, pool.submit(read, key)))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def _finish(settings: dict, integrity: Integrity, chunks: Chunks, live: np.ndarray, store: str, kind: str) -> None:
    """Makes the store of the pictures `live` (n,) aside, names it by its content, and then makes it known by index.json."""
    if kind == "ivfpq" and len(live) < MIN_IVFPQ:
        raise ValueError(
            f"kind='ivfpq' learns its codes from {MIN_IVFPQ:,} pictures or more; here are {len(live):,}: use 'flat'"
        )
    index, files = integrity.index, [path.name for path in chunks.files.values()]
    digest = hashlib.sha256(json.dumps([store, kind, files]).encode() + live.tobytes()).hexdigest()
    vectors = index / f"store-{digest}"
    if vectors.name != settings["vectors"]:
        aside = index / "unfinished-store"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        width = next(chunks.iterate(live[:1]))[1].shape[1]
        STORES[store].build(aside, len(live), width, kind, lambda: chunks.iterate(live))
        np.save(aside / "ids.npy", live)
        settings["checksums"] = checksums(aside)
        shutil.rmtree(vectors, ignore_errors=True)  # damaged, or of a build that was killed before it made it known
        aside.rename(vectors)
        integrity.accept(vectors / name for name in settings["checksums"])
    used = [chunks.files[number] for number in np.unique(live >> ROW_BITS).tolist()]
    used += [vectors / name for name in settings["checksums"]]
    state = {
        "store": store,
        "kind": kind,
        "pictures": len(live),
        "vectors": vectors.name,
        "stamps": integrity.stamps_of(used),
        "model_stamps": integrity.model_stamps,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
    }
    write_manifest(index, settings | state)
    for old in index.glob("store-*"):
        if old != vectors:
            shutil.rmtree(old)
    chunks.drop_all_but(live)


def _named(reasons: dict[str, str]) -> str:
    shown = [f"{key!r} ({reason})" for key, reason in list(reasons.items())[:NAMES_SHOWN]]
    return ", ".join(shown) + (f" and {len(reasons) - len(shown)} more" if len(reasons) > len(shown) else "")
