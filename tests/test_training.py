"""`train_hf.py` end to end on tiny towers and a dozen pictures: every tuning, resume, logs, saved model."""

import itertools
import json

import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS, arguments, make_processor, make_tokenizer
from transformers import AutoModel
from transformers.trainer_utils import get_last_checkpoint

import train_hf
from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from mpclip.data.image_text import load_image_text
from mpclip.training.command_line import parse_options
from mpclip.training.resume import changed_options, shaping_options
from mpclip.training.run import build_trainer, train
from mpclip.training.samplers import GroupSampler, LengthSampler
from mpclip.training.trainer import MPCLIPTrainer
from mpclip.training.tuning import learning_rate_group


def log_of(out) -> list[dict]:
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize(
    "extra",
    [
        ("--text_tuning", "frozen", "--vision_tuning", "full"),
        ("--text_tuning", "last", "--cache_states", "true", "--diversity_weight", "0.1", "--negation_weight", "0.5"),
        ("--text_tuning", "last", "--trained_layers", "2", "--adaptive_tokens", "input", "--loss", "sigmoid"),
        ("--text_tuning", "lora", "--adaptive_tokens", "input", "--vision_tuning", "full"),
        ("--text_tuning", "full", "--vision_tuning", "full", "--group_column", "half"),
        ("--text_pooling", "mean", "--num_prompts", "1"),
    ],
    ids=lambda extra: "-".join(extra[1::2]),
)
def test_every_tuning_trains_evaluates_and_saves(folder, tmp_path, extra):
    metrics = train_hf.main(arguments(folder, tmp_path, *extra))
    assert {"eval_t2i_R@1", "eval_i2t_R@10", "eval_mean_recall"} <= metrics.keys()
    assert metrics["eval_t2i_R@5"] == 100.0  # of four pictures
    log = log_of(get_checkpoint(tmp_path))
    parts = {"contrastive_loss", "logit_scale"}
    parts |= {"diversity_loss", "negation_loss"} if "--negation_weight" in extra else set()
    assert parts <= log[0].keys()
    model, info = MPCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = MPCLIPProcessor.from_pretrained(tmp_path)
    assert model(**processor(text=["a red square"])).text_embeds.isfinite().all()
    origin = json.loads((tmp_path / "training.json").read_text())
    assert origin["ModelArguments"]["num_prompts"] == model.config.num_prompts


def get_checkpoint(out):
    from pathlib import Path

    return Path(get_last_checkpoint(str(out)))


def test_what_is_frozen_stays_and_what_is_trained_moves(folder, tmp_path):
    trainer = build_trainer(parse_options(arguments(folder, tmp_path)))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert moved == trained
    groups = {learning_rate_group(name) for name in trained}
    assert groups == {"adaptive_learning_rate", "text_learning_rate", "learning_rate"}
    assert {name for name in trained if name.startswith("text_model.layers")} == {
        f"text_model.layers.2.{name}" for name, _ in trainer.model.text_model.layers[2].named_parameters()
    }


def test_learning_rates_and_decay_per_group(folder, tmp_path):
    extra = (
        "--learning_rate",
        "0.01",
        "--text_learning_rate",
        "0.02",
        "--adaptive_learning_rate",
        "0.03",
        "--weight_decay",
        "0.5",
    )
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, *extra)))
    of = {id(p): (g["lr"], g["weight_decay"]) for g in trainer.create_optimizer().param_groups for p in g["params"]}
    model = trainer.model
    assert of[id(model.text_projection.weight)] == (0.01, 0.5)
    assert of[id(model.logit_scale.log_scale)] == (0.01, 0.0)
    assert of[id(model.text_model.layers[2].mlp.up_proj.weight)] == (0.02, 0.5)
    assert of[id(model.text_model.norm.weight)] == (0.02, 0.0)
    assert of[id(model.text_model.boundary_embedding.weight)] == (0.03, 0.0)
    assert len(of) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("vision", ["vit", "clip", "siglip", "dinov2", "efficientnet"])
