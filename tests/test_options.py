"""Options are declared once: what a recipe sets arrives in the config; defaults and legal values are the same everywhere."""

import copy
import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import yaml
from conftest import TEXT_CONFIGS, VISION_CONFIGS, arguments
from transformers import TrainingArguments

from modeling_mpclip import MPCLIPConfig, MPCLIPProcessor
from modeling_mpclip.model_options import OPTION_NAMES, ModelOptions, choices, range_of
from mpclip.training import ImageTextDataset, MPCLIPTrainer, MPCLIPTrainingArguments, build_trainer, parse_options, train
from mpclip.training.arguments import INHERITED_RANGES
from mpclip.training.options import DataArguments, ModelArguments, TrainingDefaults
from mpclip.training.resume import shaping_options
from mpclip.training.run import build_model, open_rows
from mpclip.training.state_store import FORMATS

# A legal value of each option that is not its default, with what else it needs.
OTHER = {
    "num_prompts": (2, {}),
    "projection_dim": (24, {}),
    "shared_projection": (True, {}),
    "joint_projection": (True, {}),
    "words": (True, {}),
    "templates": (["a [APT-1]:", "b [APT-2]:", "c [APT-3]:"], {}),
    "negated_templates": (["no [APT-1]:", "nor [APT-2]:", "not [APT-3]:"], {}),
    "adaptive_tokens": ("input", {}),
    "boundary_layer": (1, {}),
    "text_layers": (2, {}),
    "text_attention": ("bidirectional", {"boundary_layer": 1}),
    "text_pooling": ("mean", {"num_prompts": 1}),
    "image_pooling": ("attention", {}),
    "image_tokens": ("patches", {}),
    "pooling_queries": (4, {}),
    "pooling_width": (32, {}),
    "pooling_heads": (4, {}),
    "clip_pooling": ("mean", {}),
    "frame_position": ("none", {}),
    "loss": ("sigmoid", {}),
    "logit_scale_init_value": (2.0, {}),
    "logit_bias_init_value": (-5.0, {"loss": "sigmoid"}),
    "diversity_weight": (0.5, {}),
    "diversity_margin": (0.2, {}),
    "negation_weight": (0.5, {}),
    "negation_form": ("hinge", {}),
    "negation_margin": (0.3, {}),
    "elastic_prompts": (True, {}),
    "initializer_range": (0.05, {}),
}


def test_no_option_is_forgotten():
    assert tuple(OTHER) == OPTION_NAMES


@pytest.mark.parametrize("name", OTHER)
def test_every_option_can_be_set_by_a_recipe(name, folder, tmp_path):
    value, needs = OTHER[name]
    assert value != getattr(ModelOptions(), name)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({name: value} | needs))
    given = arguments(folder, tmp_path)
    kept = [
        part for key, text in zip(given[::2], given[1::2], strict=True) if key[2:] not in {name, *needs} for part in (key, text)
    ]
    model, _ = build_model(parse_options([str(tmp_path / "recipe.yaml"), *kept]).model, 16)
    assert getattr(model.config, name) == value


def test_defaults_are_the_same_in_python_and_on_the_command_line():
    config, options = MPCLIPConfig(TEXT_CONFIGS["llama"](), VISION_CONFIGS["vit"]()), ModelArguments()
    for option in fields(ModelOptions):
        assert getattr(options, option.name) == option.default
        assert option.default is None or getattr(config, option.name) == option.default
    default = inspect.signature(MPCLIPProcessor.from_pretrained_towers).parameters["max_text_length"].default
    assert default == DataArguments().max_text_length
    assert choices(DataArguments, "cache_format") == tuple(FORMATS)


