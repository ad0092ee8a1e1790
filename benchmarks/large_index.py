"""Many vectors in each kind of index: recall against exact search, query time, bytes, and the time of building.

    python -m benchmarks.large_index --model runs/demo/multi_prompt --data runs/demo/scenes --json docs/cost/large_index.json
    python -m benchmarks.cost_page

The vectors are made of real ones: each is a picture's embedding, mixed with that of another picture and with noise. Queries are
embeddings of captions, and pictures that were made in the same way and are not in the index.

Recall@10 is the part of the ten pictures of highest inner product that the index finds: by itself, and where its best 100 are
scored exactly, as `mpclip search` does. Query times are ratios to exact search, query by query, in turns and in one process, so
that other load on the machine counts little. Building is in processor seconds.

Everything is kept in --work as it is done. After a kill, the same command goes on.
"""

import argparse
import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.record import command_parser, provenance
from mpclip.argument_types import count
from mpclip.command import start
from mpclip.files import read_json, write_json

CELLS = (("faiss", "flat"), ("faiss", "ivfpq"), ("lancedb", "ivfpq"), ("faiss", "hnsw"), ("lancedb", "hnsw"))
TOP, CANDIDATES = 10, 100
MIXED = 0.5  # the largest part of the other picture; a picture's own part is at least as large
NOISE = 0.3  # the norm of the noise
BLOCK = 20_000  # vectors at a time


