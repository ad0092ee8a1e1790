"""Indexes of pictures: what a build keeps, what a query finds, and that both equal the definition written out."""

import base64
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from html.parser import HTMLParser

import datasets
import filelock
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from safetensors.torch import load_file, save
from torch.nn.functional import normalize

import mpclip.files
import mpclip.search.build
import mpclip.search.integrity
import mpclip.search.stores
from mpclip.search.__main__ import main
from mpclip.search.build import build_index
from mpclip.search.chunks import Chunks
from mpclip.search.page import write_page
from mpclip.search.pictures import open_pictures
from mpclip.search.queries import QueryEncoder
from mpclip.search.search import Answer, Hit, PictureIndex, query_index, read_settings
from mpclip.search.stores import STORES

K = 3
PICTURES = 11
WEIGHTS = [0.2, 1.0, 3.0]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny checkpoint whose embeddings of different pictures differ."""
    folder = tmp_path_factory.mktemp("index") / "model"
    tokenizer = make_tokenizer()
    make_model(num_prompts=K, tokenizer=tokenizer).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def encoder(model):
    return QueryEncoder(model)


def add_picture(path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).resize((60, 48), PIL.Image.Resampling.NEAREST).save(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i in range(PICTURES):
        add_picture(folder / ("a/b" if i % 2 else "") / f"{i:02}.{('png', 'jpg', 'webp', 'JPEG')[i % 4]}", i)
    return folder


@pytest.fixture
def embedded(monkeypatch):
    """How many pictures each call embedded."""
    calls = []
    original = QueryEncoder.embed_pictures

    def counted(self, pictures):
        calls.append(len(pictures))
        return original(self, pictures)

    monkeypatch.setattr(QueryEncoder, "embed_pictures", counted)
    return calls


def picture_embeddings(model: str, photos, names: list[str]) -> torch.Tensor:
    """(n, K, D/K) without any of the code under test."""
    encoder = QueryEncoder(model).encoder
    opened = [PIL.Image.open(photos / name).convert("RGB") for name in names]
    pixels = encoder.processor(images=opened, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return normalize(encoder.model.get_image_features(pixels).pooler_output, dim=1).unflatten(1, (K, -1))


@pytest.fixture(params=STORES)
def store(request):
    pytest.importorskip(request.param)
    return request.param


# Scores


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
    centres, count = rng.standard_normal((200, 32)), 10_000 if kind == "ivfpq" else 4_000  # ivfpq learns from that many
    vectors = centres[rng.integers(200, size=count)] + 0.4 * rng.standard_normal((count, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # (I, D)
    ids = np.sort(rng.choice(2**40, len(vectors), replace=False))
    queries = vectors[:: count // 40] + 0.1 * rng.standard_normal((40, 32)).astype(np.float32)  # (Q, D) not of norm 1

    def parts():
        return zip(np.array_split(ids, 7), np.array_split(vectors, 7), strict=True)

    STORES[store].build(tmp_path, len(vectors), 32, kind, parts)
    nearest = ids[np.argsort(-queries @ vectors.T, axis=1)[:, :10]]  # (Q, 10)
    # Of approximate stores a query takes ten times as many candidates; see MORE in mpclip/search/search.py.
    found = STORES[store](tmp_path).search(queries, 10 if kind == "flat" else 100)
    if kind == "flat":
        np.testing.assert_array_equal(found, nearest)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest.tolist(), found.tolist(), strict=True)])
    assert recall > 0.9


def test_kinds_hold_what_they_promise(tmp_path):
    vectors = normalize(torch.randn(10_000, 64, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    size = {}
    for kind in mpclip.search.stores.KINDS:
        (folder := tmp_path / kind).mkdir()
        count = 10_000 if kind == "ivfpq" else 2_000  # ivfpq learns from that many
        STORES["faiss"].build(folder, count, 64, kind, lambda count=count: [(np.arange(count), vectors[:count])])
        size[kind] = (folder / "vectors.faiss").stat().st_size / count  # bytes per picture
    assert 256 <= size["flat"] < 275 < size["hnsw"] < 640
    assert size["ivfpq"] < 16 + 8 + 30  # codes, ids, and the lists' centres


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


# Queries


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


# Builds


def test_a_killed_build_goes_on(model, encoder, photos, tmp_path, monkeypatch, embedded):
    monkeypatch.setattr(mpclip.search.build, "CHUNK", 4)
    counted = QueryEncoder.embed_pictures

    def killed(self, pictures):
        if len(embedded) == 5:
            raise KeyboardInterrupt
        return counted(self, pictures)

    monkeypatch.setattr(QueryEncoder, "embed_pictures", killed)
    with pytest.raises(KeyboardInterrupt):
        build_index(model, str(photos), tmp_path / "index", batch_size=2)
    assert embedded == [2] * 5  # two chunks of four are done, and half of the third is lost
    (tmp_path / "index/chunks/unfinished").write_bytes(b"half a chunk")
    with pytest.raises(ValueError, match="has not finished: run it again"):
        read_settings(tmp_path / "index")

    monkeypatch.setattr(QueryEncoder, "embed_pictures", counted)
    embedded.clear()
    built = build_index(model, str(photos), tmp_path / "index", batch_size=2)
    assert embedded == [2, 1] and built == {"pictures": PICTURES, "embedded": 3, "removed": 0, "unreadable": {}}
    build_index(model, str(photos), tmp_path / "at_once")
    answers = [query_index(PictureIndex(tmp_path / name, encoder), ["a street"], top=PICTURES) for name in ("index", "at_once")]
    assert [hit.picture for hit in answers[0][0].hits] == [hit.picture for hit in answers[1][0].hits]
    np.testing.assert_allclose(*([hit.score for hit in answer[0].hits] for answer in answers), atol=1e-5)


def test_a_store_that_was_not_finished_is_made_again(model, encoder, photos, tmp_path, monkeypatch, embedded):
    store = mpclip.search.stores.FaissStore

    def killed(folder, *rest):
        (folder / "vectors.faiss").write_bytes(b"half a store")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(store, "build", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(model, str(photos), tmp_path / "index")
    assert build_index(model, str(photos), tmp_path / "index")["embedded"] == 0
    assert embedded == [PICTURES]
    assert len(query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=99)[0].hits) == PICTURES


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_chunk_is_found_out(model, encoder, photos, tmp_path, monkeypatch, embedded, damage):
    monkeypatch.setattr(mpclip.search.build, "CHUNK", 4)
    build_index(model, str(photos), tmp_path / "index")
    whole = query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=PICTURES)[0].hits
    chunk = sorted((tmp_path / "index/chunks").iterdir())[1]
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes({"flip": content, "cut": content[:-9], "empty": b""}[damage])

    embedded.clear()
    with pytest.warns(UserWarning, match=r"000001-\w+\.arrow is damaged"):
        assert build_index(model, str(photos), tmp_path / "index")["embedded"] == 4
    assert embedded == [4]
    again = query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=PICTURES)[0].hits
    assert [hit.picture for hit in again] == [hit.picture for hit in whole]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_store_is_found_out_and_made_anew(model, encoder, photos, tmp_path, embedded, store, damage):
    build_index(model, str(photos), tmp_path / "index", store=store)
    whole = query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=PICTURES)[0].hits
    for file in sorted(path for path in (tmp_path / "index").glob("store-*/**/*") if path.is_file()):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.unlink() if damage == "gone" else file.write_bytes(content if damage == "flip" else content[:-9])
        with pytest.raises(ValueError, match=rf"{file.name} is missing or damaged: build the index again"):
            PictureIndex(tmp_path / "index", encoder)
        embedded.clear()
        with pytest.warns(UserWarning, match=rf"{file.name} is missing or damaged; the store is made anew"):
            built = build_index(model, str(photos), tmp_path / "index", store=store)
        assert built == {"pictures": PICTURES, "embedded": 0, "removed": 0, "unreadable": {}} and embedded == []
        again = query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=PICTURES)[0].hits
        assert again == whole
        if store == "lancedb":  # the new store's files have other names
            break


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_query_that_needs_a_damaged_chunk_names_it(model, encoder, photos, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(mpclip.search.build, "CHUNK", 4)
    build_index(model, str(photos), tmp_path / "index")
    (chunk,) = (tmp_path / "index/chunks").glob("000001-*")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.unlink() if damage == "gone" else chunk.write_bytes(content if damage == "flip" else content[:-9])
    index = PictureIndex(tmp_path / "index", encoder)
    with pytest.raises(ValueError, match=r"chunks/000001-\S+\.arrow is missing or damaged: build the index again"):
        query_index(index, ["a street"], top=PICTURES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert build_index(model, str(photos), tmp_path / "index")["embedded"] == 4
    assert len(query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=PICTURES)[0].hits) == PICTURES


def test_a_damaged_manifest_is_named(model, photos, tmp_path):
    build_index(model, str(photos), tmp_path / "index")
    (tmp_path / "index/index.json").write_text('{"model": ')
    for opens in (lambda: read_settings(tmp_path / "index"), lambda: build_index(model, str(photos), tmp_path / "index")):
        with pytest.raises(ValueError, match=r"index\.json is damaged \(.*\): remove "):
            opens()


def test_bfloat16(model, encoder, photos, tmp_path):
    """A query opens the model as the build did, and finds what float32 finds."""
    build_index(model, str(photos), tmp_path / "index", dtype="bfloat16")
    settings = read_settings(tmp_path / "index")
    assert settings["dtype"] == "bfloat16"
    half = QueryEncoder(settings["model"], settings["dtype"])
    assert {parameter.dtype for parameter in half.encoder.model.text_model.parameters()} == {torch.bfloat16}
    files = [photos / "00.png", photos / "a/b/01.jpg"]
    index = PictureIndex(tmp_path / "index", half)
    for answer, name in zip(query_index(index, pictures=files), ("00.png", "a/b/01.jpg"), strict=True):
        assert answer.hits[0].picture == name and answer.hits[0].score == pytest.approx(1, abs=1e-5)
    queries = half.embed_queries(["a street", "the red mat"], weights=WEIGHTS)
    assert queries.dtype == torch.float32 and torch.isfinite(queries).all()
    cosines = torch.cosine_similarity(queries, encoder.embed_queries(["a street", "the red mat"], weights=WEIGHTS))
    assert cosines.min() > 0.95  # the towers of conftest.py are sharp on purpose


def test_pictures_come_go_and_change(model, encoder, photos, tmp_path, embedded):
    build_index(model, str(photos), tmp_path / "index")
    add_picture(photos / "new/later.png", 77)
    (photos / "00.png").unlink()
    add_picture(photos / "a/b/01.jpg", 78)
    embedded.clear()
    built = build_index(model, str(photos), tmp_path / "index")
    assert built == {"pictures": PICTURES, "embedded": 2, "removed": 1, "unreadable": {}} and embedded == [2]
    index = PictureIndex(tmp_path / "index", encoder)
    hits = query_index(index, ["a street"], top=99)[0].hits
    assert len(hits) == PICTURES and {hit.picture for hit in hits} == set(open_pictures(str(photos)).stamps)
    best = query_index(index, pictures=[photos / "a/b/01.jpg"])[0].hits[0]
    assert best.picture == "a/b/01.jpg" and best.score == pytest.approx(1, abs=1e-5)  # of the file as it is now

    for path in photos.rglob("*.*"):
        path.unlink()
    add_picture(photos / "alone.png", 5)
    assert build_index(model, str(photos), tmp_path / "index")["removed"] == PICTURES
    assert build_index(model, str(photos), tmp_path / "index")["removed"] == 0
    assert [path.name[:6] for path in (tmp_path / "index/chunks").glob("*.arrow")] == ["000002"]  # no dead weight
    assert len(list((tmp_path / "index").glob("store-*"))) == 1


def test_nothing_new_embeds_nothing_and_keeps_the_store(model, photos, tmp_path, embedded):
    build_index(model, str(photos), tmp_path / "index")
    (store,) = (tmp_path / "index").glob("store-*/vectors.faiss")
    written = store.stat().st_mtime_ns
    embedded.clear()
    build_index(model, str(photos), tmp_path / "index")
    assert embedded == [] and store.stat().st_mtime_ns == written
    build_index(model, str(photos), tmp_path / "index", kind="hnsw")
    assert embedded == [] and not store.exists() and read_settings(tmp_path / "index")["kind"] == "hnsw"


def test_broken_and_foreign_files(model, encoder, photos, tmp_path):
    (photos / "notes.txt").write_text("no picture")
    (photos / ".hidden.png").write_bytes(b"")
    whole = (photos / "00.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "words.jpg").write_text("no picture either")
    (photos / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    turned = PIL.Image.open(photos / "00.png")
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned.save(photos / "turned.png", exif=exif)
    with pytest.warns(UserWarning, match=r"3 of 15 pictures left out: .*'cut\.png' \("):
        built = build_index(model, str(photos), tmp_path / "index")
    assert set(built["unreadable"]) == {"cut.png", "words.jpg", "nowhere.png"} and built["pictures"] == PICTURES + 1
    hits = query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=99)[0].hits
    sizes = {hit.picture: PIL.Image.open(io.BytesIO(hit.thumbnail)).size for hit in hits}
    assert sizes["00.png"] == (60, 48) and sizes["turned.png"] == (48, 60)

    (photos / "cut.png").write_bytes(whole)  # mended
    with pytest.warns(UserWarning, match="2 of 3 pictures left out"):
        assert build_index(model, str(photos), tmp_path / "index")["embedded"] == 1


def test_data_set_with_captions(model, encoder, tmp_path, embedded):
    data = tmp_path / "data"
    rows = []
    for i in range(6):
        add_picture(data / f"images/{i}.png", i)
        split = "train" if i % 2 else "test"
        rows.append({"file_name": f"images/{i}.png", "split": split, "captions": [f"picture {i}", "another"]})
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(model, str(data), tmp_path / "index", "test")
    hits = query_index(PictureIndex(tmp_path / "index", encoder), pictures=[data / "images/4.png"])[0].hits
    assert (len(hits), hits[0].picture, hits[0].caption) == (3, "test 2 images/4.png", "picture 4")

    add_picture(data / "images/2.png", 99)
    assert build_index(model, str(data), tmp_path / "index", "test")["embedded"] == 1
    with pytest.raises(ValueError, match=r"is an index of .*split 'test', not 'train'"):
        build_index(model, str(data), tmp_path / "index", "train")


def test_data_set_without_captions(model, encoder, photos, tmp_path):
    pictures = [{"bytes": (photos / name).read_bytes()} for name in sorted(open_pictures(str(photos)).stamps)]
    datasets.Dataset.from_dict({"img": pictures}).cast_column("img", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert build_index(model, str(tmp_path / "train.parquet"), tmp_path / "index", "train")["pictures"] == PICTURES
    hit = query_index(PictureIndex(tmp_path / "index", encoder), pictures=[photos / "00.png"])[0].hits[0]
    assert hit.picture == "train 0" and hit.caption == ""


def test_another_model_is_refused(model, photos, tmp_path):
    build_index(model, str(photos), tmp_path / "index")
    trained, settings = make_model(num_prompts=K, tokenizer=make_tokenizer()), tmp_path / "settings"
    with torch.no_grad():
        next(iter(trained.parameters())).view(-1)[0] += 1e-3
    for folder in (tmp_path / "copy", tmp_path / "trained", settings):
        (trained if folder.name == "trained" else QueryEncoder(model).encoder.model).save_pretrained(folder)
        make_processor(make_tokenizer()).save_pretrained(folder)
    file = next(file for file in settings.iterdir() if "rescale_factor" in file.read_text(errors="ignore"))
    file.write_text(file.read_text().replace('"rescale_factor": 0.00', '"rescale_factor": 0.01'))

    PictureIndex(tmp_path / "index", QueryEncoder(str(tmp_path / "copy")))  # the same model elsewhere
    assert build_index(str(tmp_path / "copy"), str(photos), tmp_path / "index")["embedded"] == 0
    for other in (QueryEncoder(str(tmp_path / "trained")), QueryEncoder(str(settings)), QueryEncoder(model, dtype="bfloat16")):
        with pytest.raises(ValueError, match=r"was built with .*/copy in float32 .* is another model .* do not compare"):
            PictureIndex(tmp_path / "index", other)
    with pytest.raises(ValueError, match=r"is an index of .*fingerprint .*Build in another folder"):
        build_index(str(tmp_path / "trained"), str(photos), tmp_path / "index")


def test_what_cannot_be_built(model, photos, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no picture in .*empty: expected files .*\.webp, or --split"):
        build_index(model, str(tmp_path / "empty"), tmp_path / "index")
    with pytest.raises(FileNotFoundError, match=r"no folder jxie/flickr8k: .*--split"):
        build_index(model, "jxie/flickr8k", tmp_path / "index")
    (tmp_path / "empty/a.png").write_text("")
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"none of its 1 pictures could be read: 'a\.png'"):
        warnings.simplefilter("ignore")
        build_index(model, str(tmp_path / "empty"), tmp_path / "unread")
    with pytest.raises(ValueError, match=r"learns its codes from 9,984 pictures or more; here are 11: use 'flat'"):
        build_index(model, str(photos), tmp_path / "index", kind="ivfpq")
    with pytest.raises(ValueError, match=r"store='pinecone'.*'faiss', 'lancedb'"):
        build_index(model, str(photos), tmp_path / "index", store="pinecone")
    with monkeypatch.context() as context, pytest.raises(ImportError, match=r"'lancedb' is not installed: pip install"):
        context.setitem(sys.modules, "lancedb", None)
        build_index(model, str(photos), tmp_path / "index", store="lancedb")
    with pytest.raises(ValueError, match="holds something else than an index"):
        build_index(model, str(photos), photos)
    with pytest.raises(FileNotFoundError, match=r"no index at .*photos: make one"):
        read_settings(photos)
    with filelock.FileLock(tmp_path / "index/build.lock"), pytest.raises(TimeoutError, match="another build is writing"):
        build_index(model, str(photos), tmp_path / "index")


def test_embeddings_that_are_not_finite_name_their_pictures(model, photos, tmp_path, monkeypatch):
    original = QueryEncoder.embed_pictures

    def with_nan(self, pictures):
        embeds = original(self, pictures).clone()
        embeds[1, 0] = torch.nan
        return embeds

    monkeypatch.setattr(QueryEncoder, "embed_pictures", with_nan)
    with pytest.raises(ValueError, match=r"not finite, of 02\.webp$"):
        build_index(model, str(photos), tmp_path / "index")


def test_no_pickle(model, photos, tmp_path, monkeypatch, store):
    encoder = QueryEncoder(model)

    def refused(*_, **__):
        raise AssertionError("pickle was read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    build_index(model, str(photos), tmp_path / "index", store=store)
    assert query_index(PictureIndex(tmp_path / "index", encoder), ["a street"])
    files = [path for path in (tmp_path / "index").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".arrow", ".lock", ".faiss", ".npy", ".lance", ".manifest", ".txn"}
    assert not any(path.read_bytes()[:1] == b"\x80" for path in files)  # how a pickle begins


def test_ids_outlive_the_chunk_size(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(mpclip.search.build, "CHUNK", 4)
    build_index(model, str(photos), tmp_path / "index")
    monkeypatch.setattr(mpclip.search.build, "CHUNK", 512)
    add_picture(photos / "later.png", 77)
    before = Chunks(tmp_path / "index/chunks").keys()
    build_index(model, str(photos), tmp_path / "index")
    after = Chunks(tmp_path / "index/chunks")
    assert after.keys().items() > before.items()
    ids = [i for _, i in after.keys().values()]
    assert [row["key"] for row in after.rows(ids)] == list(after.keys())


# What is read to find damage


@pytest.fixture
def settled(monkeypatch):
    """As if this program had started only now: the checkpoints of the tests are then older."""
    monkeypatch.setattr("mpclip.encoding.fingerprint.STARTED", time.time_ns())


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed, and "weights" for each fingerprint that was computed."""
    names = []
    sha256_file, fingerprint = mpclip.files.sha256_file, QueryEncoder.fingerprint
    monkeypatch.setattr(mpclip.files, "sha256_file", lambda path: names.append(path.name) or sha256_file(path))
    monkeypatch.setattr(QueryEncoder, "fingerprint", lambda self: names.append("weights") or fingerprint(self))
    return names