def test_a_run_changes_none_of_its_options(hub, folder, tmp_path):
    push = ("--push_to_hub", "true", "--hub_model_id", "me/model", "--hub_strategy", "end")
    options = parse_options(arguments(folder, tmp_path, "--eval_split", "none", "--max_steps", "1", *push))
    assert options.training.device.type == "cpu"  # sets the device up, which is remembered
    options.training.dataloader_pin_memory = True  # TrainingArguments itself takes it back where use_cpu is given
    process = options.training.distributed_state
    before = [copy.deepcopy(vars(part), {id(process): process}) for part in (options.model, options.data, options.training)]
    trainer = build_trainer(options)
    # The run itself evaluates on nothing, pushes by HubPusher, and needs no pinned memory on a CPU.
    for name in ("load_best_model_at_end", "push_to_hub", "dataloader_pin_memory"):
        assert getattr(options.training, name) and not getattr(trainer.args, name)
    train(trainer, options=options)
    assert hub.repos["me/model"].messages[-1] == "End of training"
    for part, was in zip((options.model, options.data, options.training), before, strict=True):
        now = vars(part)
        assert now.keys() == was.keys() and {name: now[name] for name in now if now[name] != was[name]} == {}


def test_the_trainer_takes_a_plain_table(folder, tmp_path):
    options = parse_options(arguments(folder, tmp_path))
    model, processor = build_model(options.model, 16)
    rows = open_rows(options.data, "train")
    training = MPCLIPTrainingArguments(str(tmp_path / "out"), use_cpu=True, max_steps=1, per_device_train_batch_size=4)
    trainer = MPCLIPTrainer(model, training, train_dataset=rows, eval_dataset=rows, processing_class=processor)
    assert isinstance(trainer.train_dataset, ImageTextDataset) and trainer.eval_dataset.captions == "all"
    assert set(trainer.evaluate()) > {"eval_mean_recall", "eval_t2i_R@1", "eval_i2t_R@10"}


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("num_prompts", 0, "at least 1 and at most 256"),
        ("projection_dim", -6, "at least 1 and at most 1048576"),
        ("lora_layers", 0, "at least 1"),
        ("diversity_weight", -0.1, "at least 0"),
        ("diversity_margin", 2, "at least -1 and at most 1"),
        ("max_text_length", 0, "at least 1"),
        ("group_size", 0, "at least 1"),
        ("smallest_crop", 1.5, "above 0 and at most 1"),
        ("learning_rate", "nan", "at least 0"),
        ("text_learning_rate", -1e-4, "at least 0"),
        ("num_train_epochs", -1, "at least 0"),
        ("per_device_eval_batch_size", 0, "at least 1"),
        ("weight_decay", -1, "at least 0"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("adam_beta1", 1, "at least 0 and below 1"),
        ("seed", -1, "at least 0 and at most 4294967295"),
        ("max_steps", -2, "at least -1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(name, value, expected, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name}=\S+ is out of range: expected {expected}\.$"):
        parse_options([f"--{name}={value}", "--output_dir", str(tmp_path)])


def test_every_number_of_ours_has_a_range():
    for declared in (ModelOptions, ModelArguments, DataArguments, TrainingDefaults):
        for name, kind in get_type_hints(declared).items():
            if {int, float} & {kind, *get_args(kind)}:
                assert range_of(declared, name) is not None, name
    inherited = get_type_hints(TrainingArguments).keys()
    assert INHERITED_RANGES.keys() <= inherited and not INHERITED_RANGES.keys() & get_type_hints(TrainingDefaults).keys()


@pytest.mark.parametrize(
    "tracker, message", [("tensorboard", "pip install tensorboard"), ("wandbb", "wandbb is not supported")]
)
def test_a_tracker_that_is_not_installed_is_refused_at_once(tracker, message, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(ValueError, match=rf"--report_to.*{message}"):
        parse_options(["--report_to", tracker, "--output_dir", str(tmp_path)])


@pytest.mark.parametrize("has_gpu", [False, True])
def test_the_best_device_is_the_default(has_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: has_gpu)
    argv = ["--bf16", "true", "--output_dir", str(tmp_path)]
    assert parse_options(argv).training.use_cpu is not has_gpu
    assert parse_options([*argv, "--use_cpu", "true"]).training.use_cpu
    assert shaping_options(parse_options(argv)) == shaping_options(parse_options([*argv, "--use_cpu", "true"]))  # resumes it


def test_no_recipe_names_a_device():
    recipes = [*Path(__file__).parent.parent.glob("configs/**/*.yaml")]
    assert recipes and not [file for file in recipes if "use_cpu" in yaml.safe_load(file.read_text())]
