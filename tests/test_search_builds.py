"""Builds of an index: what is embedded, kept and refused."""

import io
import json
import pickle
import sys
import warnings

import datasets
import filelock
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from search_fixtures import PICTURES, WEIGHTS, K, add_picture, counts

import mpclip.files
import mpclip.search.embed
import mpclip.search.integrity
import mpclip.search.stores
from mpclip.search.build import build_index, precision_of_build
from mpclip.search.chunks import Chunks
from mpclip.search.pictures import open_pictures
from mpclip.search.queries import QueryEncoder
from mpclip.search.search import PictureIndex, query_index, read_settings

pytest_plugins = ["search_fixtures"]


def test_a_killed_build_goes_on(model, encoder, photos, tmp_path, monkeypatch, embedded):
    monkeypatch.setattr(mpclip.search.embed, "CHUNK", 4)
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
    assert embedded == [2, 1] and built == counts(embedded=3)
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


def test_bfloat16(model, encoder, photos, tmp_path):
    """A query opens the model as the build did, and finds what float32 finds."""
    build_index(model, str(photos), tmp_path / "index", dtype="bfloat16")
    settings = read_settings(tmp_path / "index")
    assert settings["dtype"] == "bfloat16" == precision_of_build("auto", tmp_path / "index")
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
    assert built == counts(embedded=2, removed=1) and embedded == [2]
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

    (photos / "cut.png").write_bytes((photos / "turned.png").read_bytes())  # mended: a picture that is there already
    with pytest.warns(UserWarning, match="2 of 3 pictures left out"):
        built = build_index(model, str(photos), tmp_path / "index")
    assert (built["embedded"], built["pictures"], built["names"]) == (0, PICTURES + 1, PICTURES + 2)
    add_picture(photos / "cut.png", 90)
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
    monkeypatch.setattr(mpclip.search.embed, "CHUNK", 4)
    build_index(model, str(photos), tmp_path / "index")
    monkeypatch.setattr(mpclip.search.embed, "CHUNK", 512)
    add_picture(photos / "later.png", 77)
    before = Chunks(tmp_path / "index/chunks").keys()
    build_index(model, str(photos), tmp_path / "index")
    after = Chunks(tmp_path / "index/chunks")
    assert after.keys().items() > before.items()
    assert [row["key"] for row in after.rows(after.keys().values())] == list(after.keys())
