"""Pictures -> chunks of embeddings -> a vector store. What was done before a kill, or in an earlier build, is kept."""

import datetime
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa

from mpclip.data.reading import ReadingOptions
from mpclip.hardware import choose_precision, describe_machine
from mpclip.search.chunks import ROW_BITS, Chunks, Live, checksum, chunk_files
from mpclip.search.embed import NAMES_SHOWN, ChunkWriter, embed_pictures
from mpclip.search.integrity import Integrity
from mpclip.search.known import Known
from mpclip.search.manifest import LOCK, checksums, read_manifest, write_manifest
from mpclip.search.pictures import open_pictures
from mpclip.search.places import Place, places_to_arrow, write_places
from mpclip.search.queries import QueryEncoder
from mpclip.search.stores import KINDS, MIN_IVFPQ, STORES, library

ELSEWHERE = "Build in another folder, or remove this one"


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
    **reading,
) -> dict:
    """Makes an index of all pictures of `data`, or brings one up to date.

    A picture is known by its content. One that was embedded before is not embedded again, whatever its name, its place in a
    table or its caption is now; one with several names is embedded once. Pictures that are gone are dropped. Those that cannot
    be read are left out, with a warning that names them, and tried again by the next build. Damaged embeddings and a damaged
    store are named in a warning and made anew.

    Args:
        model, dtype, device: as in `QueryEncoder`.
        data, split: as in `open_pictures`.
        index: the folder to write, or one written before, of the same model and pictures. The folder of the pictures may have
            moved since.
        store: "faiss" or "lancedb".
        kind: "flat", "hnsw" or "ivfpq"; see stores.py. It may change from build to build, as may the store.
        verify: hash every file of an index that is there already, and the model's weights. Otherwise files whose size and
            date are still those of the last build are trusted (integrity.py).
        reading: the options of `mpclip.data.reading.ReadingOptions`. For a plain folder `max_megapixels` and `follow_links`
            apply.

    Returns:
        numbers: `pictures` in the index, the `names` that they have, and how many pictures were `embedded` now; `removed` since
        the last build; `unreadable`: what is wrong with each that was left out, by name.

    Raises:
        ValueError: the index is of another model or other pictures; no picture; too few for "ivfpq".
        ImportError: the store's library is not installed.
        TimeoutError: another build is writing the index.
    """
    refuse_unknown(store, kind)
    index = Path(index)
    how = ReadingOptions(**reading)
    pictures = open_pictures(data, split, **reading)
    encoder = QueryEncoder(model, dtype, device)
    index.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(index / LOCK, timeout=1):  # a query holds it for a moment, to note dates of files
            settings, integrity = begin(index, encoder, data, split, verify)
            if "shards" in settings:
                raise ValueError(f"{index} is an index of files of embeddings, not of pictures. {ELSEWHERE}")
            drop_damaged(settings, integrity)
            known = Known(index, settings)
            keys = _recognise(known, pictures, settings, _place(data), index)
            todo = [name for name in pictures.stamps if keys.get(name) not in known.ids]
            writer = ChunkWriter(encoder, integrity, batch_size)
            read, unreadable = embed_pictures(pictures, todo, set(known.ids), writer, how.max_megapixels)
            unreadable = dict(sorted((pictures.refused | unreadable).items()))
            if unreadable:
                count = len(todo) + len(pictures.refused)
                warnings.warn(f"{len(unreadable)} of {count} pictures left out: {_named(unreadable)}", stacklevel=2)
            chunks = Chunks(index / "chunks")
            places = _places(pictures, keys | read, known.ids | chunks.keys())
            if not places:
                raise ValueError(f"{data}: none of its {len(todo)} pictures could be read: {_named(unreadable)}")
            live = np.unique([place.id for place in places])  # (pictures,) int64, sorted
            finish(settings, integrity, chunks, live, places_to_arrow(places), store, kind)
    except filelock.Timeout:
        raise TimeoutError(f"another build is writing {index}: wait until it is done") from None
    gone = {i for name, i in known.names.items() if name not in pictures.stamps} - set(live.tolist())
    return {
        "pictures": len(live),
        "names": len(places),
        "embedded": len(set(read.values()) - known.ids.keys()),
        "removed": len(gone),
        "unreadable": unreadable,
    }


def refuse_unknown(store: str, kind: str) -> None:
    """Refuse a store or a kind that there is not, or whose library is not installed: rather than after hours of embedding."""
    if store not in STORES or kind not in KINDS:
        raise ValueError(f"store={store!r}, kind={kind!r}: expected one of {list(STORES)} and one of {list(KINDS)}")
    library(store)


def precision_of_build(asked: str, index: str | Path, device: str | None = None) -> str:
    """The dtype to build an index in.

    Args:
        asked: "auto" for that of the index if it is there already, otherwise the fastest; or the name of a dtype.
        index: the folder of the index.
        device: the torch device that will compute. Default: the best one.
    """
    if asked == "auto" and Path(index, "index.json").exists():
        return read_manifest(Path(index))["dtype"]
    return choose_precision(asked, device)