def everything(index) -> list[str]:
    """Names of all files with a checksum, and the weights."""
    return sorted(["weights", *(path.name for path in index.glob("*/**/*") if path.is_file())])


def rewrite_with_the_old_date(path, content: bytes) -> None:
    """Changes a file so that its size and date do not tell."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flipped(path) -> bytes:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def test_a_query_and_a_build_hash_nothing_that_has_its_date(model, encoder, photos, tmp_path, settled, hashed, store):
    index = tmp_path / "index"
    build_index(model, str(photos), index, store=store)
    hashed.clear()
    hits = query_index(PictureIndex(index, encoder), ["a street"], top=PICTURES)[0].hits
    assert hashed == [] and len(hits) == PICTURES
    build_index(model, str(photos), index, store=store)
    assert hashed == []
    build_index(model, str(photos), index, store=store, verify=True)
    assert sorted(hashed) == everything(index)
    hashed.clear()
    assert query_index(PictureIndex(index, encoder, verify=True), ["a street"], top=PICTURES)[0].hits == hits
    assert sorted(hashed) == everything(index)


def test_a_copied_index_is_hashed_once(model, encoder, photos, tmp_path, settled, hashed, monkeypatch):
    monkeypatch.setattr(mpclip.search.build, "CHUNK", 4)
    build_index(model, str(photos), tmp_path / "index")
    whole = query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=PICTURES)[0].hits
    copy, moved = tmp_path / "copy", tmp_path / "moved"
    shutil.copytree(tmp_path / "index", copy, copy_function=shutil.copy)  # gives every file today's date
    shutil.copytree(model, moved, copy_function=shutil.copy)
    monkeypatch.setattr("mpclip.encoding.fingerprint.STARTED", time.time_ns())
    elsewhere = QueryEncoder(str(moved))

    def ask() -> list[str]:
        hashed.clear()
        assert query_index(PictureIndex(copy, elsewhere), ["a street"], top=PICTURES)[0].hits == whole
        return sorted(hashed)

    with monkeypatch.context() as context:  # a folder that cannot be written is no error; nothing is remembered then
        context.setattr(mpclip.search.integrity, "write_manifest", lambda *_: (_ for _ in ()).throw(PermissionError()))
        assert ask() == ask() == everything(copy)
    with filelock.FileLock(copy / "build.lock"):  # nor is a build at work
        assert ask() == everything(copy)
    assert ask() == everything(copy)
    assert ask() == []
    (chunk,) = (copy / "chunks").glob("000001-*")
    chunk.touch()
    assert ask() == [chunk.name]
    assert ask() == []


def test_only_verify_finds_what_was_given_its_old_date(model, encoder, photos, tmp_path, settled):
    index = tmp_path / "index"
    build_index(model, str(photos), index)
    for pattern in ("store-*/vectors.faiss", "chunks/*.arrow"):
        (file,) = index.glob(pattern)
        whole = file.read_bytes()
        rewrite_with_the_old_date(file, flipped(file))
        PictureIndex(index, encoder)
        with pytest.raises(ValueError, match=rf"{file.name} is missing or damaged: build the index again"):
            PictureIndex(index, encoder, verify=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            build_index(model, str(photos), index)
        with pytest.warns(UserWarning, match=rf"{file.name} is (missing or )?damaged"):
            build_index(model, str(photos), index, verify=True)
        (again,) = index.glob(pattern)
        assert again.read_bytes() == whole
        PictureIndex(index, encoder, verify=True)


def test_weights_that_were_given_their_old_date(model, photos, tmp_path, monkeypatch):
    changed = tmp_path / "model"
    shutil.copytree(model, changed)
    monkeypatch.setattr("mpclip.encoding.fingerprint.STARTED", time.time_ns())
    build_index(str(changed), str(photos), tmp_path / "index")
    weights = changed / "model.safetensors"
    tensors = load_file(weights)
    tensors["text_projection.weight"][0, 0, 0] += 1
    content = save(tensors, metadata={"format": "pt"})
    assert len(content) == weights.stat().st_size
    rewrite_with_the_old_date(weights, content)
    other = QueryEncoder(str(changed))
    with pytest.raises(ValueError, match="is another model"):  # written after this program started
        PictureIndex(tmp_path / "index", other)
    monkeypatch.setattr("mpclip.encoding.fingerprint.STARTED", time.time_ns())
    PictureIndex(tmp_path / "index", other)
    with pytest.raises(ValueError, match="is another model"):
        PictureIndex(tmp_path / "index", other, verify=True)
    weights.touch()
    monkeypatch.setattr("mpclip.encoding.fingerprint.STARTED", time.time_ns())
    for _ in range(2):
        with pytest.raises(ValueError, match="is another model"):
            PictureIndex(tmp_path / "index", other)
    half = QueryEncoder(str(changed), dtype="bfloat16")
    with pytest.raises(ValueError, match="in bfloat16 is another model"):
        PictureIndex(tmp_path / "index", half)


def test_an_index_without_dates_is_hashed_once(model, encoder, photos, tmp_path, settled, hashed):
    """As those that were built before index.json had them."""
    index = tmp_path / "index"
    build_index(model, str(photos), index)
    (store,) = index.glob("store-*/vectors.faiss")
    whole, settings = store.read_bytes(), json.loads((index / "index.json").read_text())
    for name in ("stamps", "model_stamps"):
        del settings[name]

    (index / "index.json").write_text(json.dumps(settings))
    rewrite_with_the_old_date(store, flipped(store))
    with pytest.raises(ValueError, match=r"vectors\.faiss is missing or damaged"):
        PictureIndex(index, encoder)
    rewrite_with_the_old_date(store, whole)
    for expected in (everything(index), []):
        hashed.clear()
        query_index(PictureIndex(index, encoder), ["a street"], top=PICTURES)
        assert sorted(hashed) == expected


def test_a_query_does_not_undo_what_a_build_wrote(model, encoder, photos, tmp_path, settled):
    index = tmp_path / "index"
    build_index(model, str(photos), index)
    opened = PictureIndex(index, encoder)
    for chunk in (index / "chunks").iterdir():
        chunk.touch()
    add_picture(photos / "later.png", 77)
    build_index(model, str(photos), index)
    built = (index / "index.json").read_bytes()
    query_index(opened, ["a street"], top=PICTURES)
    assert (index / "index.json").read_bytes() == built


# What is shown


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


NASTY = """"'><script>alert(1)</script><img src=x onerror=alert(2)> & {title} </style>"""


