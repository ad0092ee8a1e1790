"""Symbolic links that lead out of a data set's folder: one rule for tables, folders, saved tables and the index."""

import json

import datasets
import pytest
from tiny_pictures import jpeg, write_pictures

from mpclip.data.image_text import load_image_text
from mpclip.search.pictures import open_pictures

pytestmark = pytest.mark.usefixtures("datasets_cache")

OUT = "leads out of this data set by a symbolic link, to .*follow_links"


def with_metadata(folder, name: str):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "caption": "x"}))
    return folder


@pytest.mark.parametrize("linked", ["a.jpg", "images"])
def test_a_picture_behind_a_link_needs_the_option(linked, tmp_path):
    elsewhere = write_pictures(tmp_path / "elsewhere")
    folder = with_metadata(tmp_path / "set", "a.jpg" if linked == "a.jpg" else "images/a.jpg")
    (folder / linked).symlink_to(elsewhere / "a.jpg" if linked == "a.jpg" else elsewhere)
    with pytest.raises(ValueError, match=f"row 1: refused .*{OUT}"):
        load_image_text(folder, "train")
    with pytest.raises(ValueError, match=f"row 1: refused .*{OUT}"):
        open_pictures(str(folder), "train")
    assert len(load_image_text(folder, "train", follow_links=True)) == 1
    assert len(open_pictures(str(folder), "train", follow_links=True).stamps) == 1


def test_links_within_the_folder_and_above_it_are_followed(tmp_path):
    folder = with_metadata(tmp_path / "set", "linked.jpg")
    write_pictures(folder / "images")
    (folder / "linked.jpg").symlink_to("images/a.jpg")
    (tmp_path / "by_link").symlink_to(folder)
    for source in (folder, tmp_path / "by_link"):
        assert len(load_image_text(source, "train")) == 1


def test_the_table_itself_behind_a_link(tmp_path):
    with_metadata(tmp_path / "elsewhere", "a.jpg")
    folder = write_pictures(tmp_path / "set")
    (folder / "metadata.jsonl").symlink_to(tmp_path / "elsewhere/metadata.jsonl")
    with pytest.raises(ValueError, match=f"refused .*metadata.jsonl, which {OUT}"):
        load_image_text(folder, "train")
    assert len(load_image_text(folder, "train", follow_links=True)) == 1


def test_a_saved_table_behind_a_link(tmp_path):
    rows = datasets.Dataset.from_dict({"image": [{"bytes": jpeg(0), "path": None}], "caption": ["x"]})
    (tmp_path / "elsewhere").mkdir()
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "elsewhere/train.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.parquet").symlink_to(tmp_path / "elsewhere/train.parquet")
    with pytest.raises(ValueError, match=f"refused .*train.parquet, which {OUT}"):
        load_image_text(tmp_path / "set", "train")
    assert len(load_image_text(tmp_path / "set", "train", follow_links=True)) == 1
    assert len(load_image_text(tmp_path / "set/train.parquet", "train")) == 1  # the user names this very file


def test_class_folders_behind_a_link(tmp_path):
    write_pictures(tmp_path / "set/cat")
    (tmp_path / "set/bird").mkdir()
    (tmp_path / "set/bird/e.jpg").write_bytes(jpeg(4))
    (tmp_path / "set/dog").symlink_to(write_pictures(tmp_path / "elsewhere"))
    (tmp_path / "set/cat/d.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    with pytest.warns(UserWarning, match="set/dog is a linked folder"), pytest.raises(ValueError, match=OUT):
        load_image_text(tmp_path / "set", "train", class_caption="a {}")
    with pytest.warns(UserWarning, match="set/dog is a linked folder"):
        assert len(load_image_text(tmp_path / "set", "train", class_caption="a {}", follow_links=True)) == 4


def test_a_download_of_the_hub_is_made_of_links(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    blobs, snapshot = tmp_path / "hub/datasets--me--set/blobs", tmp_path / "hub/datasets--me--set/snapshots/1"
    write_pictures(blobs)
    snapshot.mkdir(parents=True)
    with_metadata(blobs, "a.jpg")
    for name in ("a.jpg", "metadata.jsonl"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert len(load_image_text(snapshot, "train")) == 1