def _recognise(known: Known, pictures, settings: dict, data: str, index: Path) -> dict[str, str]:
    """Name -> key of the pictures whose content is known. `settings` get the place of the data, which may have moved.

    Raises:
        ValueError: the data lie elsewhere than those of the index, and share no picture with them.
    """
    before, settings["data"] = settings["data"], data
    keys = known.recognise(pictures, read_all=before != data)
    if before != data and known.ids and known.ids.keys().isdisjoint(keys.values()):
        raise ValueError(f"{index} is an index of data {before!r}, and {data!r} has none of its pictures. {ELSEWHERE}")
    return keys


def _place(data: str) -> str:
    """A folder's or file's full path; a Hub id as it is."""
    return os.path.abspath(data) if os.path.exists(data) else data


def _places(pictures, keys: dict[str, str], ids: dict[str, int]) -> list[Place]:
    """The places of all pictures that are embedded, in the order of their source."""
    return [
        Place(ids[keys[name]], name, pictures.caption(name), keys[name], stamp)
        for name, stamp in pictures.stamps.items()
        if keys.get(name) in ids
    ]


def begin(index: Path, encoder: QueryEncoder, data: str, split: str | None, verify: bool) -> tuple[dict, Integrity]:
    """The settings of an index, new or there already; it must be of this model, and its data of this split."""
    exists, chunks = (index / "index.json").exists(), index / "chunks"
    for unfinished in index.glob("**/.*.part"):
        unfinished.unlink()  # of a build that was killed
    settings = read_manifest(index) if exists else {}
    integrity = Integrity(index, settings, verify)
    wanted = {
        "model": encoder.name,
        "fingerprint": integrity.fingerprint(encoder),
        "dtype": encoder.dtype,
        "aspects": encoder.aspects,
        "data": _place(data),
        "split": split,
    }
    if not exists:
        if any(path.name != LOCK for path in index.iterdir()):
            raise ValueError(f"{index} holds something else than an index: give a new or empty folder")
        settings = wanted | {"vectors": None, "checksums": {}, "places": None}
        write_manifest(index, settings)
    else:
        differs = [key for key in wanted if settings[key] != wanted[key]]
        # A copy of the same checkpoint elsewhere is the same model, and of the same pictures (see `_recognise`) the same data.
        # An index of the first format does not know its pictures by content.
        if set(differs) - ({"model", "data"} if "places" in settings else {"model"}):
            told = "; ".join(f"{key} {settings[key]!r}, not {wanted[key]!r}" for key in differs)
            moved = "data" in differs and "places" not in settings
            hint = ". Build once with the data where they were: from then on they may move" if moved else ""
            raise ValueError(f"{index} is an index of {told}. {ELSEWHERE}{hint}")
        settings["model"] = wanted["model"]
    chunks.mkdir(exist_ok=True)
    return settings, integrity


def drop_damaged(settings: dict, integrity: Integrity) -> None:
    """Removes what is not as it was written; a damaged store is forgotten, as if the last build had not finished."""
    index = integrity.index
    for path in integrity.damaged({path: checksum(path) for path in chunk_files(index / "chunks").values()}):
        warnings.warn(f"{path} is damaged; the pictures in it are embedded again", stacklevel=3)
        path.unlink()
    if settings.get("places"):
        places = index / settings["places"]
        if integrity.damaged({places: checksum(places)}):
            warnings.warn(f"{places} is missing or damaged; pictures that were moved are read again", stacklevel=3)
            settings["places"] = None
    if settings["vectors"]:
        store = {index / settings["vectors"] / name: digest for name, digest in settings["checksums"].items()}
        if damaged := integrity.damaged(store):
            warnings.warn(f"{damaged[0]} is missing or damaged; the store is made anew", stacklevel=3)
            settings["vectors"] = None


def finish(
    settings: dict,
    integrity: Integrity,
    chunks: Chunks,
    live: np.ndarray,
    places: pa.RecordBatch,
    store: str,
    kind: str,
    processes: int = 1,
) -> None:
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
        STORES[store].build(aside, len(live), width, kind, Live(chunks, live), processes)
        np.save(aside / "ids.npy", live)
        settings["checksums"] = checksums(aside)
        shutil.rmtree(vectors, ignore_errors=True)  # damaged, or of a build that was killed before it made it known
        aside.rename(vectors)
        integrity.accept(vectors / name for name in settings["checksums"])
    places_file = write_places(index, places)
    integrity.accept([places_file])
    used = [chunks.files[number] for number in np.unique(live >> ROW_BITS).tolist()]
    used += [places_file, *(vectors / name for name in settings["checksums"])]
    state = {
        "store": store,
        "kind": kind,
        "pictures": len(live),
        "vectors": vectors.name,
        "places": places_file.relative_to(index).as_posix(),
        "stamps": integrity.stamps_of(used),
        "model_stamps": integrity.model_stamps,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
    }
    write_manifest(index, settings | state)
    for old in index.glob("store-*"):
        if old != vectors:
            shutil.rmtree(old)
    for old in places_file.parent.iterdir():
        if old != places_file:
            old.unlink()
    chunks.drop_all_but(live)


def _named(reasons: dict[str, str]) -> str:
    shown = [f"{key!r} ({reason})" for key, reason in list(reasons.items())[:NAMES_SHOWN]]
    return ", ".join(shown) + (f" and {len(reasons) - len(shown)} more" if len(reasons) > len(shown) else "")
