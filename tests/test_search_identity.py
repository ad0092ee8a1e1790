"""A picture of an index is known by its content: names, places and captions may change without embedding it again."""

import hashlib
import json
import os
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pytest
from search_fixtures import PICTURES, add_picture, counts

from mpclip.search.build import build_index
from mpclip.search.chunks import Chunks
from mpclip.search.places import Places
from mpclip.search.search import PictureIndex, query_index, read_settings

pytest_plugins = ["search_fixtures"]


def write_data_set(folder, captions: list[str]) -> None:
    """A data set of a picture per caption; picture i is the same whatever its row."""
    rows = []
    for i, caption in enumerate(captions):
        add_picture(folder / f"images/{i}.png", i) if not (folder / f"images/{i}.png").exists() else None
        rows.append({"file_name": f"images/{i}.png", "split": "test", "captions": [caption]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def found(index, encoder) -> dict[str, tuple[float, str]]:
    """Name -> score and caption of every picture of an index."""
    hits = query_index(PictureIndex(index, encoder), ["a street"], top=99)[0].hits
    return {name: (hit.score, hit.caption) for hit in hits for name in (hit.picture, *hit.also)}


def scores(index, encoder) -> list[float]:
    return [score for score, _ in found(index, encoder).values()]


def test_corrected_captions_are_taken_up_without_embedding(model, encoder, tmp_path, embedded):
    data, index = tmp_path / "data", tmp_path / "index"
    write_data_set(data, ["a cat", "a dgo", "a boat"])
    build_index(model, str(data), index, "test")
    (store,) = index.glob("store-*/vectors.faiss")
    written, before = store.stat().st_mtime_ns, found(index, encoder)
    embedded.clear()
    write_data_set(data, ["a cat", "a dog", "a boat"])
    assert build_index(model, str(data), index, "test")["embedded"] == 0
    assert embedded == [] and store.stat().st_mtime_ns == written
    after = found(index, encoder)
    assert after.pop("test 1 images/1.png") == (before.pop("test 1 images/1.png")[0], "a dog")
    assert after == before
    assert len(list((index / "places").iterdir())) == 1


@pytest.mark.parametrize("table", [False, True], ids=["files", "table"])
def test_another_order_of_rows_embeds_nothing(model, encoder, tmp_path, embedded, table):
    data, index = tmp_path / "data", tmp_path / "index"
    write_data_set(data, ["a cat", "a dog", "a boat"])

    def build(order: list[int]) -> dict:
        lines = (data / "metadata.jsonl").read_text().splitlines()
        if not table:
            (data / "metadata.jsonl").write_text("\n".join(lines[i] for i in order))
            return build_index(model, str(data), index, "test")
        rows = [{"image": {"bytes": (data / f"images/{i}.png").read_bytes()}, "caption": str(i)} for i in order]
        rows = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        rows.to_parquet(tmp_path / "test.parquet")
        return build_index(model, str(tmp_path / "test.parquet"), index, "test")

    build([0, 1, 2])
    before, first = scores(index, encoder), read_settings(index)["vectors"]
    embedded.clear()
    built = build([2, 0, 1])
    assert embedded == [] and built["embedded"] == built["removed"] == 0 and read_settings(index)["vectors"] == first
    assert sorted(scores(index, encoder)) == sorted(before)


def test_a_moved_folder_reuses_its_index(model, encoder, photos, tmp_path, embedded):
    index = tmp_path / "index"
    build_index(model, str(photos), index)
    before = found(index, encoder)
    embedded.clear()
    moved = photos.rename(tmp_path / "elsewhere")
    assert build_index(model, str(moved), index) == counts(embedded=0) and embedded == []
    assert found(index, encoder) == before and read_settings(index)["data"] == str(moved)
    copy = shutil.copytree(moved, tmp_path / "copy", copy_function=shutil.copy)  # with other dates
    assert build_index(model, str(copy), index) == counts(embedded=0) and embedded == []


def test_a_renamed_picture_is_not_embedded_again(model, encoder, photos, tmp_path, embedded):
    index = tmp_path / "index"
    build_index(model, str(photos), index)
    before = found(index, encoder)
    embedded.clear()
    (photos / "00.png").rename(photos / "a" / "renamed.bin")
    (photos / "a/b/01.jpg").touch()
    assert build_index(model, str(photos), index) == counts(embedded=0) and embedded == []
    before["a/renamed.bin"] = before.pop("00.png")
    assert found(index, encoder) == before


def test_what_keeps_its_size_and_date_is_not_read(model, photos, tmp_path, monkeypatch):
    build_index(model, str(photos), tmp_path / "index")
    read = []
    original = "mpclip.search.pictures.read_file"
    monkeypatch.setattr(original, lambda path: read.append(path.name) or path.read_bytes())
    build_index(model, str(photos), tmp_path / "index")
    assert read == []
    (photos / "00.png").touch()
    build_index(model, str(photos), tmp_path / "index")
    build_index(model, str(photos), tmp_path / "index")
    assert read == ["00.png"]


def test_other_pictures_do_not_replace_those_of_an_index(model, encoder, photos, tmp_path, embedded):
    index, others = tmp_path / "index", tmp_path / "others"
    build_index(model, str(photos), index)
    before = found(index, encoder)
    for i in range(3):
        add_picture(others / f"0{i}.png", 50 + i)
    os.utime(others / "00.png", ns=(0, (photos / "00.png").stat().st_mtime_ns))
    embedded.clear()
    with pytest.raises(ValueError, match=r"is an index of data '.*photos', and '.*others' has none of its pictures\. Build in"):
        build_index(model, str(others), index)
    assert embedded == [] and found(index, encoder) == before
    shutil.copy(photos / "00.png", others / "one.png")
    built = build_index(model, str(others), index)
    assert (built["pictures"], built["embedded"], built["removed"]) == (4, 3, PICTURES - 1)


def test_a_picture_with_several_names_is_embedded_once_and_shown_with_all(model, encoder, photos, tmp_path, embedded):
    for name in ("a/copy of 00.png", "z.png"):
        shutil.copy(photos / "00.png", photos / name)
    index = tmp_path / "index"
    built = build_index(model, str(photos), index)
    assert sum(embedded) == PICTURES
    assert built == counts(embedded=PICTURES) | {"names": PICTURES + 2}
    hits = query_index(PictureIndex(index, encoder), pictures=[photos / "00.png"], top=99)[0].hits
    assert len(hits) == PICTURES and (hits[0].picture, hits[0].also) == ("00.png", ["a/copy of 00.png", "z.png"])
    (photos / "00.png").unlink()
    assert build_index(model, str(photos), index) == counts(embedded=0) | {"names": PICTURES + 1}
    hits = query_index(PictureIndex(index, encoder), pictures=[photos / "z.png"], top=1)[0].hits
    assert (hits[0].picture, hits[0].also) == ("a/copy of 00.png", ["z.png"])


def test_damaged_places_are_found_out_and_made_anew(model, encoder, photos, tmp_path, embedded):
    index = tmp_path / "index"
    build_index(model, str(photos), index)
    before = found(index, encoder)
    (file,) = (index / "places").iterdir()
    for content in (file.read_bytes()[:-9], None):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ValueError, match=r"places/names-\w+\.arrow is missing or damaged: build the index again"):
            PictureIndex(index, encoder)
        embedded.clear()
        with pytest.warns(UserWarning, match=r"names-\w+\.arrow is missing or damaged"):
            assert build_index(model, str(photos), index) == counts(embedded=0)
        assert embedded == [] and found(index, encoder) == before


def test_a_name_that_is_no_text_is_kept(model, encoder, photos, tmp_path, embedded):
    with open(os.fsencode(photos) + b"/caf\xe9.png", "wb") as file:
        file.write((photos / "00.png").read_bytes())
    (photos / "00.png").unlink()
    assert build_index(model, str(photos), tmp_path / "index") == counts(embedded=PICTURES)
    assert "caf\ufffd.png" in found(tmp_path / "index", encoder)
    embedded.clear()
    assert build_index(model, str(photos), tmp_path / "index") == counts(embedded=0) and embedded == []


# Indexes that were built before pictures were known by content


def as_in_the_first_format(index, stamps: dict[str, str]) -> None:
    """Rewrites an index: names, stamps and captions beside the embeddings, and no places."""
    settings = json.loads((index / "index.json").read_text())
    places = Places(index / settings["places"]).all()
    shutil.rmtree(index / "places")
    chunks = Chunks(index / "chunks")
    (number, file), (row,) = *chunks.files.items(), [chunks.rows(sorted(chunks.keys().values()))]
    columns = {"key": [p.name for p in places], "stamp": [stamps[p.name] for p in places]}
    columns |= {"caption": [p.caption for p in places], "thumbnail": [one["thumbnail"] for one in row]}
    vectors = chunks.embeddings([p.id for p in places])
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    batch = pa.record_batch(columns)
    with pa.ipc.new_file(buffer := pa.BufferOutputStream(), batch.schema) as writer:
        writer.write_batch(batch)
    content = buffer.getvalue()
    file.unlink()
    (index / "chunks" / f"{number:06d}-{hashlib.sha256(content).hexdigest()}.arrow").write_bytes(content)
    del settings["places"], settings["stamps"]
    (index / "index.json").write_text(json.dumps(settings))


def size_and_date(path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def test_an_index_of_the_first_format_is_searched_and_goes_on(model, encoder, photos, tmp_path, embedded):
    index = tmp_path / "index"
    build_index(model, str(photos), index)
    before = found(index, encoder)
    as_in_the_first_format(index, {name: size_and_date(photos / name) for name in before})
    assert found(index, encoder) == before

    embedded.clear()
    moved = shutil.copytree(photos, tmp_path / "moved")
    with pytest.raises(ValueError, match=r"is an index of data .*photos', not .*moved'.*Build once with the data where"):
        build_index(model, str(moved), index)
    add_picture(photos / "00.png", 77)
    (photos / "02.webp").unlink()
    built = build_index(model, str(photos), index)
    assert embedded == [1] and (built["embedded"], built["removed"]) == (1, 1)
    before.pop("02.webp"), before.pop("00.png")
    assert build_index(model, str(photos), index)["removed"] == 0
    after = found(index, encoder)
    assert before.items() < after.items() and len(after) == PICTURES - 1
    embedded.clear()
    built = build_index(model, str(photos.rename(tmp_path / "elsewhere")), index)  # from now on it may move
    assert embedded == [] and built["embedded"] == built["removed"] == 0 and found(index, encoder) == after


def test_a_data_set_in_an_index_of_the_first_format(model, encoder, tmp_path, embedded):
    index, contents = tmp_path / "index", []
    for i in range(3):
        add_picture(tmp_path / f"{i}.png", i)
        contents.append((tmp_path / f"{i}.png").read_bytes())
    rows = datasets.Dataset.from_dict({"image": [{"bytes": content} for content in contents], "caption": ["a", "b", "c"]})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "test.parquet")
    build_index(model, str(tmp_path / "test.parquet"), index, "test")
    before = found(index, encoder)
    as_in_the_first_format(index, {f"test {i}": hashlib.sha256(content).hexdigest() for i, content in enumerate(contents)})
    assert found(index, encoder) == before
    embedded.clear()
    assert build_index(model, str(tmp_path / "test.parquet"), index, "test")["embedded"] == 0
    assert embedded == [] and found(index, encoder) == before
    np.testing.assert_array_equal(sorted(scores(index, encoder)), sorted(score for score, _ in before.values()))
