"""What `from_pretrained_towers` takes as a tower, and what it refuses with the way out."""

import builtins

import pytest
from conftest import arguments, save_towers
from transformers import BitsAndBytesConfig, GgufConfig

from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from modeling_mpclip.pretrained_towers import _refuse_quantised
from modeling_mpclip.source_names import refuse_missing_folder, tower_source
from mpclip.data import backbones
from mpclip.encoding import load_encoder
from mpclip.export.int8 import quantize
from mpclip.training import build_trainer, parse_options

SMALL = {"num_prompts": 3, "projection_dim": 12, "pooling_width": 16, "pooling_heads": 2}


@pytest.fixture
def towers(tmp_path, monkeypatch):
    """Two tiny towers, which are prepared as the packaged ones."""
    save_towers(tmp_path)
    folders = {"smollm2-135m": tmp_path / "text", "efficientnet-lite0": tmp_path / "vision"}
    monkeypatch.setattr(backbones, "prepare_backbone", folders.__getitem__)
    return tmp_path


@pytest.fixture
def without_mpclip(monkeypatch):
    """As where only the code of a checkpoint is at hand."""
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("mpclip."):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)


def test_packaged_towers_are_called_by_their_names_in_python(towers):
    model = MPCLIPModel.from_pretrained_towers("smollm2-135m", "efficientnet-lite0", **SMALL)
    processor = MPCLIPProcessor.from_pretrained_towers("smollm2-135m", "efficientnet-lite0", model.config.all_templates)
    by_folder = MPCLIPModel.from_pretrained_towers(towers / "text", str(towers / "vision"), **SMALL)
    assert model.text_model.embed_tokens.weight.equal(by_folder.text_model.embed_tokens.weight)
    assert model.config.adaptive_token_ids == processor.tokenizer.convert_tokens_to_ids(["[APT-1]", "[APT-2]", "[APT-3]"])


@pytest.mark.parametrize(
    "name, message",
    [
        ("smollm2-135", r"packaged tower 'smollm2-135'\. Did you mean 'smollm2-135m'"),
        ("SmolLM2-135M", "Did you mean 'smollm2-135m'"),
        ("gemma-3-270m", "Did you mean 'gemma3-270m'"),
        ("efficientnet_lite0", "Did you mean 'efficientnet-lite0'"),
    ],
)
def test_a_misspelt_packaged_tower_is_told_the_nearest(name, message):
    for load in (MPCLIPModel.from_pretrained_towers, MPCLIPProcessor.from_pretrained_towers):
        with pytest.raises(ValueError, match=message):
            load(name, "efficientnet-lite0", templates=["[APT-1]"])


@pytest.mark.parametrize("name", ["./towers/x", "towers/x/y", "/towers", "~/towers", "towers/", r"towers\x", "../x"])
def test_a_folder_that_is_not_there_is_called_so(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (refuse_missing_folder, tower_source, MPCLIPModel.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"There is no folder .* is there"):
            load(name)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        MPCLIPModel.from_pretrained_towers(name, name)


@pytest.mark.parametrize("option", ["text_model", "vision_model", "text_from_scratch", "checkpoint"])
@pytest.mark.parametrize(
    "name, message", [("./nowhere", "There is no folder ./nowhere"), ("smollm2-13m", "Did you mean 'smollm2")]
)
def test_a_run_refuses_a_missing_tower_before_it_opens_the_data(option, name, message, folder, tmp_path):
    options = parse_options(arguments(folder, tmp_path / "out", f"--{option}", name))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        build_trainer(options, open_split=lambda *_: pytest.fail("the data were opened"))


def test_other_commands_call_a_missing_folder_so(tmp_path):
    for load in (load_encoder, lambda name: quantize(name, tmp_path / "out")):
        with pytest.raises(FileNotFoundError, match=r"There is no folder \./nowhere"):
            load("./nowhere")


def test_hub_ids_and_folders_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135").mkdir()
    for name in ("google/gemma-2b", "gpt2", "smollm2-135", str(tmp_path), tmp_path):
        assert tower_source(name) == str(name)


def test_without_the_package_the_message_says_who_knows_packaged_towers(without_mpclip, tmp_path, monkeypatch):
    assert tower_source("google/gemma-2b") == "google/gemma-2b"
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        tower_source("./nowhere")
    with pytest.raises(OSError, match=r"'smollm2-135m' is no folder here.*`python -m mpclip\.data\.backbones` lists"):
        MPCLIPModel.from_pretrained_towers("smollm2-135m", "efficientnet-lite0")


@pytest.mark.parametrize("argument", ["text_kwargs", "vision_kwargs"])
def test_a_quantised_tower_is_refused_when_the_model_is_built(argument, towers):
    asked = {argument: {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}}
    with pytest.raises(ValueError, match=r"would be quantised \(.*bitsandbytes.*from_pretrained\(folder, quantization_config="):
        MPCLIPModel.from_pretrained_towers(towers / "text", towers / "vision", **SMALL, **asked)


def test_a_processor_that_cuts_texts_to_nothing_is_refused(towers):
    with pytest.raises(ValueError, match="max_text_length=0 is out of range: expected at least 1"):
        MPCLIPProcessor.from_pretrained_towers("smollm2-135m", "efficientnet-lite0", [], max_text_length=0)


def test_a_config_that_only_dequantises_passes():
    _refuse_quantised("x", None)
    _refuse_quantised("x", GgufConfig(dequantize=True))
    with pytest.raises(ValueError, match=r"x would be quantised \(torchao\)"):
        _refuse_quantised("x", {"quant_method": "torchao"})
