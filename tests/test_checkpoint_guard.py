"""What is refused instead of loaded wrongly, and that what is whole passes."""

import importlib.metadata
import json
import re

import fresh_process
import pytest
import torch
from conftest import TEXT_CONFIGS, make_model, make_processor, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel
from transformers.dynamic_module_utils import get_imports

from modeling_mpclip import MPCLIPConfig, MPCLIPModel, checkpoint_guard
from modeling_mpclip.checkpoint_guard import not_finite, refuse_old_versions

APT, PROJECTION, LAYER = (
    "text_model.adaptive_embedding.weight",
    "text_projection.weight",
    "text_model.layers.1.mlp.up_proj.weight",
)


@pytest.fixture
def checkpoint(tmp_path):
    make_model().save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit, file: str = "model.safetensors") -> None:
    """Rewrite the weights after `edit(weights)`."""
    weights = load_file(folder / file)
    edit(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})


def shards(folder) -> list[str]:
    make_model().save_pretrained(folder, max_shard_size="20KB")
    return sorted(file.name for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w: w.pop(APT), f"lacks {APT}"),
        (lambda w: [w.pop(APT), w.pop(PROJECTION)], f"lacks 2 weights, {APT} first"),
        (lambda w: w.update(text_projektion=w.pop(PROJECTION)), f"lacks {PROJECTION}, and holds text_projektion, for which"),
        (
            lambda w: w.update({"logit_scale.bias": torch.zeros(())}),
            r"holds logit_scale\.bias, for which its config",
        ),
        (lambda w: w[LAYER][3].fill_(float("nan")), f"NaN or infinite values in {LAYER}"),
        (lambda w: w[APT][0, 0].fill_(float("-inf")), f"NaN or infinite values in {APT}"),
        (lambda w: w["logit_scale.log_scale"].fill_(float("nan")), "NaN or infinite values in logit_scale.log_scale"),
    ],
)
@pytest.mark.parametrize("load", [MPCLIPModel.from_pretrained, AutoModel.from_pretrained])
def test_faulty_weights_are_refused_by_name(checkpoint, edit, message, load):
    change(checkpoint, edit)
    with pytest.raises(ValueError, match=message) as refusal:
        load(checkpoint)
    assert str(checkpoint) in str(refusal.value)


def test_fewer_layers_than_were_saved_are_refused(checkpoint):
    config = MPCLIPConfig.from_pretrained(checkpoint)
    config.text_config.num_hidden_layers = 2
    with pytest.raises(ValueError, match=r"holds 9 weights, text_model\.layers\.2\.input_layernorm\.weight first"):
        MPCLIPModel.from_pretrained(checkpoint, config=config)


def test_nan_is_found_in_half_precision_in_shards_in_buffers_and_when_mapped(tmp_path):
    model = make_model(vision="efficientnet")
    mean = next(name for name, _ in model.named_buffers() if name.endswith("running_mean"))
    model.get_buffer(mean)[0] = float("nan")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    for options in ({}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"device_map": "auto"}):
        with pytest.raises(ValueError, match=f"NaN or infinite values in {mean}"):
            MPCLIPModel.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3,), (2, 30_000), (7, 11_001), (2**11, 2**11 + 1)])
def test_reading_in_pieces_finds_what_isfinite_finds(shape, dtype):
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.randn(shape).to(dtype), requires_grad=False)
    assert not_finite(layer) == []
    values = layer.weight.view(-1)
    values[0], values[-1] = torch.finfo(dtype).max, torch.finfo(dtype).min
    assert not_finite(layer) == []
    for place in {0, 1, len(values) // 2, len(values) - 1}:
        for value in (float("nan"), float("inf"), float("-inf")):
            before, values[place] = values[place].clone(), value
            assert not_finite(layer) == ["weight"]
            if len(shape) > 1:
                layer.weight = torch.nn.Parameter(layer.weight.T, requires_grad=False)  # a view that has to be copied
                assert not_finite(layer) == ["weight"]
                layer.weight = torch.nn.Parameter(layer.weight.T, requires_grad=False)
            values[place] = before
    assert values.isfinite().all()


def test_too_large_for_the_asked_dtype_is_refused(checkpoint):
    change(checkpoint, lambda w: w[PROJECTION].fill_(1e6))
    assert MPCLIPModel.from_pretrained(checkpoint).text_projection.weight.max() == 1e6
    with pytest.raises(ValueError, match=PROJECTION):
        MPCLIPModel.from_pretrained(checkpoint, dtype=torch.float16)


def test_another_shape_is_refused_unless_asked_for(checkpoint):
    change(checkpoint, lambda w: w.update({PROJECTION: w[PROJECTION][:, :-1].contiguous()}))
    with pytest.raises(ValueError, match=re.escape(f"has another shape in {PROJECTION} (3, 31, 4) instead of (3, 32, 4)")):
        MPCLIPModel.from_pretrained(checkpoint)
    model, info = MPCLIPModel.from_pretrained(checkpoint, ignore_mismatched_sizes=True, output_loading_info=True)
    assert [key for key, *_ in info["mismatched_keys"]] == [PROJECTION] and model.text_projection.weight.isfinite().all()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:50], lambda data: b"", lambda data: b"\xff" + data]
)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_damaged_file_is_named(tmp_path, damage, sharded):
    if not sharded:
        make_model().save_pretrained(tmp_path)
    name = shards(tmp_path)[2] if sharded else "model.safetensors"
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    for load in (MPCLIPModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match=re.escape(f"{tmp_path / name} is cut short or damaged")):
            load(tmp_path)


