"""The app's actions, what it refuses to read, and the Space that it writes; the page itself is in test_app_page.py."""

import asyncio
import io
import json
import shutil
import struct
import zlib

import fresh_process
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from search_fixtures import PICTURES, WEIGHTS, K, add_picture
from torch.nn.functional import normalize

from eval.class_templates import OURS
from mpclip.app import actions
from mpclip.app.__main__ import main
from mpclip.app.collection import open_collections, short_names
from mpclip.app.guard import MAX_BODY, Guard, holds_address, names_address
from mpclip.app.uploads import MAX_BYTES, read_upload
from mpclip.maps.drawing import colour_scale, heat_over
from mpclip.maps.prompt_maps import prompt_maps
from mpclip.search.build import build_index

pytest_plugins = ["search_fixtures"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Indexes of the app go here, and not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Photos, of which some have captions."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for i in range(PICTURES):
        add_picture(folder / f"{i}.png", i)
        rows.append({"file_name": f"{i}.png", "split": "test", "captions": [f"photo {i}"] if i % 2 else []})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ATTRIBUTION.md").write_text("by the tests")
    return folder


@pytest.fixture(scope="module")
def one(model, shown):
    (opened,) = open_collections([model], str(shown), "test", "float32")
    return opened


def embeddings(one, names: list[str]) -> torch.Tensor:
    """(n, K, D/K), without the index."""
    pictures = [one.picture(name) for name in names]
    return normalize(one.encoder.embed_pictures(pictures), dim=1).unflatten(1, (K, -1))


def test_a_search_is_the_weighted_sum_over_the_first_prompts(one):
    picture = one.picture(next(iter(one.source.stamps)))
    for prompts in (1, 2, K):
        hits = actions.find(one, " a street ", picture, ["a dog", "rain"], WEIGHTS, prompts, top=PICTURES)
        query = one.encoder.embed_queries(["a street"], [picture], ["a dog", "rain"])[0].unflatten(0, (K, -1))  # (K, D/K)
        parts = (embeddings(one, [hit.picture for hit in hits]) * query).sum(dim=2) * torch.tensor(WEIGHTS)  # (I, K)
        scores = parts[:, :prompts].sum(dim=1)
        assert torch.allclose(torch.tensor([hit.score for hit in hits]), scores, atol=1e-5)
        assert len(hits) == PICTURES and scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_what_cannot_be_searched_is_told(one):
    told = {
        "nothing to look for": {"text": "  "},
        "9 texts to leave out; at most 8": {"text": "a", "exclude": ["b"] * 9},
        "1,001 characters; at most 1,000": {"text": "a" * 1001},
        "weight 0": {"text": "a", "weights": [0, 0, 1], "prompts": 2},
        "4 prompts; this model has 3": {"text": "a", "prompts": 4},
        "49 pictures; expected 1 to 48": {"text": "a", "top": 49},
        "nothing is left to search for": {"text": "a cat", "exclude": ["a cat"]},
    }
    for message, query in told.items():
        with pytest.raises(ValueError, match=message):
            actions.find(one, **query)


def test_a_hit_has_a_line_of_words(one):
    hits = actions.find(one, "a street", top=PICTURES)
    lines = [line for _, line in actions.captioned(hits)]
    assert lines[0].startswith(f"1 · {hits[0].score:.3f} · ")
    assert any("photo 3" in line for line in lines) and any("0.png" in line for line in lines)
    small = PIL.Image.open(io.BytesIO(actions.captioned(hits)[0][0]))
    assert small.format == "JPEG"


def test_maps_are_those_of_the_command(one):
    hit = actions.find(one, "a street", top=1)[0]
    shown = actions.maps_of(one, hit, "a dog", "value")
    model = one.encoder.encoder
    found = prompt_maps(model.model, model.processor, "a dog", image=one.picture(hit.picture), kind="value")
    assert len(shown) == 2 + K
    assert f"cosine {found.score:.3f}" in shown[0][1] and np.array_equal(shown[0][0], found.pictures[0])
    for k, (picture, line) in enumerate(shown[2:]):
        assert line == f"{one.prompts()[k]} {found.shares[k]:+.3f}"
        assert np.array_equal(picture, heat_over(found.pictures[0], found.maps[0, k], *colour_scale(found.maps)))
    with pytest.raises(ValueError, match="Type a text"):
        actions.maps_of(one, hit, " ")


def test_classes_are_compared_by_the_sentences_and_the_scale_of_the_model(one):
    picture, names = one.picture(next(iter(one.source.stamps))), ["cat", "dog", "street"]
    found = actions.classify(one, picture, names)
    model = one.encoder.encoder
    classes = torch.stack([model.texts([t.replace("{}", name) for t in OURS]).mean(dim=0) for name in names])
    cosines = model.images([picture]) @ normalize(classes, dim=1).T  # (1, C)
    scale = model.model.logit_scale.log_scale.exp()
    assert list(found) == names and sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == pytest.approx((cosines * scale).softmax(dim=1)[0].tolist(), abs=1e-5)
    assert actions.class_names("a cat, a dog\n\n a cat \n") == ["a cat", "a dog"]
    with pytest.raises(ValueError, match="1 class names; expected 2 to 100"):
        actions.class_names("cat,")


def test_a_model_of_the_sigmoid_loss_gives_each_class_its_own_probability(one):
    encoder = one.encoder.encoder
    sigmoid = type(encoder)(make_model(num_prompts=K, loss="sigmoid", logit_bias_init_value=-1.0), encoder.processor)
    cosines = torch.tensor([0.9, 0.8])
    expected = sigmoid.model.logit_scale(cosines).sigmoid().tolist()
    assert actions.probabilities(sigmoid, cosines).tolist() == expected and sum(expected) > 1.5


# Collections ------------------------------------------------------------------------------------------------------


def test_the_index_is_built_once_and_kept(one, model, shown, embedded):
    (again,) = open_collections([model], str(shown), "test", "float32")
    assert not embedded and again.size == one.size == PICTURES
    assert again.prompts() == one.prompts() and len(again.prompts()) == K
    assert again.captions(3) and set(again.captions(100)) == {f"photo {i}" for i in range(1, PICTURES, 2)}


def test_two_models_and_an_index_of_the_first(model, photos, tmp_path):
    tokenizer = make_tokenizer()
    other = tmp_path / "other" / "model"
    make_model(num_prompts=1, tokenizer=tokenizer, templates=["This image means:"]).save_pretrained(other)
    make_processor(tokenizer).save_pretrained(other)
    build_index(model, str(photos), tmp_path / "index")
    first, second = open_collections([model, str(other)], str(tmp_path / "index"))
    assert first.size == second.size == PICTURES and first.name != second.name
    assert not second.prompts() and actions.find(second, "a street", top=2)
    with pytest.raises(ValueError, match="is an index, which knows its split"):
        open_collections([model], str(tmp_path / "index"), "test")
    with pytest.raises(ValueError, match="no model to search"):
        open_collections([], str(photos))


def test_pictures_that_are_gone(model, photos, tmp_path):
    build_index(model, str(photos), tmp_path / "index")
    (one,) = open_collections([], str(tmp_path / "index"))
    hit = actions.find(one, "a street", top=1)[0]
    (photos / hit.picture).unlink()
    with pytest.raises(ValueError, match="cannot be read any more") as error:
        one.picture(hit.picture)
    assert str(photos) not in str(error.value)
    with pytest.raises(ValueError, match=r"There is no picture '../secret.png'"):
        one.picture("../secret.png")
    shutil.rmtree(photos)
    (one,) = open_collections([], str(tmp_path / "index"))
    assert actions.find(one, "a street", top=1) and one.captions(4) == []
    with pytest.raises(ValueError, match="only their thumbnails"):
        one.picture(hit.picture)


def test_names_of_models_tell_them_apart(tmp_path):
    for name in ("a/model", "b/model"):
        (tmp_path / name).mkdir(parents=True)
    paths = [str(tmp_path / name) for name in ("a/model", "b/model")]
    assert short_names(paths) == ["a/model", "b/model"] and short_names(["you/model"]) == ["you/model"]
    assert short_names([paths[0], paths[0]]) == ["model", "model (2)"]


# What is refused --------------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says it has this many pixels, in a few bytes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_uploads_are_read_upright_and_bounded(tmp_path):
    photo = PIL.Image.new("RGB", (30, 20), "red")
    exif = photo.getexif()
    exif[0x0112] = 6  # turned by a quarter
    photo.save(tmp_path / "photo.jpg", exif=exif)
    assert read_upload(tmp_path / "photo.jpg").size == (20, 30)

    limit = PIL.Image.MAX_IMAGE_PIXELS
    for number, (width, height) in enumerate([(9000, 9000), (60000, 60000)]):  # of which Pillow itself allows the first
        (tmp_path / f"{number}.png").write_bytes(png_of(width, height))
        with pytest.raises(ValueError, match="more than 64 megapixels"):
            read_upload(tmp_path / f"{number}.png")
    assert limit == PIL.Image.MAX_IMAGE_PIXELS

    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:300])
    for name in ("script.png", "text.png", "half.jpg"):
        with pytest.raises(ValueError, match="not a whole picture"):
            read_upload(tmp_path / name)
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match=r"has 16\.0 MB; at most 16 MB"):
        read_upload(tmp_path / "large.png")