def made_of(real: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Vectors like the real ones.

    Args:
        real: (n, D) normalised embeddings.
        number: how many to make.
        seed: of the random numbers.

    Returns:
        (number, D) float32, normalised.
    """
    random = np.random.default_rng(seed)
    first, second = random.integers(0, len(real), (2, number))
    part = random.uniform(0, MIXED, (number, 1)).astype(np.float32)
    noise = random.standard_normal((number, real.shape[1]), dtype=np.float32) * np.float32(NOISE / real.shape[1] ** 0.5)
    made = (1 - part) * real[first] + part * real[second] + noise
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def real_embeddings(options: argparse.Namespace, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of some pictures (n, D) and of other pictures' captions (q, D) of a data set, kept in `work`."""
    file = work / "real.npz"
    if not file.exists():
        from mpclip.data.image_text import load_image_text
        from mpclip.encoding import encode_images, encode_texts, load_encoder

        encoder = load_encoder(options.model)
        rows = load_image_text(options.data, options.split, limit=options.pictures)
        pictures = encode_images(encoder, rows, cache=work / "embeddings").numpy()
        captions = load_image_text(options.data, options.caption_split, limit=options.queries)["captions"][:]
        texts = encode_texts(encoder, [caption[0] for caption in captions], cache=work / "embeddings").numpy()
        np.savez(work / "writing.npz", pictures=pictures, texts=texts)
        (work / "writing.npz").rename(file)
    kept = np.load(file)
    return kept["pictures"], kept["texts"]


def write_vectors(real: np.ndarray, number: int, file: Path) -> np.ndarray:
    """(number, D) float16 in a file that is mapped into memory; block by block of another seed each."""
    if not file.exists():
        aside = file.with_name("writing.npy")
        vectors = np.lib.format.open_memmap(aside, "w+", np.float16, (number, real.shape[1]))
        for begin in range(0, number, BLOCK):
            size = min(BLOCK, number - begin)
            vectors[begin : begin + size] = made_of(real, size, begin + 1)
        vectors.flush()
        aside.rename(file)
    return np.load(file, mmap_mode="r")


def blocks(vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, float32 vectors), some at a time, as stores take them."""
    for begin in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[begin : begin + BLOCK], dtype=np.float32)
        yield np.arange(begin, begin + len(block), dtype=np.int64), block


def exact(vectors: np.ndarray, queries: np.ndarray, top: int) -> np.ndarray:
    """(Q, top) ids of highest inner product, by plain products."""
    ids, scores = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    for numbers, block in blocks(vectors):
        found = queries @ block.T  # (Q, n)
        best = np.argpartition(-found, min(top, len(numbers)) - 1, axis=1)[:, :top]
        ids = np.concatenate([ids, numbers[best]], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(found, best, 1)], axis=1)
        keep = np.argsort(-scores, axis=1)[:, :top]
        ids, scores = np.take_along_axis(ids, keep, 1), np.take_along_axis(scores, keep, 1)
    return ids


def rescored(vectors: np.ndarray, queries: np.ndarray, candidates: np.ndarray, top: int) -> np.ndarray:
    """(Q, top): the best of each query's candidates by their exact scores."""
    found = np.full((len(queries), top), -1, np.int64)
    for i, (query, ids) in enumerate(zip(queries, candidates, strict=True)):
        ids = np.sort(ids[ids >= 0])
        scores = np.asarray(vectors[ids], dtype=np.float32) @ query
        best = ids[np.argsort(-scores)[:top]]
        found[i, : len(best)] = best
    return found


def recall(found: np.ndarray, right: np.ndarray) -> float:
    """The part of the right ids that was found, (Q, TOP) each."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, right, strict=True)]))


def measure(
    cell: tuple[str, str], vectors: np.ndarray, queries: dict[str, np.ndarray], right: dict[str, np.ndarray], work: Path
) -> dict:
    """Build one store, kept in `work`, and search in it beside exact search."""
    from benchmarks.timing import Clock
    from mpclip.search.stores import STORES

    store, kind = cell
    folder = work / f"{store}-{kind}"
    if not (folder / "built.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        before, started = _processor_seconds(), time.monotonic()
        STORES[store].build(folder, len(vectors), vectors.shape[1], kind, lambda: blocks(vectors))
        built = {"build_cpu_seconds": _processor_seconds() - before, "build_seconds": time.monotonic() - started}
        built["bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        write_json(folder / "built.json", built)
    result = {"store": store, "kind": kind, **read_json(folder / "built.json")}
    opened = STORES[store](folder)
    for name, some in queries.items():
        found = opened.search(some, CANDIDATES)
        result[f"recall_{name}"] = recall(opened.search(some, TOP), right[name])
        result[f"recall_{name}_rescored"] = recall(rescored(vectors, some, found, TOP), right[name])
    if cell != CELLS[0]:
        flat = STORES["faiss"](work / "faiss-flat")
        few = next(iter(queries.values()))[:20]
        candidates = TOP if kind == "flat" else CANDIDATES

        def search(index, top: int) -> Callable:
            return lambda: [index.search(query[None], top) for query in few]

        timed = Clock("cpu", 20).ratio(search(flat, TOP), search(opened, candidates))
        result |= {"times_faster": timed["ratio"], "rounds": timed["rounds"]}
    return result


def table(result: dict) -> str:
    """The result as Markdown."""
    from eval.tables import markdown_table

    width, number = result["width"], result["vectors"]
    head = ["index", "recall@10, captions", "exact scores of 100", "recall@10, pictures", "exact scores of 100"]
    head += ["times faster than exact", "bytes per vector", "processor minutes to build"]
    rows = []
    for cell in result["cells"]:
        recalls = [f"{100 * cell[f'recall_{kind}{end}']:.1f}" for kind in ("captions", "pictures") for end in ("", "_rescored")]
        faster = f"{cell['times_faster']:.1f}" if "times_faster" in cell else "1"
        size, minutes = f"{cell['bytes'] / number:,.0f}", f"{cell['build_cpu_seconds'] / 60:.1f}"
        rows.append([f"{cell['store']} {cell['kind']}", *recalls, faster, size, minutes])
    made = (
        f"{number:,} vectors of {width} dimensions, made of the embeddings of {result['pictures']:,} pictures; "
        f"{result['queries']:,} queries of each kind. Recall in percent."
    )
    halves, floats = (result["bytes_in_files"][stored] / 1e3 for stored in ("float16", "float32"))
    files = f"The files of embeddings take {halves:.2f} GB per million pictures in float16 and {floats:.2f} GB in float32."
    return f"{markdown_table(head, rows)}\n\n{made}\n\n{files}"


def bytes_in_files(vectors: np.ndarray, work: Path) -> dict[str, float]:
    """Bytes per picture of a file of embeddings, by the dtype in it, with keys and addresses as img2dataset has them."""
    from mpclip.encoding.shard_files import STORED, columns_of, write_embeddings

    found = {}
    random = np.random.default_rng(0)
    some = np.asarray(vectors[:10_000], dtype=np.float32)
    keys = [f"{i:09d}" for i in range(len(some))]
    rows = {"key": keys, "place": [f"{key}.jpg" for key in keys]}
    rows["url"] = [f"https://images.example.org/{random.bytes(16).hex()}.jpg" for _ in keys]
    rows["sha256"] = [random.bytes(32) for _ in keys]
    for stored in STORED:
        write_embeddings(work / "bytes.parquet", columns_of(rows, stored, some), {}, [])
        found[stored] = (work / "bytes.parquet").stat().st_size / len(some)
        (work / "bytes.parquet").unlink()
    return found


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = command_parser("benchmarks.large_index", __doc__)
    parser.add_argument("--model", default="runs/demo/multi_prompt", help="checkpoint (default: %(default)s)")
    parser.add_argument("--data", default="runs/demo/scenes", help="its pictures and captions (default: %(default)s)")
    parser.add_argument("--split", default="train", help="of the pictures (default: %(default)s)")
    parser.add_argument("--caption_split", default="test", help="of the captions (default: %(default)s)")
    parser.add_argument("--pictures", type=count, default=1000, help="whose embeddings are used (default: %(default)s)")
    parser.add_argument("--queries", type=count, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--vectors", type=count, default=1_000_000, help="in the index (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/large_index"), help="folder of what is kept")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    given = {name: value for name, value in vars(options).items() if name not in ("work", "json")}
    known = read_json(options.work / "options.json")
    if known and known != given:
        raise SystemExit(f"{options.work} has the work of other options, {known}: give another --work, or remove it")
    write_json(options.work / "options.json", given)

    real, captions = real_embeddings(options, options.work)
    vectors = write_vectors(real, options.vectors, options.work / "vectors.npy")
    queries = {"captions": captions, "pictures": made_of(real, options.queries, 0)}
    right = {}
    for name, some in queries.items():
        file = options.work / f"exact-{name}.npy"
        if not file.exists():
            np.save(file, exact(vectors, some, TOP))
        right[name] = np.load(file)
    result = {"vectors": len(vectors), "width": vectors.shape[1], "pictures": len(real), "queries": len(captions)}
    result["bytes_in_files"] = bytes_in_files(vectors, options.work)
    result |= {"mixed": MIXED, "noise": NOISE, "seeds": "0 for queries, 1 + number of the first vector for blocks", "cells": []}
    for cell in CELLS:
        file = options.work / f"{'-'.join(cell)}.json"
        if not file.exists():
            write_json(file, measure(cell, vectors, queries, right, options.work))
        result["cells"].append(read_json(file))
        print(json.dumps(result["cells"][-1]), flush=True)
        if options.json:
            write_json(options.json, result | provenance("benchmarks.large_index", _shown(options)))


def _shown(options: argparse.Namespace) -> list[str]:
    """The words of the command line without the folders of this machine."""
    return ["--vectors", str(options.vectors), "--json", "docs/cost/large_index.json"]


if __name__ == "__main__":
    start(main)
