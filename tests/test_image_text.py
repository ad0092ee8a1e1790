"""Opening image-text data: sources that hold their pictures, splits and their parts, columns."""

import json

import datasets
import numpy as np
import pytest
from shared_data import shared_data
from tiny_pictures import picture, records, write_folder

from mpclip.data.image_sources import open_table
from mpclip.data.image_text import load_image_text

pytestmark = pytest.mark.usefixtures("datasets_cache")


def embedded(count: int = 4, image: str = "image", caption: str = "captions") -> datasets.Dataset:
    """A table that holds its pictures."""
    columns = {image: [picture(i) for i in range(count)], caption: [[f"a {i}", f"b {i}"] for i in range(count)]}
    return datasets.Dataset.from_dict(columns).cast_column(image, datasets.Image())


def check_rows(rows: datasets.Dataset, count: int) -> None:
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows.features["captions"] == datasets.List(datasets.Value("string"))
    assert rows["captions"][:] == [[f"a {i}", f"b {i}"] for i in range(count)]
    for i, row in enumerate(rows):
        assert row["image"].mode == "RGB"
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(picture(i)))


# Sources


def test_folder_with_jsonl_and_split_column(tmp_path):
    both = records(3, "train") + [record | {"file_name": f"other/{i}.png"} for i, record in enumerate(records(2, "test"))]
    write_folder(tmp_path, both)
    check_rows(load_image_text(tmp_path, "train"), 3)
    rows = load_image_text(str(tmp_path), "test")
    assert rows["file_name"][:] == ["other/0.png", "other/1.png"]
    assert rows["label"][:] == [0, 1]  # other columns are kept


def test_folder_with_split_folders(tmp_path):
    write_folder(tmp_path / "train", records(3))
    write_folder(tmp_path / "validation", records(2))
    check_rows(load_image_text(tmp_path, "train"), 3)
    check_rows(load_image_text(tmp_path, "validation"), 2)
    with pytest.raises(ValueError, match=r"no split 'test'.*\['train', 'validation'\]"):
        load_image_text(tmp_path, "test")


def test_csv_rows_of_one_file_become_one_row(tmp_path):
    rows = [{"file_name": f"{i}.png", "caption": f"{word} {i}", "n": i} for word in "ab" for i in range(3)]
    loaded = load_image_text(write_folder(tmp_path, rows, "metadata.csv"), "train")
    check_rows(loaded, 3)
    assert loaded["n"][:] == [0, 1, 2]


def test_csv_keeps_captions_that_look_like_missing_values(tmp_path):
    rows = [{"file_name": "0.png", "caption": "none"}, {"file_name": "1.png", "caption": "NA"}]
    assert load_image_text(write_folder(tmp_path, rows, "metadata.csv"), "train")["captions"][:] == [["none"], ["NA"]]


def test_saved_dataset_and_dict(tmp_path):
    embedded(3).save_to_disk(tmp_path / "one")
    check_rows(load_image_text(tmp_path / "one", "train"), 3)
    datasets.DatasetDict({"train": embedded(3), "test": embedded(2)}).save_to_disk(tmp_path / "two")
    check_rows(load_image_text(tmp_path / "two", "test"), 2)
    with pytest.raises(ValueError, match=r"no split 'dev'.*\['test', 'train'\]"):
        load_image_text(tmp_path / "two", "dev")


def test_parquet_file_pattern_and_folder(tmp_path):
    embedded(3).to_parquet(tmp_path / "flickr-train-0.parquet")
    embedded(2).to_parquet(tmp_path / "flickr-val-0.parquet")
    check_rows(load_image_text(tmp_path / "flickr-train-0.parquet", "train"), 3)
    check_rows(load_image_text(f"{tmp_path}/*.parquet", "validation"), 2)
    check_rows(load_image_text(tmp_path, "train"), 3)
    with pytest.raises(ValueError, match=r"no split 'train'.*'validation'"):
        load_image_text(tmp_path / "flickr-val-0.parquet", "train")


def test_split_column_of_a_single_table(tmp_path):
    """As Flickr30k has it on the Hub: all in one part named test."""
    embedded(4).add_column("split", ["train", "train", "train", "test"]).to_parquet(tmp_path / "test.parquet")
    check_rows(load_image_text(tmp_path / "test.parquet", "train"), 3)
    assert len(load_image_text(tmp_path / "test.parquet", "test")) == 1
    rows = embedded(2).add_column("split", [0, 1]).cast_column("split", datasets.ClassLabel(names=["train", "dev"]))
    rows.save_to_disk(tmp_path / "saved")
    assert load_image_text(tmp_path / "saved", "dev")["captions"][:] == [["a 1", "b 1"]]