def test_a_checkpoint_brings_every_trained_weight_back(folder, tmp_path, monkeypatch, vision):
    """transformers saves some vision towers under other names than their modules have; Trainer would say that it lacks them."""
    warnings: list[str] = []
    monkeypatch.setattr("transformers.trainer.logger.warning", warnings.append)
    torch.manual_seed(2)
    AutoModel.from_config(VISION_CONFIGS[vision]()).save_pretrained(tmp_path / "vision")
    make_processor(make_tokenizer()).image_processor.save_pretrained(tmp_path / "vision")
    extra = ("--vision_model", str(tmp_path / "vision"), "--vision_tuning", "full", "--text_tuning", "full")
    extra += ("--vision_learning_rate", "0.01", "--num_train_epochs", "1")
    trainer = build_trainer(parse_options(arguments(folder, tmp_path / "run", *extra)))
    trainer.train()
    trained = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    checkpoint = str(get_checkpoint(tmp_path / "run"))
    trainer.state.best_model_checkpoint = checkpoint
    for load in (lambda: trainer._load_from_checkpoint(checkpoint), trainer._load_best_model):
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.fill_(0.5)
        load()
        for name, tensor in trainer.model.state_dict().items():
            torch.testing.assert_close(tensor, trained[name], atol=0, rtol=0, msg=name)
    assert not [warning for warning in warnings if "keys in the checkpoint" in warning]


@pytest.mark.parametrize("vision_tuning", ["frozen", "full"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(folder, tmp_path, vision_tuning):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    extra = ("--load_best_model_at_end", "false", "--vision_tuning", vision_tuning, "--vision_learning_rate", "0.01")
    train_hf.main(arguments(folder, whole, *extra))
    described = parse_options(arguments(folder, cut, *extra))
    trainer = build_trainer(described)

    class Stop(Exception):
        pass

    from transformers import TrainerCallback

    class StopAfterFirstEpoch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise Stop

    trainer.add_callback(StopAfterFirstEpoch())
    with pytest.raises(Stop):
        train(trainer, options=described)
    assert get_checkpoint(cut).name == "checkpoint-2"
    train_hf.main(arguments(folder, cut, *extra))
    one, other = (MPCLIPModel.from_pretrained(out).state_dict() for out in (whole, cut))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=0, rtol=0)


def test_a_run_with_other_options_is_not_gone_on_from(folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path))
    with pytest.raises(SystemExit, match=r"learning_rate: 0\.001 -> 0\.5.*--resume_from_checkpoint false"):
        train_hf.main(arguments(folder, tmp_path, "--learning_rate", "0.5"))
    train_hf.main(arguments(folder, tmp_path, "--learning_rate", "0.5", "--resume_from_checkpoint", "false"))


def test_starting_anew_sets_the_old_checkpoints_aside(folder, tmp_path, monkeypatch, caplog):
    """Killed before its first checkpoint, the new run must not go on from the old one's."""
    train_hf.main(arguments(folder, tmp_path))
    old = MPCLIPModel.from_pretrained(tmp_path).state_dict()
    anew = arguments(folder, tmp_path, "--learning_rate", "0.05")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(MPCLIPTrainer, "training_step", killed)
        train_hf.main([*anew, "--resume_from_checkpoint", "false"])
    aside = tmp_path / "_earlier-1"
    assert not list(tmp_path.glob("checkpoint-*")) and str(aside) in caplog.text
    assert {path.name for path in aside.iterdir()} == {"checkpoint-2", "checkpoint-4", "run.json"}
    assert json.loads((aside / "run.json").read_text())["learning_rate"] == 0.001
    train_hf.main(anew)
    new = MPCLIPModel.from_pretrained(tmp_path).state_dict()
    assert not torch.equal(old["text_projection.weight"], new["text_projection.weight"])
    assert [path.name for path in tmp_path.glob("_earlier-*")] == ["_earlier-1"]  # nothing to set aside


def test_another_tuning_does_not_meet_the_files_of_the_one_before(folder, tmp_path):
    extra = ("--adaptive_tokens", "input", "--max_steps", "2")
    train_hf.main(arguments(folder, tmp_path, *extra, "--text_tuning", "lora"))
    train_hf.main(arguments(folder, tmp_path, *extra, "--text_tuning", "frozen", "--resume_from_checkpoint", "false"))
    assert not list(tmp_path.glob("checkpoint-*/adapter_*")) and list(tmp_path.glob("_earlier-1/checkpoint-*/adapter_*"))


def test_evaluation_equals_the_plain_loop(folder, tmp_path):
    """Images with different numbers of captions, against one text and one image at a time."""
    extra = ("--per_device_eval_batch_size", "1")  # batches with two captions and with three
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, *extra)))
    images, texts, owner = map(torch.from_numpy, trainer.predict(trainer.eval_dataset).predictions)
    model, processor = trainer.model.eval(), trainer.processing_class
    rows = load_image_text(str(folder / "data"), "validation")
    assert owner.tolist() == [i for i, captions in enumerate(rows["captions"][:]) for _ in captions]
    for i, row in enumerate(rows):
        with torch.no_grad():
            image = model(**processor(images=[row["image"]])).image_embeds[0]
            torch.testing.assert_close(images[i], image, atol=1e-5, rtol=1e-4)
            for caption, embedding in zip(row["captions"], texts[owner == i], strict=True):
                text = model(**processor(text=[caption])).text_embeds[0]
                torch.testing.assert_close(embedding, text, atol=1e-5, rtol=1e-4)


