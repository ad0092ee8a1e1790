"""Options are declared once: what a recipe sets arrives in the config; defaults and legal values are the same everywhere."""

import copy
import inspect
from dataclasses import fields

import pytest
import yaml
from conftest import TEXT_CONFIGS, VISION_CONFIGS, arguments

from modeling_mpclip import MPCLIPConfig, MPCLIPProcessor
from modeling_mpclip.model_options import OPTION_NAMES, ModelOptions, choices
from mpclip.training import ImageTextDataset, MPCLIPTrainer, MPCLIPTrainingArguments, build_trainer, parse_options, train
from mpclip.training.options import DataArguments, ModelArguments
from mpclip.training.run import build_model, open_rows
from mpclip.training.state_store import FORMATS

# A legal value of each option that is not its default, with what else it needs.
OTHER = {
    "num_prompts": (2, {}),
    "projection_dim": (24, {}),
    "shared_projection": (True, {}),
    "templates": (["a [APT-1]:", "b [APT-2]:", "c [APT-3]:"], {}),
    "negated_templates": (["no [APT-1]:", "nor [APT-2]:", "not [APT-3]:"], {}),
    "adaptive_tokens": ("input", {}),
    "boundary_layer": (1, {}),
    "text_pooling": ("mean", {"num_prompts": 1}),
    "image_pooling": ("attention", {}),
    "pooling_queries": (4, {}),
    "pooling_width": (32, {}),
    "pooling_heads": (4, {}),
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