def test_hub_id_goes_to_datasets(monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source: ["train", "test"])
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: embedded(2, "jpg", "sentences"))
    check_rows(load_image_text("owner/name", "test"), 2)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        load_image_text(tmp_path / "absent", "train")
    with pytest.raises(FileNotFoundError, match="no parquet file"):
        load_image_text(tmp_path / "absent.parquet", "train")
    with pytest.raises(FileNotFoundError, match=r"nothing at absent\.csv: expected a folder, a file"):
        load_image_text("absent.csv", "train")
    (tmp_path / "notes.doc").write_text("")
    with pytest.raises(FileNotFoundError, match=r"something else at .*notes\.doc"):
        load_image_text(tmp_path / "notes.doc", "train")


# Columns


@pytest.mark.parametrize("image", ["img", "jpg"])
@pytest.mark.parametrize("caption", ["caption", "text", "sentences", "raw"])
def test_usual_column_names(tmp_path, image, caption):
    embedded(2, image, caption).save_to_disk(tmp_path)
    check_rows(load_image_text(tmp_path, "train"), 2)


def test_other_column_names_must_be_given(tmp_path):
    embedded(2, "photo", "description").save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"\['photo', 'description'\]. Set image_column"):
        load_image_text(tmp_path, "train")
    with pytest.raises(ValueError, match=r"no column 'words'.*Set caption_column"):
        load_image_text(tmp_path, "train", image_column="photo", caption_column="words")
    check_rows(load_image_text(tmp_path, "train", image_column="photo", caption_column="description"), 2)


def test_captions_that_are_not_needed(tmp_path, recwarn):
    embedded(2).remove_columns("captions").save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no column is named captions.*Set caption_column to one of these, or rename one"):
        load_image_text(tmp_path / "none", "train")
    rows = load_image_text(tmp_path / "none", "train", need_captions=False)
    assert rows["captions"][:] == [[], []] and rows[1]["image"].mode == "RGB"

    some = [{"file_name": "a.png", "captions": ["a"]}, {"file_name": "b.png", "captions": []}]
    rows = load_image_text(write_folder(tmp_path / "some", some), "train", need_captions=False)
    assert rows["captions"][:] == [["a"], []] and not [w for w in recwarn if "skipped" in str(w.message)]
    with pytest.raises(ValueError, match="no column 'words'"):
        load_image_text(tmp_path / "some", "train", need_captions=False, caption_column="words")


def test_image_column_of_metadata(tmp_path):
    write_folder(tmp_path, records(2))
    renamed = [{"where" if key == "file_name" else key: value for key, value in row.items()} for row in records(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    with pytest.raises(ValueError, match=r"file_name is None.*'where'.*set image_column"):
        load_image_text(tmp_path, "train")
    check_rows(load_image_text(tmp_path, "train", image_column="where"), 2)


@pytest.mark.parametrize(
    "cells",
    [
        ["one", "two"],
        [["one"], ["two"]],
        ['["one"]', '["two"]'],
        [[{"raw": "one"}], [{"raw": "two"}]],
        [{"raw": ["one"]}, {"raw": ["two"]}],
        [["one", "", None, "  "], ["two"]],
    ],
)
def test_forms_of_captions(tmp_path, cells):
    rows = datasets.Dataset.from_dict({"image": [picture(0), picture(1)], "captions": cells})
    rows.save_to_disk(tmp_path)
    assert load_image_text(tmp_path, "train")["captions"][:] == [["one"], ["two"]]


@pytest.mark.parametrize("cells", [[1, 2], [[picture(0)], [picture(1)]], [{"a": 1}, {"a": 2}]])
def test_images_of_a_wrong_type(tmp_path, cells):
    datasets.Dataset.from_dict({"image": cells, "captions": ["a", "b"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"column 'image' holds .* expected one picture per row"):
        load_image_text(tmp_path / "train.parquet", "train")


def test_captions_of_a_wrong_type(tmp_path):
    datasets.Dataset.from_dict({"image": [picture(0)], "captions": [7]}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"7 \(int\), expected a str"):
        load_image_text(tmp_path, "train")


def test_limit(tmp_path):
    write_folder(tmp_path, records(4))
    check_rows(load_image_text(tmp_path, "train", limit=2), 2)
    check_rows(load_image_text(tmp_path, "train", limit=99), 4)
    with pytest.raises(ValueError, match="limit=0"):
        load_image_text(tmp_path, "train", limit=0)


# Real photographs


def test_flickr8k():
    folder = shared_data("flickr8k")
    validation = load_image_text(folder, "validation", limit=20)
    assert len(validation) == 20 and validation[0]["image"].size == (224, 224)
    assert all(len(captions) == 5 for captions in validation["captions"][:])
    rows, train = open_table(str(folder), "train")  # without the check, which would decode every photograph
    assert len(train) == 6000 and rows["split"][:].count("validation") == 1000


def test_part_of_a_split(tmp_path):
    folder = write_folder(tmp_path, records(4, "train") + [{**row, "split": "validation"} for row in records(4)][:2])
    assert load_image_text(folder, "train[:50%]")["captions"][:] == load_image_text(folder, "train")["captions"][:2]
    assert len(load_image_text(folder, "train[50%:]")) == 2 and len(load_image_text(folder, "train[1:2]")) == 1
    with pytest.raises(ValueError, match="splits found"):
        load_image_text(folder, "test[:50%]")
