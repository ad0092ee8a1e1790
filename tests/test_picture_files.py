"""Strings that name picture files are pictures; texts stay texts; what looks like a picture and is none is refused."""

import base64
import functools
import http.server
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_helpers import IMAGES, load, save_checkpoint

from modeling_mpclip.picture_files import load_rgb


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save_checkpoint(tmp_path_factory.mktemp("sentence") / "checkpoint"))


FORMATS = ("PNG", "JPEG", "AVIF", "PPM", "JPEG2000", "TIFF", "PNG")
FILES = dict(zip(("a.png", "b.JFIF", "c.avif", "d.ppm", "e.jp2", "f g.tif", "h"), FORMATS, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_a_picture_file_is_a_picture_whatever_its_name(model, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    IMAGES[0].save(name, FILES[name])
    decoded = model.preprocess([Image.open(name)])["pixel_values"]
    for form in (name, str(tmp_path / name), tmp_path / name, {"image": name}, {"image": Path(name)}):
        assert torch.equal(model.preprocess([form])["pixel_values"], decoded)
    assert model.preprocess([{"text": name}])["input_ids"].tolist() == [model.tokenizer(name, truncation=True)["input_ids"]]


def test_a_name_of_a_picture_that_is_none_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.png").write_text("no picture")
    Path("cut.bmp").write_bytes(picture_bytes("BMP")[:200])
    Path("cut").write_bytes(picture_bytes("PNG")[:60])  # no ending, but its header is a picture's
    Path("folder.jpg").mkdir()
    missing = ["nowhere.jpg", "a/Nowhere.JPEG", "no where.jpg", "folder.jpg"]
    for name in [*missing, "x.heic", "x.avif", "x.jfif", "x.jp2", "x.ppm", "x.ico", Path("no where"), {"image": "nowhere"}]:
        shown = name["image"] if isinstance(name, dict) else name
        with pytest.raises(FileNotFoundError, match=rf"no image file '{shown}'\. If this is a text, pass {{'text': "):
            model.encode([name])
    for name in ("notes.png", "cut.bmp", "cut", Path("notes.png")):
        with pytest.raises(ValueError, match=rf"'{name}' is not a picture that Pillow can read .*pass {{'text': "):
            model.encode([name])
    for url in ("https://example.com/cat.png", "HTTP://example.com/img?id=3", "data:image/png;base64,AAAA", "s3://bucket/cat"):
        for form in (url, {"image": url}):
            with pytest.raises(ValueError, match=r"not fetched from URLs: .*pass {'text': "):
                model.encode([form])
    with pytest.raises(FileNotFoundError, match=r"no image file 'nowhere\.jpg'"):
        model.encode(["a dog", "nowhere.jpg"])


def test_texts_that_are_names_of_other_files_stay_texts(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tests").mkdir()
    Path("README.md").write_text("# P6 not a picture")
    Path("cat").write_bytes(bytes(range(64)))
    IMAGES[0].save("drawing", "EPS")  # Pillow identifies it, and would run another program to decode it
    captions = ["tests", "README.md", "cat", "drawing", "jpg", "e.g. a png", "a file that ends in .jpg", "data: a png"]
    captions += ["see http://example.com", "https://example.com is down", "two\nlines.jpg", "long " * 2000 + "a.jpg"]
    for text in captions:
        assert "input_ids" in model.preprocess([text]), text


def picture_bytes(form: str) -> bytes:
    IMAGES[0].save(written := io.BytesIO(), form)
    return written.getvalue()


def test_strings_that_pipelines_take(tmp_path):
    IMAGES[0].save(tmp_path / "photo", "PNG")
    pixels = np.asarray(IMAGES[0])
    encoded = base64.b64encode((tmp_path / "photo").read_bytes()).decode()
    wrapped = base64.encodebytes((tmp_path / "photo").read_bytes()).decode()
    for source in (tmp_path / "photo", str(tmp_path / "photo"), encoded, wrapped, f"data:image/png;base64,{encoded}", pixels):
        assert np.array_equal(load_rgb(source), pixels)
    with pytest.raises(ValueError, match="'no such file' is no picture: expected the path of a file, a URL, or base64"):
        load_rgb("no such file")


def test_a_url_keeps_its_transparency(tmp_path, monkeypatch):
    """transformers' own loader would drop the alpha channel."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert (np.asarray(load_rgb(f"{address}/clear.png?size=4", timeout=10)) == 255).all()
        with pytest.raises(OSError, match="404"):
            load_rgb(f"{address}/nowhere.png", timeout=10)
        server.shutdown()