# Options ----------------------------------------------------------------------------------------------------------


def test_recipe_and_overrides(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("num_prompts: 3\nadaptive_init: [a, b, c]\nload_best_model_at_end: false\nlearning_rate: 1e-2\n")
    given = parse_options([str(recipe), "--learning_rate", "0.5", "--output_dir", str(tmp_path)])
    model, data, training = given.model, given.data, given.training
    assert (model.num_prompts, model.adaptive_init) == (3, ["a", "b", "c"])
    assert training.learning_rate == 0.5 and not training.load_best_model_at_end
    assert data.cache_states is False


def test_recipes_are_laid_over_one_another(tmp_path):
    setting, system = tmp_path / "setting.yaml", tmp_path / "system.yaml"
    setting.write_text("num_prompts: 3\ntemplates: ['The [APT-{i}]:']\nnegated_templates: [a, b, c, d]\nseed: 5\n")
    system.write_text("num_prompts: 2\nseed: null\n")
    out = ["--output_dir", str(tmp_path)]
    given = parse_options([str(setting), str(system), *out])
    model, training = given.model, given.training
    assert model.templates == ["The [APT-1]:", "The [APT-2]:"] and model.negated_templates == ["a", "b"]
    assert training.seed == 42  # the default: null takes back what the setting said
    assert len(parse_options([str(setting), *out]).model.templates) == 3


def test_only_images_are_cached_where_the_text_side_is_live(folder, tmp_path):
    options = ("--cache_states", "true", "--cache_text_states", "false", "--adaptive_tokens", "input")
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, *options)))
    assert trainer.data_collator.text_states is None and trainer.data_collator.image_states is not None
    trainer.train()


def test_a_text_tower_from_scratch(folder, tmp_path):
    config = TEXT_CONFIGS["qwen3"]()
    config.save_pretrained(tmp_path / "shape")
    options = ("--text_from_scratch", str(tmp_path / "shape"), "--text_tuning", "full", "--text_pooling", "mean")
    options += ("--num_prompts", "1")
    towers = []
    for seed in ("0", "1"):
        described = parse_options(arguments(folder, tmp_path / seed, *options, "--num_prompts", "1", "--seed", seed))
        towers.append(build_trainer(described).model.text_model)
    assert type(towers[0]).__name__ == "PromptedQwen3Model" and all(p.requires_grad for p in towers[0].layers.parameters())
    first, second = (tower.layers[0].mlp.up_proj.weight for tower in towers)
    assert not first.equal(second)  # drawn with the seed
    vocabulary = len(make_tokenizer())
    assert towers[0].embed_tokens.num_embeddings == vocabulary


def test_an_option_that_is_new_had_its_default(tmp_path):
    described = parse_options(["--output_dir", str(tmp_path), "--dataset", "x"])
    now = shaping_options(described)
    before = {name: value for name, value in now.items() if name != "smallest_crop"}
    assert changed_options(before, now) == {}
    assert changed_options(before, now | {"smallest_crop": 0.5}) == {"smallest_crop": (1.0, 0.5)}


def test_crops_need_pixels(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"smallest_crop=0\.5 draws new crops in every epoch"):
        train_hf.main(arguments(folder, tmp_path, "--cache_states", "true", "--smallest_crop", "0.5"))
    with pytest.raises(SystemExit, match=r"smallest_crop=0\.0 is out of range: expected above 0 and at most 1"):
        train_hf.main(arguments(folder, tmp_path, "--smallest_crop", "0"))