def test_what_makes_a_server_fetch_is_noticed():
    assert names_address("/gradio_api/file=https://example.com/a.png") and names_address("/gradio_api/file/http%3A//a")
    assert not names_address("/gradio_api/file=/tmp/gradio/a:b.png") and not names_address("/config")
    data = {"data": ["https://a.b is a text", {"path": "/tmp/a.png", "url": "http://localhost/a"}]}
    assert not holds_address(json.dumps(data).encode())
    data["data"].append([{"nested": {"path": " HTTPS://example.com/a.png"}}])
    assert holds_address(json.dumps(data).encode()) and not holds_address(b"\xff no JSON")


async def call(method: str, body: list[bytes]) -> list:
    """What the guard answers, and what arrives behind it."""
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in body] + [{"type": "http.request"}]
    got = []

    async def app(scope, receive, send):
        got.append(await receive())

    async def receive():
        return waiting.pop(0)

    async def send(message):
        got.append(message.get("status", message.get("body")))

    await Guard(app)({"type": "http", "method": method, "path": "/gradio_api/queue/join"}, receive, send)
    return got


def test_the_guard_passes_bodies_on_whole_and_refuses_large_ones():
    (passed,) = asyncio.run(call("POST", [b'{"data":', b' ["a"]}']))
    assert passed == {"type": "http.request", "body": b'{"data": ["a"]}', "more_body": False}
    assert asyncio.run(call("POST", []))[0]["body"] == b""
    assert asyncio.run(call("POST", [b"0" * 2**20] * (MAX_BODY // 2**20 + 1)))[0] == 413
    assert asyncio.run(call("POST", [b'{"path": "http://10.0.0.1/"}']))[0] == 403


def test_wrong_command_lines(model, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--images", "x", "--model", "a", "b", "--model", "c"])
    assert stopped.value.code == 2 and "3 models; expected at most 2" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no folder"):
        main(["--images", str(tmp_path / "none"), "--model", model, "--space", str(tmp_path / "space")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(SystemExit, match="is not an empty folder"):
        main(["--images", str(tmp_path), "--model", model, "--space", str(tmp_path / "full")])


# A Space ----------------------------------------------------------------------------------------------------------

BUILDS = """
import os, pathlib, runpy, sys
sys.path.insert(0, os.getcwd())
import mpclip, modeling_mpclip, eval
here = pathlib.Path.cwd()
assert all(here in pathlib.Path(package.__file__).parents for package in (mpclip, modeling_mpclip, eval))
made = runpy.run_path("app.py")
labels = [part["props"].get("label") for part in made["demo"].get_config_file()["components"]]
print("What to find" in labels, made["demo"].title)
"""


def test_a_space_builds_its_page_from_its_own_files(model, shown, tmp_path, capsys):
    pytest.importorskip("gradio", reason='needs gradio: pip install "mpclip[app]"')
    space = tmp_path / "space"
    main(["--images", str(shown), "--split", "test", "--model", model, "--space", str(space)])
    assert "hf upload you/name" in capsys.readouterr().out
    readme = (space / "README.md").read_text()
    front = readme.split("---")[1]
    assert "sdk: gradio" in front and "app_file: app.py" in front and "license: apache-2.0" in front
    assert "pictures/ATTRIBUTION.md" in readme and (space / "pictures/ATTRIBUTION.md").exists()
    assert str(tmp_path) not in "".join(file.read_text() for file in (space / "README.md", space / "app.py"))
    lines = (space / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in lines)
    assert {"gradio", "torch", "transformers", "faiss-cpu"} <= {line.partition("==")[0] for line in lines}
    assert not list(space.rglob("*.bin")) and not list(space.rglob("__pycache__"))

    run = fresh_process.run(BUILDS, cwd=space)
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"True MP-CLIP: {PICTURES} pictures" in run.stdout
