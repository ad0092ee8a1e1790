"""Every recipe of configs/ builds its model at full size (without weights) and takes a step on shrunken towers."""

from pathlib import Path

import pytest
import torch
from conftest import TEXT_CONFIGS, arguments, make_processor, make_tokenizer
from transformers import AutoConfig, AutoModel, Qwen3Config, ViTConfig

from benchmarks.flop_counts import word_tokenizer
from benchmarks.llm_shapes import TEXT_CONFIGS as FULL_SIZE
from modeling_mpclip import MPCLIPConfig, MPCLIPModel
from modeling_mpclip.model_options import OPTION_NAMES
from mpclip.training.command_line import parse_options
from mpclip.training.resume import shaping_options
from mpclip.training.run import build_trainer

ROOT = Path(__file__).parent.parent
SYSTEMS = sorted((ROOT / "configs/systems").glob("*.yaml"))
# setting -> (family of the tiny text tower, config of the full one)
LAION = {
    "laion_gemma2b": ("gemma", FULL_SIZE["Gemma-2B"]),
    "laion_llama3_8b": ("llama", FULL_SIZE["LLaMA-3-8B"]),
    "laion_smollm2": ("llama", FULL_SIZE["SmolLM2-135M"]),
    "laion_qwen3": (
        "qwen3",
        lambda: Qwen3Config(
            hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8
        ),
    ),
}
CELLS = [("laion_gemma2b", system) for system in SYSTEMS]
CELLS += [(name, ROOT / "configs/systems/multi_prompt_both.yaml") for name in LAION if name != "laion_gemma2b"]
IDS = [f"{setting}-{system.stem}" for setting, system in CELLS]


@pytest.mark.parametrize("setting, system", CELLS, ids=IDS)
def test_full_size_models_are_built_on_meta(setting, system, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipes = [str(ROOT / "configs" / f"{setting}.yaml"), str(system)]
    given = parse_options([*recipes, "--output_dir", str(tmp_path), "--bf16", "false"])
    model = given.model
    text_config = LAION[setting][1]()
    if model.text_from_scratch:
        text_config = AutoConfig.from_pretrained(model.text_from_scratch)
    config = MPCLIPConfig(text_config, ViTConfig(), **{name: getattr(model, name) for name in OPTION_NAMES})
    config.compile_prompts(word_tokenizer([*config.templates, *config.negated_templates]))
    with torch.device("meta"):
        built = MPCLIPModel(config)
    assert built.config.num_prompts == (6 if system.stem.startswith("multi") else 1)
    assert built.text_projection.weight.shape[-1] * built.config.num_text_vectors == 768


@pytest.mark.parametrize("setting, system", CELLS, ids=IDS)
def test_a_step_of_a_shrunken_copy(setting, system, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    family = LAION[setting][0]
    torch.manual_seed(1)
    AutoModel.from_config(TEXT_CONFIGS[family]()).save_pretrained(tmp_path / "text")
    make_tokenizer().save_pretrained(tmp_path / "text")
    make_processor(make_tokenizer()).image_processor.save_pretrained(tmp_path / "text")
    small = {"text_model": tmp_path / "text", "bf16": "false", "dataloader_num_workers": 0, "max_steps": 1, "warmup_steps": 0}
    if parse_options([str(system), "--output_dir", str(tmp_path)]).model.text_from_scratch:
        (tmp_path / "tiny").mkdir()
        TEXT_CONFIGS["llama"]().save_pretrained(tmp_path / "tiny")
        small["text_from_scratch"] = tmp_path / "tiny"
    options = arguments(folder, tmp_path / "out")
    dropped = {"--num_prompts", "--projection_dim", "--num_train_epochs"}
    kept = [part for pair in zip(options[::2], options[1::2], strict=True) if pair[0] not in dropped for part in pair]
    argv = [*kept, *(part for name, value in small.items() for part in (f"--{name}", str(value)))]
    trainer = build_trainer(parse_options([f"configs/{setting}.yaml", str(system), *argv]))
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters() if tensor.requires_grad}
    loss = trainer.train().training_loss
    assert 0 < loss < 100
    moved = {name for name, tensor in trainer.model.named_parameters() if name in before and not tensor.equal(before[name])}
    stayed = {name for name in before if name not in moved}
    assert before and all("adaptive_embedding" in name and before[name].numel() == 0 for name in stayed), stayed


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda path: path.stem)
@pytest.mark.parametrize("setting", ["flickr8k_smollm2", "openmoji_smollm2"])
def test_systems_fit_the_settings_with_cached_states(setting, system, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = parse_options([f"configs/{setting}.yaml", str(system), "--output_dir", str(tmp_path), "--bf16", "false"])
    model, data = given.model, given.data
    config = MPCLIPConfig(FULL_SIZE["SmolLM2-135M"](), **{name: getattr(model, name) for name in OPTION_NAMES})
    assert data.cache_states
    assert data.cache_text_states == (config.adaptive_tokens == "boundary" and not model.text_from_scratch)


SETTINGS = sorted((ROOT / "configs").glob("*.yaml"))
SEARCHED = ("flickr8k_smollm2", "search/start")
LAID = [(SEARCHED, recipe) for recipe in sorted((ROOT / "configs/search").glob("*.yaml")) if recipe.stem != "start"]
LAID += [(("stsb_after_flickr8k",), recipe) for recipe in sorted((ROOT / "configs").glob("stsb_after_flickr8k*/*.yaml"))]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda path: path.stem)
def test_every_setting_is_understood(setting, tmp_path):
    given = parse_options([str(setting), "--output_dir", str(tmp_path), "--bf16", "false"])
    model, data = given.model, given.data
    assert model.vision_tuning == "full" or data.smallest_crop == 1


@pytest.mark.parametrize("settings, recipe", LAID, ids=lambda value: value[-1] if isinstance(value, tuple) else value.stem)
def test_recipes_of_searches_change_what_they_say(settings, recipe, tmp_path):
    known = [str(ROOT / f"configs/{setting}.yaml") for setting in settings]
    last = ["--output_dir", str(tmp_path), "--bf16", "false"]
    plain, changed = (parse_options([*recipes, *last]) for recipes in (known, [*known, str(recipe)]))
    assert shaping_options(plain) != shaping_options(changed)