@pytest.mark.parametrize(
    "recipe, argv, message",
    [
        ("num_promts: 3", [], "Unknown option 'num_promts' in .*Did you mean 'num_prompts'"),
        ("seed: 1", ["--num_promts", "3"], "Unknown option 'num_promts' in the command line"),
        ("- a", [], "must be a mapping"),
        ("text_tuning: some", [], r"invalid choice: 'some' \(choose from '?frozen'?, '?last'?, '?lora'?, '?full'?\)"),
        ("bad_images: keep", [], r"invalid choice: 'keep' \(choose from '?skip'?, '?fail'?\)"),
    ],
)
def test_unknown_options_are_refused(tmp_path, recipe, argv, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    with pytest.raises(ValueError, match=message):
        parse_options([str(file), "--output_dir", str(tmp_path), *argv])


def test_a_checkpoint_keeps_its_own_config(folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path / "first"))
    options = ["--checkpoint", str(tmp_path / "first"), "--dataset", str(folder / "data"), "--use_cpu", "true"]
    options += ["--output_dir", str(tmp_path / "second"), "--num_train_epochs", "1", "--per_device_train_batch_size", "4"]
    with pytest.raises(SystemExit, match="brings its own config; num_prompts would be ignored"):
        train_hf.main([*options, "--num_prompts", "2"])
    train_hf.main(options)
    assert MPCLIPModel.from_pretrained(tmp_path / "second").config.num_prompts == 3
    origin = json.loads((tmp_path / "second" / "training.json").read_text())["ModelArguments"]
    assert (origin["num_prompts"], origin["projection_dim"], origin["text_model"]) == (3, 12, None)
    assert origin["templates"][0] == "The [APT-1] of this image means:"


def test_refusals_of_a_run(folder, tmp_path):
    with pytest.raises(SystemExit, match="no recipe"):
        train_hf.main(["nowhere.yaml"])
    with pytest.raises(SystemExit, match=r"^train_hf\.py: trained_layers=9 is outside 1\.\.3"):
        train_hf.main(arguments(folder, tmp_path, "--trained_layers", "9"))
    with pytest.raises(SystemExit, match="'tint' is no column"):
        train_hf.main(arguments(folder, tmp_path, "--group_column", "tint"))
    with pytest.raises(SystemExit, match="Use projection_dim"):
        train_hf.main(arguments(folder, tmp_path, "--projection_dim", "10"))
    with pytest.raises(SystemExit, match=r"^train_hf\.py: .*nothing_here"):
        train_hf.main(arguments(folder, tmp_path, "--text_model", str(tmp_path / "nothing_here")))


def test_every_recipe_of_the_project_parses(tmp_path):
    from pathlib import Path

    recipes = sorted(Path(train_hf.__file__).parent.glob("configs/*.yaml"))
    assert recipes
    for recipe in recipes:
        parse_options([str(recipe), "--output_dir", str(tmp_path), "--use_cpu", "true"])


def test_group_sampler_keeps_chunks_of_a_group_together():
    epoch = [0]
    sampler = GroupSampler(list("aaabbbccc"), 2, seed=0, epoch=lambda: epoch[0])
    first, again = list(sampler), list(sampler)
    assert first == again and sorted(first) == list(range(9)) and len(sampler) == 9
    groups = [row // 3 for row in first]
    assert sum(a == b for a, b in itertools.pairwise(groups)) >= 3
    epoch[0] = 1
    assert list(sampler) != first


def test_length_sampler_batches_texts_of_a_length():
    epoch, lengths = [0], [(7 * i) % 101 for i in range(403)]
    sampler = LengthSampler(lambda: lengths, 4, seed=0, epoch=lambda: epoch[0])
    first, again = list(sampler), list(sampler)
    assert first == again and sorted(first) == list(range(403)) and len(sampler) == 403
    batches = [[lengths[row] for row in first[i : i + 4]] for i in range(0, 400, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 10  # of 80 in random batches
    assert [min(batch) for batch in batches] != sorted(min(batch) for batch in batches)
    epoch[0] = 1
    assert list(sampler) != first


def test_group_by_length_follows_the_captions_of_the_epoch(folder, tmp_path):
    extra = ("--train_sampling_strategy", "group_by_length")
    trainer = build_trainer(parse_options(arguments(folder, tmp_path, *extra)))
    dataset = trainer.train_dataset
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert dataset.caption_lengths() == [len(dataset[i]["captions"][0]) for i in range(len(dataset))]
    assert trainer._get_train_sampler().lengths() == dataset.caption_lengths()
    both = arguments(folder, tmp_path, *extra, "--group_column", "half")
    with pytest.raises(ValueError, match="by group_column or by length"):
        build_trainer(parse_options(both)).get_train_dataloader()


def test_the_logit_scale_is_bounded_and_keeps_its_gradient(folder, tmp_path):
    """At its bound the scale must still be able to fall: a clamp inside the loss alone would hold it there for good."""
    trainer = build_trainer(parse_options(arguments(folder, tmp_path)))
    with torch.no_grad():
        trainer.model.logit_scale.log_scale.fill_(9.0)
    trainer.callback_handler.on_optimizer_step(trainer.args, trainer.state, trainer.control)
    scale = trainer.model.logit_scale
    assert scale.log_scale.exp().item() == pytest.approx(scale.MAX_SCALE, rel=1e-4)
    scale(torch.tensor(0.5)).backward()
    assert scale.log_scale.grad > 0
