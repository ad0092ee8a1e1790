"""An index of files of embeddings: it finds what an index of the pictures finds; and the benchmark of large ones."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from search_fixtures import PICTURES, K, add_picture

import mpclip.search.from_embeddings
import mpclip.search.stores
from benchmarks import large_index
from mpclip.encoding import load_encoder
from mpclip.encoding.shard_sources import open_shards
from mpclip.encoding.shards import EmbedOptions, ShardWorker
from mpclip.search.__main__ import main
from mpclip.search.build import build_index
from mpclip.search.chunks import Live
from mpclip.search.from_embeddings import build_from_embeddings
from mpclip.search.page import write_page
from mpclip.search.search import PictureIndex, query_index

pytest_plugins = "search_fixtures"
pytest.importorskip("faiss")


@pytest.fixture
def worker(model, tmp_path):
    return ShardWorker(load_encoder(model, device="cpu"), tmp_path / "embeddings", EmbedOptions("float32"), batch_size=4)


@pytest.fixture
def threads(monkeypatch):
    """Threads in place of processes, each of which would import torch; what is sent to them is pickled all the same."""

    class Pool(ThreadPoolExecutor):
        def __init__(self, count, context):
            super().__init__(count)

        def map(self, run, jobs):
            return super().map(*pickle.loads(pickle.dumps((run, list(jobs)))))

    for module in (mpclip.search.stores, mpclip.search.from_embeddings):
        monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)


def test_it_finds_what_an_index_of_the_pictures_finds(worker, encoder, model, photos, tmp_path, capsys, threads):
    worker.run(open_shards(photos, shard_size=4))
    command = ["build", "--model", model, "--embeddings", str(worker.out), "--index", str(tmp_path / "index")]
    main([*command, "--processes", "2", "--device", "cpu"])
    assert f"{PICTURES} pictures of 3 files, 3 read now" in capsys.readouterr().out
    build_index(model, str(photos), tmp_path / "plain", device="cpu", batch_size=4)
    found, plain = (PictureIndex(tmp_path / name, encoder, verify=True) for name in ("index", "plain"))
    vectors = Live(found._chunks, np.load(next((tmp_path / "index").glob("store-*/ids.npy"))))
    parts = [pickle.loads(pickle.dumps(vectors.part(i, 2))) for i in range(2)]  # as it goes to other processes
    for i in range(2):  # ids, and embeddings
        whole, halves = ([cells[i] for run in runs for cells in run()] for runs in ([vectors], parts))
        assert np.array_equal(np.concatenate(whole), np.concatenate(halves))
    for one, other in zip(
        query_index(found, ["a red car", "a street"], top=5), query_index(plain, ["a red car", "a street"], top=5), strict=True
    ):
        assert [hit.picture.partition("/")[2] for hit in one.hits] == [hit.picture for hit in other.hits]
        np.testing.assert_allclose([hit.score for hit in one.hits], [hit.score for hit in other.hits], atol=1e-6)
        assert len(one.hits[0].aspects) == K
        write_page([one], tmp_path / "page.html")
        assert "<img" not in (tmp_path / "page.html").read_text()  # there are no thumbnails


def test_it_is_brought_up_to_date(worker, encoder, model, photos, tmp_path):
    build = lambda **more: build_from_embeddings(model, worker.out, tmp_path / "index", device="cpu", **more)  # noqa: E731
    worker.run(open_shards(photos, shard_size=6))
    assert build() == {"pictures": PICTURES, "names": PICTURES, "files": 2, "read": 2}
    assert build()["read"] == 0
    more = tmp_path / "more"
    for i in (0, 2):  # one that is there and one that is new
        (more / str(i)).mkdir(parents=True)
    shutil.copy(photos / "00.png", more / "0" / "copy.png")
    add_picture(more / "2" / "new.png", 99)
    other = ShardWorker(worker.encoder, tmp_path / "of_more", worker.options)
    other.run(open_shards(more))
    shutil.copy(tmp_path / "of_more" / "pictures-000000.parquet", worker.out / "more.parquet")
    assert build() == {"pictures": PICTURES + 1, "names": PICTURES + 2, "files": 3, "read": 1}
    hits = PictureIndex(tmp_path / "index", encoder).search(encoder.embed_texts(["a red car"]), PICTURES + 1)[0]
    assert [hit.also for hit in hits if hit.picture.endswith("/00.png")] == [["more/0/copy.png"]]
    (worker.out / "more.parquet").unlink()
    assert build()["pictures"] == PICTURES


def test_what_does_not_belong_is_refused(worker, model, photos, tmp_path):
    with pytest.raises(ValueError, match="no file of embeddings"):
        build_from_embeddings(model, tmp_path, tmp_path / "index")
    worker.run(open_shards(photos, shard_size=6))
    build_index(model, str(photos), tmp_path / "of_pictures", device="cpu")
    with pytest.raises(ValueError, match="is an index of pictures, not of files of embeddings"):
        build_from_embeddings(model, worker.out, tmp_path / "of_pictures", device="cpu")
    build_from_embeddings(model, worker.out, tmp_path / "index", device="cpu")
    with pytest.raises(ValueError, match="is an index of files of embeddings, not of pictures"):
        build_index(model, str(photos), tmp_path / "index", device="cpu")
    half = ShardWorker(worker.encoder, tmp_path / "half", EmbedOptions("float16"))
    half.run(open_shards(photos, shard_size=6)[:1])
    shutil.copy(tmp_path / "half" / "pictures-000000.parquet", worker.out / "z.parquet")
    with pytest.raises(ValueError, match=r"z\.parquet and pictures-000000\.parquet differ: stored 'float16' and 'float32'"):
        build_from_embeddings(model, worker.out, tmp_path / "index", device="cpu")
    (worker.out / "z.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"z\.parquet is damaged"):
        build_from_embeddings(model, worker.out, tmp_path / "index", device="cpu")


class Vectors:
    """Made-up vectors, in parts."""

    def __init__(self, vectors, ids=None):
        self.vectors, self.ids = vectors, np.arange(len(vectors)) if ids is None else ids

    def __call__(self):
        yield self.ids, self.vectors

    def part(self, i, of):
        return Vectors(np.array_split(self.vectors, of)[i], np.array_split(self.ids, of)[i])


def test_codes_made_in_several_processes_are_those_of_one(tmp_path, threads):
    made = large_index.made_of(np.eye(8, dtype=np.float32), mpclip.search.stores.MIN_IVFPQ, 0)
    found = []
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        mpclip.search.stores.FaissStore.build(folder, len(made), 8, "ivfpq", Vectors(made), processes)
        assert [path.name for path in folder.iterdir()] == ["vectors.faiss"]
        found.append(mpclip.search.stores.FaissStore(folder).search(made[:50], 5))
    assert np.array_equal(*found)


def test_recall_is_counted_against_plain_products(tmp_path, monkeypatch):
    monkeypatch.setattr(large_index, "BLOCK", 300)
    real = np.eye(12, dtype=np.float32)
    vectors = large_index.write_vectors(real, 1000, tmp_path / "vectors.npy")
    assert vectors.shape == (1000, 12) and vectors.dtype == np.float16
    queries = large_index.made_of(real, 7, 0)
    right = large_index.exact(vectors, queries, 10)
    scores = queries @ vectors.astype(np.float32).T
    assert np.array_equal(np.sort(right), np.sort(np.argsort(-scores)[:, :10]))
    candidates = np.argsort(-scores)[:, :100]
    candidates[0, 3] = -1  # not found by a store
    again = large_index.rescored(vectors, queries, candidates, 10)
    assert large_index.recall(again, right) == pytest.approx(1 - 1 / 70)
    monkeypatch.setattr(large_index, "CELLS", (("faiss", "flat"),))
    cell = large_index.measure(("faiss", "flat"), vectors, {"captions": queries}, {"captions": right}, tmp_path)
    assert large_index.bytes_in_files(vectors, tmp_path)["float32"] > 12 * 4 + 32
    assert cell["recall_captions"] == 1 and cell["bytes"] > 1000 * 12 * 4
