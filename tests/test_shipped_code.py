"""A checkpoint names classes whose code goes along, and two checkpoints in one process run their own code each."""

import importlib
import json
import os
from pathlib import Path

import fresh_process
import pytest
from conftest import make_model, make_processor, make_tokenizer
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_mpclip
from modeling_mpclip import MPCLIPConfig, MPCLIPModel, MPCLIPProcessor
from modeling_mpclip.shipped_code import saved_as_shipped, shipped_class

# Two checkpoints of one process ----------------------------------------------------------------------------------


def test_the_code_of_a_config_is_all_code():
    """transformers names the module of a config by a hash of these files, and registers the model's class for that config."""
    found = {Path(file).name for file in get_relative_import_files(modeling_mpclip.configuration_mpclip.__file__)}
    files = {file.name for file in Path(modeling_mpclip.__file__).parent.glob("*.py")}
    assert found | {"configuration_mpclip.py"} == files - {"__init__.py"}


def test_folders_of_one_name_with_different_code_run_their_own(tmp_path):
    for parent in ("first", "second"):
        make_model().save_pretrained(tmp_path / parent / "model")
        make_processor(make_tokenizer()).save_pretrained(tmp_path / parent / "model")
        for module in ("logit_scale", "text_tower", "image_tower", "processing_mpclip"):
            with open(tmp_path / parent / "model" / f"{module}.py", "a") as file:
                file.write(f"\nMARK = {parent!r}\n")
    script = """if True:
        import sys
        from transformers import AutoModel, AutoProcessor

        for parent in ("first", "second"):
            folder = parent + "/model"
            model = AutoModel.from_pretrained(folder, trust_remote_code=True)
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
            used = [type(part) for part in (model.logit_scale, model.image_pooling, model.text_model, processor)]
            package = type(model).__module__.rpartition(".")[0]
            assert all(cls.__module__.startswith("transformers_modules.") for cls in used)
            marks = {sys.modules[package + "." + name].MARK for name in ("logit_scale", "text_tower", "image_tower")}
            assert marks == {parent} == {sys.modules[used[-1].__module__].MARK}, (marks, parent)
    """
    run = fresh_process.run(script, tmp_path, {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")})
    assert run.returncode == 0, run.stderr[-2000:]


# Classes of notebooks, functions and run time --------------------------------------------------------------------


class Mixin:
    """Not a class of checkpoints, although it is in a file."""


def of_a_notebook(base):
    return type("Mine", (Mixin, base), {"__module__": "__main__"})


def of_a_function(base):
    class Mine(base):
        pass

    return Mine


def of_run_time(base):
    return type(f"FSDP{base.__name__}", (base,), {})


@pytest.mark.parametrize("make", [of_a_notebook, of_a_function, of_run_time])
def test_a_checkpoint_of_a_class_without_a_file_names_its_base(make, tmp_path, caplog):
    model, processor = make_model(), make_processor(make_tokenizer())
    for thing in (model, model.config, processor):
        object.__setattr__(thing, "__class__", make(type(thing)))
    own = [type(thing) for thing in (model, model.config, processor)]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert [type(thing) for thing in (model, model.config, processor)] == own
    config = json.loads((tmp_path / "config.json").read_text())
    auto_map = config["auto_map"] | json.loads((tmp_path / "processor_config.json").read_text())["auto_map"]
    assert {auto: reference for auto, reference in auto_map.items() if "Image" not in auto} == {
        "AutoConfig": "configuration_mpclip.MPCLIPConfig",
        "AutoModel": "modeling_mpclip.MPCLIPModel",
        "AutoProcessor": "processing_mpclip.MPCLIPProcessor",
    }
    assert config["architectures"] == ["MPCLIPModel"]
    assert all((tmp_path / f"{reference.split('.')[0]}.py").is_file() for reference in auto_map.values())
    assert f"The code of {own[0].__name__}, which is defined in" in caplog.text and "names MPCLIPModel instead" in caplog.text
    loaded = [auto.from_pretrained(tmp_path) for auto in (AutoModel, AutoConfig, AutoProcessor)]
    assert [type(thing) for thing in loaded] == [MPCLIPModel, MPCLIPConfig, MPCLIPProcessor]
    assert type(own[0].from_pretrained(tmp_path)) is own[0]  # by its own class it loads as before


def test_a_class_that_torch_makes_is_saved_without_a_warning(tmp_path, caplog):
    """FSDP2 gives a model such a class, and nothing of it is missed in a checkpoint. A class of a notebook below it is."""
    for base, told in ((MPCLIPModel, False), (of_a_notebook(MPCLIPModel), True)):
        model = make_model()
        model.__class__ = type(f"FSDP{base.__name__}", (FSDPModule, base), {"__module__": fully_shard.__module__})
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MPCLIPModel"]
        assert ("The code of Mine, which is defined in __main__, cannot be saved" in caplog.text) == told
        assert ("cannot be saved" in caplog.text) == told


def test_a_class_of_a_module_goes_along(tmp_path, monkeypatch, caplog):
    (tmp_path / "my_model.py").write_text("from modeling_mpclip import MPCLIPModel\n\n\nclass Mine(MPCLIPModel):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("my_model").Mine(make_model().config)
    mine.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "my_model.Mine" and (tmp_path / "saved" / "my_model.py").is_file()
    assert "cannot be saved" not in caplog.text and shipped_class(type(mine)) is type(mine)


def test_what_fails_while_it_is_saved_keeps_its_class():
    model = make_model()
    mine = of_a_notebook(MPCLIPModel)
    model.__class__ = mine
    with pytest.raises(OSError, match="full"), saved_as_shipped(model):
        assert type(model).__name__ == "MPCLIPModel" and isinstance(model, mine)
        raise OSError("the disk is full")
    assert type(model) is mine


def test_a_config_class_without_an_init_has_our_options():
    config = of_a_function(MPCLIPConfig)(num_prompts=2, projection_dim=12)
    assert config.num_prompts == 2 and len(config.templates) == 2
    with pytest.raises(ValueError, match="num_prompts=0 is out of range"):
        type(config)(num_prompts=0)
