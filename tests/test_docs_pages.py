"""Every snippet and command of the pages of docs/ runs as it stands, in one folder per page, with tiny models."""

import json
import shutil

import pytest
from conftest import COLORS
from document_snippets import ROOT, blocks, commands, make_models, use_towers
from PIL import Image

from mpclip.cli import main

RUN = ["start", "train", "train_python", "search", "serve", "faq"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder as after `make demo`, with photos of one's own beside it."""
    folder = tmp_path_factory.mktemp("prepared")
    make_models(folder)
    scenes, photos = folder / "runs/demo/scenes/images", folder / "my_photos"
    for place in (scenes, photos):
        place.mkdir(parents=True)
    for i, color in enumerate(COLORS[:8]):
        Image.new("RGB", (32, 32), color).save(scenes / f"{i}.png")
    lines = []
    for i in range(20):
        Image.new("RGB", (32, 32), (12 * i, 240 - 12 * i, 7 * i)).save(photos / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "captions": [f"square {i}", f"the square of number {i}"]})
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.parametrize("page", RUN)
def test_the_page_runs_as_it_stands(page, prepared, tmp_path, monkeypatch, datasets_cache):
    if page == "serve":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    if page == "search":
        pytest.importorskip("faiss")
    folder = tmp_path / page
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    use_towers(folder, monkeypatch)
    monkeypatch.setenv("MPCLIP_CACHE", str(tmp_path / "cache"))
    found = {}
    for language, code in blocks(f"docs/{page}.md", "python", "bash"):
        if language == "bash":
            for words in commands(code):
                main(words)
        else:
            exec(compile(code, f"docs/{page}.md", "exec"), names := {})
            found |= names
    CHECKS[page](found, folder)


def check_start(names, folder):
    assert names["segments"].shape == (1, 6, 2) and names["first"].shape == (1, 4)
    assert names["embeds"].norm().item() == pytest.approx(1)
    assert names["parts"].sum().item() == pytest.approx((names["text"] * names["picture"]).sum().item())


def check_train(names, folder):
    assert len(names["rows"]) == 20
    assert json.loads((folder / "result.json").read_text())["split"] == "train[90%:]"
    assert (folder / "found.png").exists() and "result.json" not in (card := (folder / "runs/mine/README.md").read_text())
    assert "my_photos" in card


def check_train_python(names, folder):
    assert 0 <= names["metrics"]["eval_mean_recall"] <= 100
    assert names["whole"].item() == pytest.approx(names["cached"].item(), abs=1e-5)
    assert names["output"].diversity_loss is not None
    assert (folder / "runs/loop/model.safetensors").exists() and (folder / "runs/loop/tokenizer.json").exists()


def check_search(names, folder):
    hits = names["answers"][0].hits
    assert names["told"]["pictures"] == 8 and len(hits) == 5
    assert hits[0].score == pytest.approx(sum(hits[0].aspects), abs=1e-5)
    assert len(json.loads((folder / "found.json").read_text())) == 2 and (folder / "found.html").exists()


def check_serve(names, folder):
    from mpclip.encoding import load_encoder

    whole = load_encoder("runs/demo/multi_prompt")
    assert names["embeds"] == pytest.approx(whole.texts(["a small cat left of a big dog", "a red car"]).numpy(), abs=1e-4)
    assert names["queries"].numpy() == pytest.approx(whole.texts(["a cat on a pink background"]).numpy(), abs=1e-5)


def check_faq(names, folder):
    assert type(names["model"]).__module__ == "modeling_mpclip.modeling_mpclip"  # the package's code, not the checkpoint's


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def test_every_page_with_python_is_run():
    """A new page that has Python is added above, or to the tests of what it is about."""
    # tests/test_evaluate_modules.py, tests/test_mteb.py and tests/test_embed*.py
    elsewhere = {"evaluation/metrics", "evaluation/mteb", "embedding_many"}
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in (ROOT / "docs").rglob("*.md")}
    with_python = {page for page in pages if blocks(f"docs/{page}.md", "python")}
    assert with_python - elsewhere <= set(RUN), "add the page to RUN"
