"""Damaged files of an index are found, and what is read to find them."""

import json
import os
import shutil
import time
import warnings

import filelock
import pytest
from safetensors.torch import load_file, save
from search_fixtures import PICTURES, add_picture, counts

import mpclip.files
import mpclip.search.embed
import mpclip.search.integrity
import mpclip.search.stores
from mpclip.search.build import build_index
from mpclip.search.queries import QueryEncoder
from mpclip.search.search import PictureIndex, query_index, read_settings

pytest_plugins = ["search_fixtures"]


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


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_chunk_is_found_out(model, encoder, photos, tmp_path, monkeypatch, embedded, damage):
    monkeypatch.setattr(mpclip.search.embed, "CHUNK", 4)
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
        assert built == counts(embedded=0) and embedded == []
        again = query_index(PictureIndex(tmp_path / "index", encoder), ["a street"], top=PICTURES)[0].hits
        assert again == whole
        if store == "lancedb":  # the new store's files have other names
            break


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_query_that_needs_a_damaged_chunk_names_it(model, encoder, photos, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(mpclip.search.embed, "CHUNK", 4)
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
    monkeypatch.setattr(mpclip.search.embed, "CHUNK", 4)
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