def test_page_shows_nasty_words_and_runs_none(tmp_path):
    PIL.Image.new("RGB", (9, 9), "red").save(jpeg := io.BytesIO(), "JPEG")
    hit = Hit(NASTY + "\udcff", NASTY, 0.25, [0.5, -0.25, 0.0], jpeg.getvalue())
    answers = [Answer(NASTY, [NASTY], [NASTY], [1.0, 2.0, 0.5], [hit, hit], [jpeg.getvalue()])]
    write_page(answers, tmp_path / "new/page.html", NASTY)
    page = Page((tmp_path / "new/page.html").read_text(encoding="utf-8"))
    assert page.words.count(NASTY) == 9  # title, about, heading, picture, exclusion; twice a name and a caption
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "form", "a"})
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3 and [a["alt"] for a in pictures] == ["", NASTY, NASTY]
    assert all(a["src"] == uri for a in pictures)
    assert not any(name.startswith("on") or name in ("href", "srcset") for _, a in page.tags for name in a)
    heights = [a["height"] for tag, a in page.tags if tag == "rect"]
    assert heights == ["12.0", "6.0", "0.0"] * 2
    write_page([Answer(None, ["a.png"], [], None, [], [jpeg.getvalue()])], tmp_path / "page.html")
    assert "Pictures like this" in Page((tmp_path / "page.html").read_text()).words