def test_a_whole_file_is_not_called_damaged(checkpoint, monkeypatch):
    """Where loading fails for another reason, the error stays as it is."""

    def fails(*_, **__):
        raise RuntimeError("another reason")

    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", fails)
    with pytest.raises(RuntimeError, match="another reason"):
        MPCLIPModel.from_pretrained(checkpoint)


def test_the_guard_imports_torch_and_transformers_alone():
    standard = {"contextlib", "json", "math", "pathlib", "threading"}
    assert set(get_imports(checkpoint_guard.__file__)) <= standard | {"torch", "transformers"}


def test_a_shard_that_is_not_there_is_named(tmp_path):
    name = shards(tmp_path)[2]
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=re.escape(name)):
        MPCLIPModel.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        MPCLIPModel.from_pretrained(tmp_path / "nowhere")


def test_from_a_state_dict(checkpoint):
    model = make_model()
    weights = model.state_dict()
    MPCLIPModel.from_pretrained(None, config=model.config, state_dict=dict(weights))
    del weights[APT]
    with pytest.raises(ValueError, match=rf"\(state_dict\) lacks {APT}"):
        MPCLIPModel.from_pretrained(None, config=model.config, state_dict=weights)


def test_a_subclass_may_lack_what_it_names(checkpoint):
    class WithHead(MPCLIPModel):
        _keys_to_ignore_on_load_missing = [r"^head\."]

        def __init__(self, config):
            super().__init__(config)
            self.head = torch.nn.Linear(3, 2)
            self.post_init()

    assert WithHead.from_pretrained(checkpoint).head.weight.isfinite().all()
    change(checkpoint, lambda w: w.pop(APT))
    with pytest.raises(ValueError, match=f"lacks {APT}"):
        WithHead.from_pretrained(checkpoint)


def test_a_pretrained_tower_with_nan_is_refused(tmp_path):
    AutoModel.from_config(TEXT_CONFIGS["llama"]()).save_pretrained(tmp_path)
    change(tmp_path, lambda w: w["norm.weight"].fill_(float("nan")))
    make_tokenizer().save_pretrained(tmp_path)
    make_model().vision_model.save_pretrained(tmp_path / "vision")
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1 weights, norm\.weight first"):
        MPCLIPModel.from_pretrained_towers(tmp_path, tmp_path / "vision")


# Versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package, old", [("transformers", "4.57.6"), ("transformers", "5.16.2"), ("torch", "2.10.0")])
def test_an_old_version_is_refused_with_what_to_install(monkeypatch, package, old):
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old if name == package else installed(name))
    with pytest.raises(ImportError, match=rf"found {package}=={old}.*\n.*pip install --upgrade '{package}>="):
        refuse_old_versions()


def test_the_oldest_versions_are_those_of_the_project():
    from pathlib import Path

    from modeling_mpclip.checkpoint_guard import OLDEST_VERSIONS

    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert all(f'"{package}>={oldest}"' in project for package, oldest in OLDEST_VERSIONS.items())


def test_the_version_is_checked_before_anything_else_can_break(checkpoint, tmp_path):
    make_processor(make_tokenizer()).save_pretrained(checkpoint)
    script = f"""if True:
        import importlib.metadata, transformers
        from transformers import AutoConfig, AutoModel, AutoProcessor

        class Old(type(transformers)):
            def __getattr__(self, name):
                if name in ("PreTrainedConfig", "initialization"):  # not in transformers 4
                    raise AttributeError(name)
                return super().__getattr__(name)

        transformers.__dict__.pop("PreTrainedConfig", None)
        transformers.__dict__.pop("initialization", None)
        transformers.__class__ = Old
        installed = importlib.metadata.version
        importlib.metadata.version = lambda name: "4.57.6" if name == "transformers" else installed(name)
        for entry in (AutoProcessor, AutoModel, AutoConfig):
            try:
                entry.from_pretrained({str(checkpoint)!r}, trust_remote_code=True)
            except ImportError as error:
                print(str(error).replace(chr(10), " "))
    """
    run = fresh_process.run(script, cwd=tmp_path)
    refusals = run.stdout.splitlines()
    assert len(refusals) == 3, run.stderr[-2000:]
    for told in refusals:
        assert "but found transformers==4.57.6" in told and "pip install --upgrade 'transformers>=5.17'" in told


def test_the_model_code_travels_with_its_guard(checkpoint):
    assert (checkpoint / "checkpoint_guard.py").exists()
    assert json.loads((checkpoint / "config.json").read_text())["auto_map"]["AutoModel"].startswith("modeling_mpclip.")
