"""Which files of a folder are pictures of an index: by content, whatever their names, and nothing that must not be opened."""

import io
import os
import socket
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from search_fixtures import PICTURES, add_picture

import mpclip.data.picture_folder
import mpclip.encoding.decoding
import mpclip.search.embed
from mpclip.data.image_text import load_image_text
from mpclip.data.picture_folder import NOT_A_FILE, find_pictures
from mpclip.data.picture_size import pixel_limit
from mpclip.search.build import build_index
from mpclip.search.embed import ChunkWriter, embed_pictures
from mpclip.search.pictures import open_pictures

pytest_plugins = ["search_fixtures"]

ENDINGS = ["gif", "bmp", "tif", "TIFF", "avif", "jfif", "jp2", "ppm", "tga", "webp", "ico", "pcx", "qoi", ""]
FORMATS = {"jfif": "JPEG", "": "PNG"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_pictures_of_every_kind_are_found(tmp_path, ending):
    path = tmp_path / (f"photo.{ending}" if ending else "a photo without an ending")
    PIL.Image.new("RGB", (20, 16), "red").save(path, FORMATS.get(ending))
    assert find_pictures(tmp_path) == ([path.name], {})


@pytest.mark.parametrize("name", ["photo.jpg.part", "photo.JPG~", "IMG_0001", "report.pdf"])
def test_content_tells_what_a_file_is(tmp_path, name):
    PIL.Image.new("RGB", (20, 16), "red").save(tmp_path / name, "JPEG")
    assert find_pictures(tmp_path) == ([name], {})


FILES = {
    "notes.txt": b"BM is how a bitmap begins, and P6 a pixmap",
    "P6": b"P6 is a number",
    "page.ps": b"%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    "video.mpg": b"\x00\x00\x01\xb3" + bytes(range(200)),
    "clip.mp4": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00" + bytes(200),
    "noise": np.random.default_rng(0).bytes(2000),
    "nothing": b"",
    ".hidden.jpg": b"",
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_no_matter(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert find_pictures(tmp_path) == ([], {})


def test_pictures_that_cannot_be_read_are_named_whatever_their_endings(model, photos, tmp_path):
    jpeg = (photos / "a/b/01.jpg").read_bytes()
    cut = {
        "cut_header": jpeg[:20],
        "empty.tif": b"",
        "page.jpg": b"<html>404</html>",
        "IMG_1.HEIC": b"\0\0\0\x20ftypheic" + bytes(99),
    }
    for name, content in cut.items():
        (photos / name).write_bytes(content)
    with pytest.warns(UserWarning, match=rf"4 of {PICTURES + 4} pictures left out: 'IMG_1\.HEIC' \(not a picture that"):
        built = build_index(model, str(photos), tmp_path / "index")
    assert built["unreadable"].keys() == cut.keys() and built["pictures"] == PICTURES


# What must not be opened


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_named_and_not_opened(tmp_path, kind):
    add_picture(tmp_path / "photos/a.png", 0)
    path = tmp_path / "photos/x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # a socket's full path must be short
    assert find_pictures(tmp_path / "photos", follow_links=True) == (["a.png"], {"x.jpg": NOT_A_FILE})


@pytest.mark.timeout(20)
def test_a_pipe_in_a_data_set_is_named_and_not_opened(tmp_path):
    add_picture(tmp_path / "a.png", 0)
    os.mkfifo(tmp_path / "x.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,split,caption\na.png,test,a\nx.jpg,test,x\n")
    with pytest.warns(UserWarning, match=rf"1 of 2 rows .*x\.jpg \({NOT_A_FILE}\)"):
        pictures = open_pictures(str(tmp_path), "test")
    assert list(pictures.stamps) == ["test 0 a.png"]


# Links


def test_links_that_lead_out_are_named_or_followed(model, photos, tmp_path):
    add_picture(tmp_path / "outside/album/0.png", 70)
    add_picture(tmp_path / "outside/1.png", 71)
    (photos / "linked").symlink_to(tmp_path / "outside/album")
    (photos / "one.png").symlink_to(tmp_path / "outside/1.png")
    (photos / "inside.png").symlink_to("00.png")
    (photos / "nowhere.gif").symlink_to("nothing.gif")
    told = r"'linked' \(which leads out of this data set by a symbolic link, to .*outside/album; set follow_links "
    with pytest.warns(UserWarning, match=told + r".*'nowhere\.gif' \(a link to nowhere\), 'one\.png' \(which leads out"):
        built = build_index(model, str(photos), tmp_path / "index")
    assert (built["pictures"], built["names"]) == (PICTURES, PICTURES + 1)
    with pytest.warns(UserWarning, match=r"1 of 3 pictures left out: 'nowhere\.gif' \(a link to nowhere\)$"):
        built = build_index(model, str(photos), tmp_path / "index", follow_links=True)
    assert (built["pictures"], built["names"]) == (PICTURES + 2, PICTURES + 3)


def test_loops_of_links_end_and_folders_are_visited_once(tmp_path):
    add_picture(tmp_path / "photos/a/0.png", 0)
    add_picture(tmp_path / "photos/.store/1.png", 1)
    add_picture(tmp_path / "other/2.png", 2)
    for link, target in {"a/up": "..", "a/self": ".", "0_again": "a", "kept": ".store"}.items():
        (tmp_path / "photos" / link).symlink_to(target)
    (tmp_path / "other/back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/other").symlink_to(tmp_path / "other")
    (tmp_path / "door").symlink_to(tmp_path / "photos")  # the folder itself may be reached by a link
    inside = ["a/0.png", "kept/1.png"]
    for folder in ("photos", "door"):
        pictures, refused = find_pictures(tmp_path / folder)
        assert pictures == inside and list(refused) == ["other"]
        assert find_pictures(tmp_path / folder, follow_links=True) == ([*inside, "other/2.png"], {})


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    add_picture(tmp_path / "a/0.png", 0)
    add_picture(tmp_path / "b/1.png", 1)
    listing = os.scandir

    def scandir(place):
        if str(place).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return listing(place)

    monkeypatch.setattr(mpclip.data.picture_folder.os, "scandir", scandir)
    assert find_pictures(tmp_path) == (["b/1.png"], {"a": "cannot be listed: Permission denied"})


# Size


def test_large_pictures_are_named_with_their_size_or_allowed(model, photos, tmp_path):
    PIL.Image.new("1", (20_000, 6_000)).save(photos / "panorama.png")
    told = r"'panorama\.png' \(120 megapixels, more than max_megapixels=90 allows: set it higher to use the picture\)"
    with pytest.warns(UserWarning, match=told):
        assert build_index(model, str(photos), tmp_path / "index")["pictures"] == PICTURES
    PIL.Image.new("1", (200, 60)).save(photos / "panorama.png")
    with pytest.warns(UserWarning, match=r"\(0\.012 megapixels, more than max_megapixels=0\.01 allows"):
        build_index(model, str(photos), tmp_path / "index", max_megapixels=0.01)
    assert build_index(model, str(photos), tmp_path / "index", max_megapixels=0.012)["embedded"] == 1
    with pytest.raises(ValueError, match="max_megapixels=0"):
        build_index(model, str(photos), tmp_path / "index", max_megapixels=0)


def test_the_limit_holds_within_its_block_alone():
    before = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.new("1", (1000, 500)).save(small := io.BytesIO(), "PNG")
    with pixel_limit(0.4), pytest.raises(PIL.Image.DecompressionBombWarning):
        PIL.Image.open(small)
    assert before == PIL.Image.MAX_IMAGE_PIXELS
    assert PIL.Image.open(small).size == (1000, 500)


def test_a_training_set_reads_what_it_allows(photos, monkeypatch):
    """Pillow's own limit, which holds when pictures are read again, follows the option."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 5_000)
    PIL.Image.new("1", (200, 60)).save(photos / "panorama.png")
    (photos / "metadata.csv").write_text("file_name,split,caption\n00.png,train,a\npanorama.png,train,b\n")
    with pytest.warns(UserWarning, match=r"1 of 2 rows .*panorama\.png \(0\.012 megapixels, more than max_megapixels=0\.01"):
        load_image_text(photos, "train", max_megapixels=0.01)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 5_000)
    rows = load_image_text(photos, "train", max_megapixels=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [picture.size for picture in rows["image"][:]] == [(60, 48), (200, 60)]


def test_few_large_pictures_wait_in_memory(monkeypatch):
    """However large the batch, no more pictures are read ahead, nor wait to be embedded, than the memory is meant to hold."""
    for module in (mpclip.encoding.decoding, mpclip.search.embed):
        monkeypatch.setattr(module, "PIXELS_AHEAD", 5_000)
    waiting, most, lock = set(), [], threading.Lock()
    monkeypatch.setattr(mpclip.search.embed, "thumbnail", lambda picture, side: b"")
    names = [str(i) for i in range(40)]

    def content(name: str) -> bytes:
        PIL.Image.new("RGB", (50, 20), (int(name), 0, 0)).save(written := io.BytesIO(), "PNG")
        with lock:
            waiting.add(name)
            most.append(len(waiting))
        return written.getvalue()

    def embedded(self) -> None:
        waiting.difference_update(name for name, _ in self._waiting)
        self._waiting.clear()

    monkeypatch.setattr(ChunkWriter, "_embed", embedded)
    writer = ChunkWriter(None, SimpleNamespace(index=Path("nowhere")), batch_size=64)
    pictures = SimpleNamespace(content=content, stamps=dict.fromkeys(names, ""))
    keys, unreadable = embed_pictures(pictures, names, set(), writer)
    assert len(keys) == 40 and not unreadable and not waiting
    assert max(most) < 20  # five that are read, six that wait, and those in work; without the limit all forty
