"""Checkpoints from strangers: what asks for memory, names files elsewhere, or holds pickles is refused before it is read."""

import json
import os
import pickle
import re
import resource
import shutil
import struct

import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer, save_towers
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from modeling_mpclip.checkpoint_guard import no_larger_than_files
from mpclip.training.checkpoints import fault_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = make_tokenizer()
    make_model(tokenizer=tokenizer).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


def rewrite(file, edit) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def memory() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part, name, value, message",
    [
        (None, "pooling_width", 2**20, r"asks for [\d,]+ or more values .* its files hold [\d,]+ in 85"),  # 10**12 weights
        ("text_config", "vocab_size", 2**27, "asks for 4,294,967,296 or more values"),
        ("text_config", "hidden_size", 10**6, "asks for"),
        ("text_config", "num_hidden_layers", 9_000, "Config and weights belong to different models"),
        ("vision_config", "image_size", 10**6, "asks for"),
        ("text_config", "num_hidden_layers", 10**12, "num_hidden_layers=1000000000000 is out of range: expected 1 to 10000"),
        (None, "num_prompts", 10**9, "num_prompts=1000000000 is out of range"),
        (None, "templates", ["[APT-999999999]"] * 3, r"contains \[APT-999999999\], which names no adaptive token"),
        (
            None,
            "prompt_tree",
            {"token_ids": [1] * 10**4, "parents": [-1] * 10**4},
            "it has 10000 tokens, and 8192 is the limit",
        ),
    ],
)
def test_a_config_that_asks_for_far_more_than_the_files_hold(checkpoint, part, name, value, message):
    def ask(config):
        (config[part] if part else config)[name] = value

    rewrite(checkpoint / "config.json", ask)
    before = memory()
    for load in (MPCLIPModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(checkpoint)
    assert memory() - before < 2**28


def test_a_tower_is_held_to_its_files_too(tmp_path):
    save_towers(tmp_path)
    rewrite(tmp_path / "text" / "config.json", lambda config: config.update(num_hidden_layers=5_000))
    with pytest.raises(ValueError, match=rf"The config of {tmp_path}/text asks for"):
        MPCLIPModel.from_pretrained_towers(
            str(tmp_path / "text"),
            str(tmp_path / "vision"),
            num_prompts=3,
            projection_dim=12,
            pooling_width=16,
            pooling_heads=2,
        )


def test_the_limit_holds_within_its_block_and_for_this_thread_alone(checkpoint):
    import threading

    with no_larger_than_files(str(checkpoint)):
        other = threading.Thread(target=lambda: built.append(torch.nn.Linear(2**20, 2**14, device="meta")))
        built = []
        other.start()
        other.join()
        assert built
        with pytest.raises(ValueError, match="asks for"):
            torch.nn.Linear(2**20, 2**14, device="meta")
    torch.nn.Linear(2**20, 2**14, device="meta")


HEADERS = {
    "longer than the file": struct.pack("<Q", 2**40),
    "no JSON": struct.pack("<Q", 8) + b"{{{{{{{{",
    "a tensor behind the end": {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    "a shape that its bytes do not have": {"w": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 4]}},
    "offsets that go back": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}},
    "two tensors in one place": {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"},
    "no such number type": {"w": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}},
}


@pytest.mark.parametrize("lie", HEADERS)
def test_a_header_that_lies_is_named(checkpoint, lie):
    header, file = HEADERS[lie], checkpoint / "model.safetensors"
    if isinstance(header, dict):
        text = json.dumps(header).encode()
        header = struct.pack("<Q", len(text)) + text
    file.write_bytes(header + b"\0" * 4)
    before = memory()
    with pytest.raises(OSError, match=re.escape(f"{file} is cut short or damaged")):
        MPCLIPModel.from_pretrained(checkpoint)
    assert memory() - before < 2**28


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "vocab.txt"])
def test_a_text_file_of_a_gigabyte_is_not_read(checkpoint, name):
    with open(checkpoint / name, "ab") as file:
        file.truncate(2**30)  # it takes no place on the disk
    before = memory()
    for load in (MPCLIPModel.from_pretrained, MPCLIPProcessor.from_pretrained):
        with pytest.raises(OSError, match=rf"{name} has 1,074 MB, .*It is not read"):
            load(checkpoint)
    assert memory() - before < 2**28


# Files elsewhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", "sub/a.safetensors", "pytorch_model.bin", 7])
def test_an_index_names_files_beside_it_alone(checkpoint, tmp_path, shard):
    shutil.copy(checkpoint / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (checkpoint / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": {"text_projection.weight": shard}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=rf"index\.json names {re.escape(repr(shard))}\. The files of an index lie beside it"):
        MPCLIPModel.from_pretrained(checkpoint)


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": 3}'])
def test_an_index_that_is_none(checkpoint, index):
    (checkpoint / "model.safetensors.index.json").write_text(index)
    with pytest.raises(OSError, match=r"index\.json is no index of weights"):
        MPCLIPModel.from_pretrained(checkpoint)


def test_an_adapter_whose_base_is_itself_ends(checkpoint):
    (checkpoint / "config.json").unlink()
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(checkpoint)}))
    with pytest.raises((OSError, ValueError)):
        MPCLIPModel.from_pretrained(checkpoint)


# Pickles -----------------------------------------------------------------------------------------------------------------


class Bomb:
    """Leaves a folder where it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


PICKLES = (
    "pytorch_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "scaler.pt",
    "adapter.bin",
)


def test_the_marker_shows_an_unpickling(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_nothing_of_a_checkpoint_is_unpickled(checkpoint, tmp_path):
    marker = tmp_path / "marker"
    for i, name in enumerate(PICKLES):
        if i % 2:
            (checkpoint / name).write_bytes(pickle.dumps(Bomb(marker)))
        else:
            torch.save(Bomb(marker), checkpoint / name)
    MPCLIPModel.from_pretrained(checkpoint)
    AutoProcessor.from_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    for load in (MPCLIPModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match=r"model\.safetensors"):
            load(checkpoint)
    assert not marker.exists()


def test_a_tower_that_is_a_pickle_runs_nothing(tmp_path):
    save_towers(tmp_path)
    (tmp_path / "text" / "model.safetensors").unlink()
    torch.save({"norm.weight": Bomb(tmp_path / "marker")}, tmp_path / "text" / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|safetensors"):
        MPCLIPModel.from_pretrained_towers(str(tmp_path / "text"), str(tmp_path / "vision"), num_prompts=3, projection_dim=12)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_state_of_a_training_that_runs_code_is_not_opened(checkpoint, tmp_path, name):
    for other in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": {}, "numpy": torch.zeros(3).numpy()}, checkpoint / other)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 1}')
    assert fault_of(checkpoint) is None
    torch.save(Bomb(tmp_path / "marker"), checkpoint / name)
    assert re.search(rf"its {name} would run (posix|os)\.mkdir when it is read", fault_of(checkpoint))
    (checkpoint / name).write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    assert fault_of(checkpoint) == f"its {name} is cut short or damaged"
    assert not (tmp_path / "marker").exists()


def test_a_flipped_byte_in_a_state_is_found(checkpoint):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"moments": torch.arange(1000.0)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 1}')
    content = bytearray((checkpoint / "optimizer.pt").read_bytes())
    content[content.index(torch.arange(100.0, 110.0).numpy().tobytes())] ^= 1
    (checkpoint / "optimizer.pt").write_bytes(content)
    assert fault_of(checkpoint) == "its optimizer.pt is cut short or damaged"
