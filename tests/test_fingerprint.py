"""Fingerprints and dates of checkpoints: what they tell apart, and what they do not."""

import json
import os
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from conftest import make_model, make_processor, make_tokenizer

from modeling_mpclip import MPCLIPModel
from mpclip.encoding import fingerprint
from mpclip.encoding.fingerprint import file_stamps, model_fingerprint, weights_fingerprint


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    make_processor(make_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def restart(monkeypatch):
    """A call makes this program one that starts now."""

    def now() -> None:
        monkeypatch.setattr(fingerprint, "STARTED", time.time_ns())
        time.sleep(0.02)  # the dates of files come from a clock that ticks every few milliseconds

    return now


def test_fingerprints_of_copies_are_equal_and_of_changes_not(checkpoint, tmp_path):
    model = MPCLIPModel.from_pretrained(checkpoint)
    found = model_fingerprint(str(checkpoint), model)
    model.save_pretrained(tmp_path / "copy")
    make_processor(make_tokenizer()).save_pretrained(tmp_path / "copy")
    assert model_fingerprint(str(tmp_path / "copy"), MPCLIPModel.from_pretrained(tmp_path / "copy")) == found
    assert model_fingerprint(str(checkpoint), MPCLIPModel.from_pretrained(checkpoint, dtype=torch.bfloat16)) != found
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert model_fingerprint(str(checkpoint), model) != found


def test_the_fingerprint_of_an_index_built_before_stays_valid(tmp_path):
    """The definition, written out: a change of it would make every index refuse its model."""
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "float32", "a": {"_name_or_path": "x", "b": 1}}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 4}))
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    expected = "055916815ada253603041a0c5a27b8602d3647f30c562fc553bf6eb179dda620"
    assert model_fingerprint(str(tmp_path), model) == expected


def test_dates_tell_a_changed_file(checkpoint, restart):
    restart()
    before = file_stamps(str(checkpoint))
    assert before["transformers"] == [transformers.__version__]
    assert set(before) - {"transformers"} == {str(path) for path in checkpoint.iterdir()}
    assert file_stamps(str(checkpoint)) == json.loads(json.dumps(before)) == before
    os.utime(checkpoint / "model.safetensors", ns=(0, 0))
    restart()
    assert file_stamps(str(checkpoint)) != before


def test_files_written_after_the_start_tell_nothing(checkpoint, restart):
    """The model in memory may be of the files that were there before."""
    restart()
    assert file_stamps(str(checkpoint))
    (checkpoint / "config.json").touch()
    assert file_stamps(str(checkpoint)) == {}


def test_an_adapters_dates_are_also_those_of_its_base(checkpoint, tmp_path, restart):
    (adapter := tmp_path / "adapter").mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(checkpoint)}))
    restart()
    found = file_stamps(str(adapter))
    assert found.keys() > file_stamps(str(checkpoint)).keys() and str(adapter / "adapter_config.json") in found
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "nobody/nothing"}))
    restart()
    assert file_stamps(str(adapter)) == {}


def test_of_a_hub_id_the_cached_snapshot_counts(checkpoint, restart, monkeypatch):
    restart()
    cached = {("you/model", "config.json"): str(checkpoint / "config.json")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: cached.get((name, file)))
    assert file_stamps("you/model") == file_stamps(str(checkpoint)) != {}
    assert file_stamps("you/other") == {}


def test_saved_weights_have_a_fingerprint_of_their_own(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    one = weights_fingerprint(tmp_path / "one")
    assert len(one) == 64 and one == weights_fingerprint(tmp_path / "shards")
    with torch.no_grad():
        model.text_projection.weight[0, 0, 0] += 1e-3
    model.save_pretrained(tmp_path / "other")
    assert weights_fingerprint(tmp_path / "other") != one
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    assert weights_fingerprint(tmp_path / "shards") is None and weights_fingerprint("me/nowhere") is None


def test_a_checkpoint_saved_before_it_named_its_pipelines_is_the_same_model(checkpoint):
    model = MPCLIPModel.from_pretrained(checkpoint)
    now = model_fingerprint(str(checkpoint), model)
    config = json.loads((checkpoint / "config.json").read_text())
    del config["custom_pipelines"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert model_fingerprint(str(checkpoint), model) == now