def test_command(model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "56")
    add_picture(photos / "evil\x1b[2J.png", 80)
    index, html, found = str(tmp_path / "index"), tmp_path / "new/found.html", tmp_path / "new/found.json"
    main(["build", "--model", model, "--data", str(photos), "--index", index, "--device", "cpu"])
    assert "12 pictures, 12 of them embedded now; 0 removed, 0 unreadable" in capsys.readouterr().out

    (tmp_path / "queries.txt").write_text("a boat\n\nthe red mat\n")
    arguments = ["query", "--index", index, "a street", "--file", str(tmp_path / "queries.txt"), "--top", "12"]
    arguments += ["--weights", *map(str, WEIGHTS), "--exclude", "cars", "--exclude", "a dog", "--device", "cpu"]
    main([*arguments, "--html", str(html), "--json", str(found)])
    printed = capsys.readouterr().out
    assert '"a street"  without "cars"  without "a dog"  weights 0.…' in printed and "written: " in printed
    assert "\x1b" not in printed and "evil�[2J.png" in printed

    answers = json.loads(found.read_text())
    assert [answer["text"] for answer in answers] == ["a street", "a boat", "the red mat"]
    assert answers[0]["exclude"] == ["cars", "a dog"] and answers[0]["weights"] == WEIGHTS
    assert [len(answer["hits"]) for answer in answers] == [12] * 3
    assert set(answers[0]["hits"][0]) == {"picture", "caption", "score", "aspects"}
    page = Page(html.read_text(encoding="utf-8"))
    assert "12 pictures of photos, searched with model" in page.words  # and no path
    assert str(tmp_path) not in html.read_text(encoding="utf-8")
    assert sum(tag == "img" for tag, _ in page.tags) == 36


