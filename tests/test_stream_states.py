"""Cached states of a stream: equal to live ones, a part per shard, filled by several processes, of the size that is told."""

import io
import json
import tarfile
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import arguments, pretrained
from filelock import FileLock
from tiny_pictures import records, write_folder

import train_hf
from modeling_mpclip import MPCLIPModel
from mpclip.data.reading import ReadingOptions
from mpclip.data.shard_writing import write_shards
from mpclip.data.streaming import open_shards
from mpclip.files import read_json
from mpclip.training import state_costs, stream_states
from mpclip.training.command_line import parse_options
from mpclip.training.run import build_model
from mpclip.training.tuning import prepare_tuning

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def shards(tmp_path):
    """Twelve pictures with two captions each, in three shards."""
    write_shards(str(write_folder(tmp_path / "data", records(12))), "train", tmp_path / "shards", shards=3)
    return tmp_path / "shards"


def streamed(folder, shards, out, *extra: str) -> list[str]:
    stream = ("--streaming", "true", "--dataset", str(shards), "--shuffle_buffer", "4", "--eval_split", "none")
    return arguments(folder, out, *stream, *extra)


@pytest.fixture
def states(folder, shards, tmp_path):
    """Computes or finds the states: () -> (shards of states, collator); `computed` has the samples of each call."""
    options = parse_options(streamed(folder, shards, tmp_path / "out", "--negation_weight", "1.0"))
    model, processor = build_model(options.model, options.data.max_text_length)
    prepare_tuning(model, options.model)

    def cache(**changed):
        options.data.__dict__.update(changed)
        source = open_shards(str(shards), "train", ReadingOptions())
        return stream_states.cache_stream_states(
            model, processor, source, options.data, images=True, negated=True, device="cpu", precision="float32"
        )

    cache.model, cache.processor = model, processor
    return cache


@pytest.fixture
def computed(monkeypatch):
    """The shards whose parts are computed from here on."""
    names, real = [], stream_states._readable
    monkeypatch.setattr(
        stream_states, "_readable", lambda shards, shard, *rest: names.append(shards.names[shard]) or real(shards, shard, *rest)
    )
    return names


@pytest.mark.parametrize("vision_tuning", ["frozen", "full"])
def test_training_on_float32_states_equals_live_training(folder, shards, tmp_path, vision_tuning):
    """The same order and captions, so the same weights up to rounding; with frozen pictures no tar is read any more."""
    shared = ("--vision_tuning", vision_tuning, "--negation_weight", "0.5", "--adam_epsilon", "1e-4", "--num_train_epochs", "3")
    shared += ("--words", "true")
    train_hf.main(streamed(folder, shards, tmp_path / "live", *shared))
    cache = ("--cache_states", "true", "--cache_format", "float32", "--cache_dir", str(tmp_path / "cache"))
    train_hf.main(streamed(folder, shards, tmp_path / "cached", *shared, *cache))
    one, other = (MPCLIPModel.from_pretrained(tmp_path / name).state_dict() for name in ("live", "cached"))
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=1e-4, msg=name)


