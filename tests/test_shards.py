"""Shards are written whole or not at all, once, and hold the rows that they were made of."""

import io
import json
import tarfile

import PIL.Image
import pytest
from tiny_pictures import contents, records, write_folder

from mpclip.data import shards as command
from mpclip.data.image_text import load_image_text
from mpclip.data.reading import ReadingOptions
from mpclip.data.shard_writing import write_shards
from mpclip.data.streaming import open_shards

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def photos(tmp_path):
    rows = records(11)
    rows[3]["captions"] = ["only one"]
    rows[4]["captions"] = ['["looks like", "a list"] but is none', "two\nlines"]
    rows[5]["captions"] = ['["not", "two captions"]x']
    return write_folder(tmp_path / "photos", rows)


def samples_of(folder, split: str = "train") -> list:
    shards = open_shards(str(folder), split, ReadingOptions())
    return [(s.picture["bytes"], s.captions) for i in range(len(shards.names)) for s in shards.samples(i)]


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_reading_back_gives_the_same_rows(photos, tmp_path, format):
    out = tmp_path / "shards"
    told = write_shards(str(photos), "train", out, shards=3, format=format)
    assert told == {"shards": 3, "samples": 11, "left_out": 0, "written": 3}
    expected = contents(load_image_text(photos, "train"))
    assert samples_of(out) == expected == contents(load_image_text(out, "train"))
    manifest = json.loads((out / ("manifest.json" if format == "tar" else ".manifest.json")).read_text())
    assert manifest == {"shards": {f"{i:05d}.{format}": n for i, n in enumerate((3, 4, 4))}, "samples": 11}
    assert open_shards(str(out), "train", ReadingOptions()).total == 11


def test_the_layout_is_that_of_img2dataset(photos, tmp_path):
    write_shards(str(photos), "train", tmp_path, samples_per_shard=6)
    with tarfile.open(tmp_path / "00001.tar") as tar:
        names = tar.getnames()
        described = json.load(tar.extractfile("000010000.json"))
    assert names[:4] == ["000010000.png", "000010000.txt", "000010000.captions", "000010000.json"]
    assert described == {"caption": '["not", "two captions"]x', "key": "000010000", "status": "success", "label": 5} | {
        "file_name": "images/5.png"
    }
    stats = json.loads((tmp_path / "00001_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (6, 6)


def test_writing_again_writes_what_is_missing_or_has_changed(photos, tmp_path):
    out = tmp_path / "shards"
    write_shards(str(photos), "train", out, shards=3)
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.glob("*.tar")}
    assert write_shards(str(photos), "train", out, shards=3)["written"] == 0
    (out / "00000.tar").write_bytes(before["00000.tar"][1][:2000])  # as another program might leave it
    (out / "00002_stats.json").unlink()  # as a kill leaves it
    assert write_shards(str(photos), "train", out, shards=3)["written"] == 2
    after = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.glob("*.tar")}
    assert {name: content for name, (_, content) in after.items()} == {name: content for name, (_, content) in before.items()}
    assert after["00001.tar"][0] == before["00001.tar"][0]
    PIL.Image.new("RGB", (9, 9)).save(photos / "images/0.png")
    assert write_shards(str(photos), "train", out, shards=3)["written"] == 1
    with pytest.raises(ValueError, match=r"holds other shards of the split 'train': 00002\.tar"):
        write_shards(str(photos), "train", out, shards=2)


def test_a_kill_leaves_no_half_shard(photos, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mpclip.data.shard_writing._ending", killed)
        write_shards(str(photos), "train", tmp_path / "out", shards=2)
    assert not list((tmp_path / "out").iterdir())


def test_splits_share_a_folder(photos, tmp_path):
    write_shards(str(photos), "train[:8]", tmp_path / "out", shards=2)
    with pytest.raises(ValueError, match="split 'train'"):
        write_shards(str(photos), "train[8:]", tmp_path / "out", shards=1)
    rows = [row | {"split": "validation" if row["label"] > 7 else "train"} for row in records(11)]
    write_folder(tmp_path / "more", rows)
    write_shards(str(tmp_path / "more"), "train", tmp_path / "both", shards=2)
    write_shards(str(tmp_path / "more"), "validation", tmp_path / "both")
    assert json.loads((tmp_path / "both/manifest.json").read_text())["shards"] == {
        "00000.tar": 4,
        "00001.tar": 4,
        "validation-00000.tar": 3,
    }
    assert samples_of(tmp_path / "both", "validation") == contents(load_image_text(tmp_path / "more", "validation"))


def test_pictures_are_coded_anew_only_when_asked(tmp_path):
    write_folder(tmp_path / "data", records(3))
    PIL.Image.effect_noise((200, 100), 90).save(tmp_path / "data/images/1.png")
    (tmp_path / "data/images/2.png").write_bytes(b"no picture")
    write_shards(str(tmp_path / "data"), "train", tmp_path / "copied")
    assert [content for content, _ in samples_of(tmp_path / "copied")][2] == b"no picture"
    told = write_shards(str(tmp_path / "data"), "train", tmp_path / "small", longest_side=50)
    assert (told["samples"], told["left_out"]) == (2, 1)
    sizes = [PIL.Image.open(io.BytesIO(content)) for content, _ in samples_of(tmp_path / "small")]
    assert [(picture.format, picture.size) for picture in sizes] == [("JPEG", (12, 8)), ("JPEG", (50, 25))]
    with pytest.raises(ValueError, match=r"images/2\.png \(not an image\)"):
        write_shards(str(tmp_path / "data"), "train", tmp_path / "none", longest_side=50, bad_images="fail")


def test_missing_files_are_left_out_and_named(photos, tmp_path, caplog):
    (photos / "images/7.png").unlink()
    told = write_shards(str(photos), "train", tmp_path / "out", shards=2)
    assert (told["samples"], told["left_out"]) == (10, 1)
    assert "1 of 11 pictures are left out: images/7.png (no such file)" in caplog.text
    assert len(samples_of(tmp_path / "out")) == 10


def test_the_command(photos, tmp_path, capsys):
    command.main(["--data", str(photos), "--out", str(tmp_path / "out"), "--shards", "2", "--shuffle", "1"])
    told = capsys.readouterr().out
    assert told.startswith("11 samples in 2 shards; 2 shards were written, 0 pictures left out\n")
    assert f"mpclip train --streaming true --dataset {tmp_path / 'out'}" in told
    plain, shuffled = contents(load_image_text(photos, "train")), samples_of(tmp_path / "out")
    assert shuffled != plain and sorted(shuffled, key=str) == sorted(plain, key=str)
    with pytest.raises(SystemExit, match="11 samples do not fill 12 shards"):
        command.main(["--data", str(photos), "--out", str(tmp_path / "out"), "--shards", "12"])