def test_help_loads_no_torch():
    for command in ([], ["build"], ["query"]):
        script = f"""if True:
            import sys
            from mpclip.search.__main__ import main
            try:
                main({[*command, "--help"]})
            finally:
                assert not {{"torch", "transformers", "datasets"}} & sys.modules.keys()
        """
        assert "--help" in subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_command_with_pictures(model, encoder, photos, tmp_path):
    index, found, file = str(tmp_path / "index"), tmp_path / "found.json", photos / "02.webp"
    main(["build", "--model", model, "--data", str(photos), "--index", index, "--device", "cpu"])
    query = ["query", "--index", index, "--top", "3", "--device", "cpu", "--json", str(found)]
    opened = PictureIndex(index, encoder)

    def answers(*arguments: str) -> list[dict]:
        main([*query, *arguments])
        return json.loads(found.read_text())

    (alone,) = answers("--image", str(file))
    assert alone["text"] is None and alone["hits"][0]["picture"] == "02.webp"
    expected = query_index(opened, pictures=[file], exclude=["a cat"], weights=WEIGHTS, top=3)
    options = ["--exclude", "a cat", "--weights", *map(str, WEIGHTS)]
    assert answers("--image", str(file), *options) == [answer.to_json() for answer in expected]
    expected = query_index(opened, ["a street"], [file, photos / "00.png"], exclude=["a cat"], weights=WEIGHTS, top=3)
    both = answers("a street", "--image", str(file), "--image", str(photos / "00.png"), *options)
    assert both == [answer.to_json() for answer in expected] and both[0]["hits"] != alone["hits"]
    assert answers("--verify", "--image", str(file)) == [alone]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["query", "--index", "{index}", "a street", "--exclude", ""], "an empty text names nothing; leave it out"),
        (["query", "--index", "{index}", "--image", "nowhere.png"], "nowhere.png"),
        (["query", "--index", "{index}"], "no query: give a text, a picture, or both"),
        (["query", "--index", "nowhere", "a street"], "no index at nowhere"),
        (["query", "--index", "{index}", "a street", "--model", "no\nwhere"], "no where"),
        (["build", "--index", "{index}", "--model", "{model}", "--data", "nowhere"], "no folder nowhere"),
    ],
    ids=["exclude", "picture", "nothing", "index", "model", "data"],
)
def test_what_the_user_can_mend_is_one_line(model, photos, tmp_path_factory, arguments, message):
    index = tmp_path_factory.getbasetemp() / "index_of_errors"
    build_index(model, str(photos), index) if not index.exists() else None
    given = [argument.format(index=index, model=model) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        main(given)
    line = str(ended.value)
    assert line.startswith("python -m mpclip.search: ") and message in line and "\n" not in line