def test_each_process_computes_what_no_other_one_has_locked(states, computed, tmp_path):
    found, _ = states()
    folder, whole = found.folder, [part.read_bytes() for part in sorted(found.folder.glob("*.arrow"))]
    assert computed == ["00000.tar", "00001.tar", "00002.tar"] and found.total == 12
    for file in [*folder.glob("*.arrow"), *folder.glob("0*.json"), folder / "manifest.json"]:
        file.unlink()
    (folder / ".00002.arrow.77.part").write_bytes(b"left by a killed process")
    computed.clear()
    other = FileLock(folder / "00000.lock")
    with other:
        run = threading.Thread(target=states)
        run.start()
        deadline = time.monotonic() + 250
        while not (folder / "00002.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert computed == ["00001.tar", "00002.tar"]  # the first one waits for the other process
    run.join()
    assert computed == ["00001.tar", "00002.tar", "00000.tar"]
    assert [part.read_bytes() for part in sorted(folder.glob("*.arrow"))] == whole and not list(folder.glob(".*"))
    parts = read_json(folder / "manifest.json")["parts"]
    assert {name: (part["samples"], part["captions"]) for name, part in parts.items()} == dict.fromkeys(found.names, (4, 8))


def test_only_what_is_missing_or_has_changed_is_computed_again(states, computed, shards, tmp_path):
    found, _ = states()
    computed.clear()
    states()
    assert computed == []
    (found.folder / "00001.json").unlink()  # killed before it was written
    states()
    assert computed == ["00001.tar"]
    content = (shards / "00002.tar").read_bytes()
    (shards / "00002.tar").write_bytes(content)  # a new date alone
    states()
    assert computed == ["00001.tar"]
    (shards / "00002.tar").write_bytes(content.replace(b"a 9", b"a 8"))
    found, _ = states()
    assert computed == ["00001.tar", "00002.tar"]
    assert [sample.captions for sample in found.samples(2)][1] == ["a 8", "b 9"]
    part = found.folder / "00000.arrow"
    part.write_bytes(part.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"00000\.arrow is damaged. Delete it"):
        list(states()[0].samples(0))


def test_samples_that_cannot_be_read_have_no_states(states, shards, caplog):
    with tarfile.open(shards / "00001.tar", "a") as tar:
        for ending, content in {"jpg": b"no picture", "txt": b"a caption"}.items():
            member = tarfile.TarInfo(f"000010009.{ending}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found, _ = states()
    assert found.total == 12
    assert "1 samples that cannot be read: 00001.tar/000010009.jpg (not an image)" in caplog.text
    with pytest.raises(ValueError, match=r"000010009\.jpg \(not an image\)"):
        states(bad_images="fail", cache_format="int8")


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_the_bytes_of_states_are_those_that_are_told(states, format):
    found, _ = states(cache_format=format)
    config, processor = states.model.config, states.processor
    for sample in found.samples(0):
        tokens = [len(ids) for ids in processor.tokenizer(sample.captions)["input_ids"]]
        for cell, count in zip(sample.text_states, tokens, strict=True):
            told = state_costs.costs(config, processor, count, negated=True)["formats"][format]
            assert (len(cell), len(sample.image_states)) == (told["per_caption"], told["per_picture"])


def test_the_whole_file_is_hardly_larger(folder, tmp_path, states):
    """With pictures of a usual size; the rest is names, captions and what Arrow adds."""
    found, _ = states(cache_format="float32")
    held = sum(len(sample.image_states) + sum(map(len, sample.text_states)) for i in range(3) for sample in found.samples(i))
    size = sum(part["bytes"] for part in read_json(found.folder / "manifest.json")["parts"].values())
    assert held < size < 1.1 * held


def test_the_command_of_costs(folder, tmp_path, capsys):
    argv = ["--text_model", str(folder / "text"), "--vision_model", str(folder / "vision"), "--num_prompts", "3"]
    state_costs.main([*argv, "--captions", "5", "--text_tokens", "10", "--json", str(tmp_path / "costs.json")])
    printed, told = capsys.readouterr().out, json.loads((tmp_path / "costs.json").read_text())
    assert "| bfloat16 |" in printed and "a million pictures with 5 caption(s)" in printed
    of = told["formats"]["bfloat16"]
    assert of["per_caption"] == told["text"]["tokens"] * 32 * 2 and of["per_picture"] == 17 * 32 * 2
    assert of["per_million"] == 10**6 * (5 * of["per_caption"] + of["per_picture"])
    with pytest.raises(SystemExit, match="nowhere"):
        state_costs.main(["--vision_model", str(tmp_path / "nowhere")])


def test_the_page_has_the_table_of_the_command(capsys):
    for name in ("smollm2-135m", "efficientnet-lite0"):
        pretrained(name)
    state_costs.main([])
    root = Path(__file__).parent.parent
    table = capsys.readouterr().out.strip()
    assert table in (root / "docs/streaming.md").read_text()
    assert state_costs.table(read_json(root / "docs/cost/states.json")) == table


def test_parquet_has_no_states(folder, tmp_path):
    write_shards(str(write_folder(tmp_path / "data", records(8))), "train", tmp_path / "shards", shards=2, format="parquet")
    with pytest.raises(SystemExit, match="cache_states of a stream needs tars"):
        train_hf.main(streamed(folder, tmp_path / "shards", tmp_path / "out", "--cache_states", "true"))
