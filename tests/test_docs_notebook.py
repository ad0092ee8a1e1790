"""The notebook runs from top to bottom on a few photos with tiny towers, and pushes to a Hub of our own."""

import json
import shutil

import pytest
from conftest import COLORS, save_towers
from document_snippets import ROOT
from hub_standin import HubStandIn
from PIL import Image

NOTEBOOK = ROOT / "notebooks/own_photos.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, f"clear the outputs of {NOTEBOOK.name}"


def test_the_notebook_runs_from_photos_to_a_pushed_model(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the notebook is run by nbclient: pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="the notebook is run by nbclient: pip install nbclient ipykernel")
    for package in ("ipykernel", "faiss"):
        pytest.importorskip(package)
    save_towers(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = []
    for i, color in enumerate(COLORS):
        Image.new("RGB", (40, 40), color).save(photos / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "captions": [f"a {color} square", f"{color} all over"]})
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    given = {"TEXT_MODEL": "text", "VISION_MODEL": "vision", "PHOTOS": "photos", "RUN": "run", "QUERY": "a red square"}
    given |= {"BATCH": 4, "EPOCHS": 1, "REPOSITORY": "me/own-photos"}
    assert all(name in parameters.source for name in given)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with HubStandIn({"token-of-mine": "me"}) as hub:
        for name, value in hub.environment("token-of-mine").items():
            monkeypatch.setenv(name, value)
        resources = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=250, kernel_name="python3", resources=resources).execute()
        pushed = hub.repos["me/own-photos"].files()
    assert {"model.safetensors", "modeling_mpclip.py", "tokenizer.json", "README.md", "config.json"} <= set(pushed)
    assert not [name for name in pushed if name.startswith(("_", "checkpoint-")) or name.endswith((".bin", ".pt"))]
    assert "me/own-photos" in pushed["README.md"].decode() and "R@1" in pushed["README.md"].decode()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    assert len(pictures) == 3 + 1 + 4 + 1  # photos, what captions find, what the query finds, maps
    shutil.rmtree(tmp_path / "run")
