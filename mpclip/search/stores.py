"""Vector stores: embeddings and ids in the form that is searched by inner product.

A store is a class with `build(folder, count, width, kind, vectors, processes)` and, once built, `search(queries, top)`.

    flat    every vector, exactly; right up to about a million pictures
    hnsw    a graph of neighbours beside the vectors: far faster, with some misses and 256 bytes more per picture
    ivfpq   lists of vectors, the nearest eighth of which is searched; a byte for four dimensions: a sixteenth of the memory
"""

import importlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from math import isqrt
from pathlib import Path

import numpy as np
import pyarrow as pa

KINDS = ("flat", "hnsw", "ivfpq")
MIN_IVFPQ = 39 * 256  # vectors; both libraries ask for 39 to learn each of the 256 values of a byte
NEIGHBOURS, CONSTRUCTION, SEARCH = 32, 200, 128  # of HNSW: links of a vector, candidates while building and while searching

Vectors = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]  # each call goes over (ids (n,), embeddings (n, D)) afresh


class FaissStore:
    """One FAISS file."""

    def __init__(self, folder: Path):
        faiss = library("faiss")

        self._index = faiss.read_index(str(folder / "vectors.faiss"))

    @staticmethod
    def build(folder: Path, count: int, width: int, kind: str, vectors: Vectors, processes: int = 1) -> None:
        """With several processes, each makes the codes of a part of the vectors for "ivfpq"; `vectors` is then a `Live`."""
        faiss = library("faiss")

        if kind == "flat":
            index = faiss.IndexIDMap2(faiss.IndexFlatIP(width))
        elif kind == "hnsw":
            graph = faiss.IndexHNSWFlat(width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction, graph.hnsw.efSearch = CONSTRUCTION, SEARCH
            index = faiss.IndexIDMap2(graph)
        else:
            lists = _lists(count)
            index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, _code_bytes(width), 8, faiss.METRIC_INNER_PRODUCT)
            index.nprobe = max(1, lists // 8)
            index.train(_sample(vectors, count, 64 * max(lists, 256)))
            if processes > 1:
                _add_in_processes(index, folder, vectors, processes)
                vectors = lambda: iter(())  # noqa: E731 (all are in the index)
        for ids, embeddings in vectors():
            index.add_with_ids(np.ascontiguousarray(embeddings), ids)
        faiss.write_index(index, str(folder / "vectors.faiss"))

    def search(self, queries: np.ndarray, top: int) -> np.ndarray:
        """(Q, top) int64 ids, best first; -1 where a search in lists or a graph found fewer."""
        return self._index.search(queries, top)[1]


class LanceStore:
    """A LanceDB table `pictures` with the columns id and vector."""

    def __init__(self, folder: Path):
        lancedb = library("lancedb")

        self._table = lancedb.connect(folder).open_table("pictures")
        self._graph = any(index.index_type == "IvfHnswSq" for index in self._table.list_indices())
        self._lists = _lists(self._table.count_rows())

    @staticmethod
    def build(folder: Path, count: int, width: int, kind: str, vectors: Vectors, processes: int = 1) -> None:
        """LanceDB uses all cores by itself: `processes` says nothing here."""
        lancedb, indexes = library("lancedb"), importlib.import_module("lancedb.index")

        schema = pa.schema({"id": pa.int64(), "vector": pa.list_(pa.float32(), width)})
        batches = (
            pa.record_batch([ids, pa.FixedSizeListArray.from_arrays(embeddings.reshape(-1), width)], schema=schema)
            for ids, embeddings in vectors()
        )
        table = lancedb.connect(folder).create_table("pictures", pa.RecordBatchReader.from_batches(schema, batches))
        if kind == "hnsw":  # one graph, as FAISS builds it
            config = indexes.HnswSq(distance_type="dot", num_partitions=1, m=NEIGHBOURS, ef_construction=CONSTRUCTION)
            table.create_index("vector", config=config)
        elif kind == "ivfpq":
            config = indexes.IvfPq(distance_type="dot", num_partitions=_lists(count), num_sub_vectors=_code_bytes(width))
            table.create_index("vector", config=config)

    def search(self, queries: np.ndarray, top: int) -> np.ndarray:
        """As of `FaissStore`."""
        found = np.full((len(queries), top), -1, dtype=np.int64)
        for row, query in zip(found, queries, strict=True):
            search = self._table.search(query, vector_column_name="vector").distance_type("dot").limit(top)
            search = search.nprobes(1).ef(max(SEARCH, top)) if self._graph else search.nprobes(max(1, self._lists // 8))
            ids = search.select(["id"]).to_arrow()["id"].to_numpy()
            row[: len(ids)] = ids
        return found


STORES = {"faiss": FaissStore, "lancedb": LanceStore}


def library(store: str):
    """The module behind a store. ImportError says how to get it."""
    try:
        return importlib.import_module(store)
    except ImportError as error:
        raise ImportError(f"the store {store!r} is not installed: pip install 'mpclip[search]'") from error


def _add_in_processes(index, folder: Path, vectors, processes: int) -> None:
    """Adds vectors to a trained index of lists: each process adds its part to a copy, and the copies are merged."""
    faiss = library("faiss")

    trained = folder / "trained.faiss"
    faiss.write_index(index, str(trained))
    jobs = [(trained, folder / f"part-{i}.faiss", vectors.part(i, processes), processes) for i in range(processes)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(_add_part, jobs):
            index.merge_from(faiss.read_index(str(part)), 0)
            part.unlink()
    trained.unlink()


def _add_part(job: tuple) -> Path:
    faiss = library("faiss")

    trained, part, vectors, processes = job
    faiss.omp_set_num_threads(max(1, faiss.omp_get_max_threads() // processes))
    index = faiss.read_index(str(trained))
    for ids, embeddings in vectors():
        index.add_with_ids(np.ascontiguousarray(embeddings), ids)
    faiss.write_index(index, str(part))
    return part


def _lists(count: int) -> int:
    return 4 * isqrt(count)


def _code_bytes(width: int) -> int:
    """Of a vector in ivfpq: one per four dimensions, or fewer where the width does not divide so."""
    return max(m for m in range(1, max(width // 4, 1) + 1) if width % m == 0)


def _sample(vectors: Vectors, count: int, size: int) -> np.ndarray:
    """(min(size, count), D): vectors drawn at random, the same at every build."""
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:size])
    parts, start = [], 0
    for ids, embeddings in vectors():
        span = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, start + len(ids))]
        parts.append(embeddings[span - start])
        start += len(ids)
    return np.concatenate(parts)
