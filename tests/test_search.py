"""Searches: scores, stores and queries equal the definition written out."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from search_fixtures import PICTURES, WEIGHTS, K
from torch.nn.functional import normalize

import mpclip.files
import mpclip.search.build
import mpclip.search.integrity
import mpclip.search.stores
from mpclip.search.build import build_index
from mpclip.search.pictures import open_pictures
from mpclip.search.queries import QueryEncoder
from mpclip.search.search import PictureIndex, query_index
from mpclip.search.stores import STORES

pytest_plugins = ["search_fixtures"]


def picture_embeddings(model: str, photos, names: list[str]) -> torch.Tensor:
    """(n, K, D/K) without any of the code under test."""
    encoder = QueryEncoder(model).encoder
    opened = [PIL.Image.open(photos / name).convert("RGB") for name in names]
    pixels = encoder.processor(images=opened, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return normalize(encoder.model.get_image_features(pixels).pooler_output, dim=1).unflatten(1, (K, -1))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_weights_on_the_query_equal_weights_on_both_sides(model, encoder, photos, tmp_path, store, kind):
    build_index(model, str(photos), tmp_path / "index", store=store, kind=kind)
    index = PictureIndex(tmp_path / "index", encoder)
    answers = query_index(index, ["a street", "the red mat"], weights=WEIGHTS, top=PICTURES)

    names = sorted(open_pictures(str(photos)).stamps)
    v = picture_embeddings(model, photos, names)  # (I, K, d)
    root = torch.tensor(WEIGHTS).sqrt()[:, None]  # (K, 1) on either side
    plain_orders = []
    for answer in answers:
        t = encoder.embed_texts([answer.text]).unflatten(1, (K, -1))[0]  # (K, d)
        aspects = ((root * v) * (root * t)).sum(dim=2)  # (I, K)
        scores = aspects.sum(dim=1)
        order = scores.argsort(descending=True).tolist()
        assert [hit.picture for hit in answer.hits] == [names[i] for i in order]
        torch.testing.assert_close(torch.tensor([hit.score for hit in answer.hits]), scores[order], atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor([hit.aspects for hit in answer.hits]), aspects[order], atol=1e-5, rtol=0)
        plain_orders.append((v * t).sum(dim=(1, 2)).argsort(descending=True).tolist() != order)
    assert any(plain_orders)  # the weights matter


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_stores_find_the_nearest(store, kind, tmp_path):
    """Clustered vectors, as embeddings are, in parts and under ids with gaps."""
    rng = np.random.default_rng(0)
    centres, count = rng.standard_normal((200, 16)), 10_000 if kind == "ivfpq" else 4_000  # ivfpq learns from that many
    vectors = centres[rng.integers(200, size=count)] + 0.4 * rng.standard_normal((count, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # (I, D)
    ids = np.sort(rng.choice(2**40, len(vectors), replace=False))
    queries = vectors[:: count // 40] + 0.1 * rng.standard_normal((40, 16)).astype(np.float32)  # (Q, D) not of norm 1

    def parts():
        return zip(np.array_split(ids, 7), np.array_split(vectors, 7), strict=True)

    STORES[store].build(tmp_path, len(vectors), 16, kind, parts)
    nearest = ids[np.argsort(-queries @ vectors.T, axis=1)[:, :10]]  # (Q, 10)
    # Of approximate stores a query takes ten times as many candidates; see MORE in mpclip/search/search.py.
    found = STORES[store](tmp_path).search(queries, 10 if kind == "flat" else 100)
    if kind == "flat":
        np.testing.assert_array_equal(found, nearest)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest.tolist(), found.tolist(), strict=True)])
    assert recall > 0.9


def test_kinds_hold_what_they_promise(tmp_path):
    vectors = normalize(torch.randn(10_000, 16, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    size = {}
    for kind in mpclip.search.stores.KINDS:
        (folder := tmp_path / kind).mkdir()
        count = 10_000 if kind == "ivfpq" else 2_000  # ivfpq learns from that many
        STORES["faiss"].build(folder, count, 16, kind, lambda count=count: [(np.arange(count), vectors[:count])])
        size[kind] = (folder / "vectors.faiss").stat().st_size / count  # bytes per picture
    assert 64 <= size["flat"] < 83 < size["hnsw"] < 448
    assert size["ivfpq"] < 4 + 8 + 8  # codes, ids, and the lists' centres


def test_exact_scores_decide_among_candidates(model, encoder, photos, tmp_path, monkeypatch):
    """A store that only comes near may give candidates in any order, and fewer than wanted."""
    build_index(model, str(photos), tmp_path / "index", kind="hnsw")
    index = PictureIndex(tmp_path / "index", encoder)
    queries = encoder.embed_queries(["a street"])
    exact = index.search(queries, 4)[0]
    search = index._store.search
    monkeypatch.setattr(
        index._store, "search", lambda q, top: np.pad(search(q, top)[:, ::-1], ((0, 0), (0, 3)), constant_values=-1)
    )
    assert index.search(queries, 4)[0] == exact
    assert [hit.score for hit in exact] == sorted((hit.score for hit in exact), reverse=True)


def test_exclusion_is_the_models_own(model, encoder, photos, tmp_path):
    """And it changes what is found: the text that is excluded scores lower on every side."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(model, trust_remote_code=True, device="cpu")
    expected = theirs.encode_query(["a street"], exclude=["a cat", "red"], aspect_weights=WEIGHTS, convert_to_tensor=True)
    ours = encoder.embed_queries(["a street"], exclude=["a cat", "red"], weights=WEIGHTS)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)

    build_index(model, str(photos), tmp_path / "index")
    index = PictureIndex(tmp_path / "index", encoder)
    orders = [
        [hit.picture for hit in query_index(index, ["a street"], exclude=exclude, top=PICTURES)[0].hits]
        for exclude in ([], ["a cat"])
    ]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_pictures_as_queries(model, encoder, photos, tmp_path):
    build_index(model, str(photos), tmp_path / "index")
    index = PictureIndex(tmp_path / "index", encoder)
    files = [photos / "00.png", photos / "a/b/01.jpg"]
    alone = query_index(index, pictures=files, top=2)
    assert [answer.hits[0].picture for answer in alone] == ["00.png", "a/b/01.jpg"]
    assert alone[0].hits[0].score == pytest.approx(1, abs=1e-5)
    assert all(PIL.Image.open(io.BytesIO(answer.thumbnails[0])).size for answer in alone)

    opened = [PIL.Image.open(file).convert("RGB") for file in files]
    text, pictures = encoder.embed_texts(["a street"]), encoder.embed_pictures(opened)
    mean = normalize((text[0] + pictures[0] + pictures[1]) / 3, dim=0)
    torch.testing.assert_close(encoder.embed_queries(["a street"], opened)[0], mean)
    together = query_index(index, ["a street", "a boat"], files, top=1)
    assert [answer.text for answer in together] == ["a street", "a boat"]
    assert together[0].pictures == [str(file) for file in files]


def test_queries_that_cannot_be(encoder):
    with pytest.raises(ValueError, match="no query"):
        encoder.embed_queries()
    with pytest.raises(ValueError, match=r"exclude \['cars', ' '\]: an empty text names nothing; leave it out"):
        encoder.embed_queries(["a street"], exclude=["cars", " "])
    for weights, message in (([1.0, 2.0], "expected one number for each of the 3"), ([1.0, float("nan"), 1.0], "finite")):
        with pytest.raises(ValueError, match=message):
            encoder.embed_queries(["a street"], weights=weights)
