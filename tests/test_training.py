"""`train_hf.py` end to end on tiny towers and a dozen pictures: every tuning, resume, caches, logs, saved model."""

import itertools
import json

import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS, make_processor, make_tokenizer
from PIL import Image
from transformers import AutoModel
from transformers.trainer_utils import get_last_checkpoint

import train_hf
from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from mpclip_data.image_text import ImageTextDataset, load_image_text
from mpclip_training.arguments import parse_arguments
from mpclip_training.collator import MPCLIPCollator
from mpclip_training.group_sampler import GroupSampler
from mpclip_training.state_cache import cache_image_states, cache_text_states
from mpclip_training.tuning import learning_rate_group, prepare_tuning

COLORS = ["red", "green", "blue", "yellow", "black", "white", "pink", "brown", "gray", "orange", "purple", "cyan"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tower checkpoints and a data set of coloured squares with two or three captions each."""
    root = tmp_path_factory.mktemp("training")
    torch.manual_seed(1)
    AutoModel.from_config(TEXT_CONFIGS["llama"]()).save_pretrained(root / "text")
    make_tokenizer().save_pretrained(root / "text")
    AutoModel.from_config(VISION_CONFIGS["vit"]()).save_pretrained(root / "vision")
    make_processor(make_tokenizer()).image_processor.save_pretrained(root / "vision")
    (root / "data").mkdir()
    with open(root / "data" / "metadata.jsonl", "w") as file:
        for i, color in enumerate(COLORS):
            Image.new("RGB", (40, 40), color).save(root / "data" / f"{i}.png")
            captions = [f"a {color} square", f"{color} all over", f"the color {color}"][: 2 + i % 2]
            split = "validation" if i >= 8 else "train"
            row = {"file_name": f"{i}.png", "split": split, "captions": captions, "half": i % 4}
            file.write(json.dumps(row) + "\n")
    return root


def arguments(folder, out, *extra: str) -> list[str]:
    options = {
        "text_model": folder / "text",
        "vision_model": folder / "vision",
        "dataset": folder / "data",
        "output_dir": out,
        "cache_dir": out / "cache",
        "num_prompts": 3,
        "projection_dim": 12,
        "pooling_width": 16,
        "pooling_heads": 2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))] + list(extra)


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
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists() == ("lora" in extra)


def get_checkpoint(out):
    from pathlib import Path

    return Path(get_last_checkpoint(str(out)))


def test_what_is_frozen_stays_and_what_is_trained_moves(folder, tmp_path):
    trainer = train_hf.build_trainer(*parse_arguments(arguments(folder, tmp_path)))
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
    trainer = train_hf.build_trainer(*parse_arguments(arguments(folder, tmp_path, *extra)))
    of = {id(p): (g["lr"], g["weight_decay"]) for g in trainer.create_optimizer().param_groups for p in g["params"]}
    model = trainer.model
    assert of[id(model.text_projection.weight)] == (0.01, 0.5)
    assert of[id(model.logit_scale.log_scale)] == (0.01, 0.0)
    assert of[id(model.text_model.layers[2].mlp.up_proj.weight)] == (0.02, 0.5)
    assert of[id(model.text_model.norm.weight)] == (0.02, 0.0)
    assert of[id(model.text_model.boundary_embedding.weight)] == (0.03, 0.0)
    assert len(of) == sum(p.requires_grad for p in model.parameters())


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_hf.main(arguments(folder, whole, "--load_best_model_at_end", "false"))
    described = parse_arguments(arguments(folder, cut, "--load_best_model_at_end", "false"))
    trainer = train_hf.build_trainer(*described)

    class Stop(Exception):
        pass

    from transformers import TrainerCallback

    class StopAfterFirstEpoch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise Stop

    trainer.add_callback(StopAfterFirstEpoch())
    with pytest.raises(Stop):
        train_hf.train(trainer, [], described[:2])
    assert get_checkpoint(cut).name == "checkpoint-2"
    train_hf.main(arguments(folder, cut, "--load_best_model_at_end", "false"))
    one, other = (MPCLIPModel.from_pretrained(out).state_dict() for out in (whole, cut))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=0, rtol=0)


def test_a_run_with_other_options_is_not_gone_on_from(folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path))
    with pytest.raises(ValueError, match=r"learning_rate: 0\.001 -> 0\.5.*--resume_from_checkpoint false"):
        train_hf.main(arguments(folder, tmp_path, "--learning_rate", "0.5"))
    train_hf.main(arguments(folder, tmp_path, "--learning_rate", "0.5", "--resume_from_checkpoint", "false"))


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step, file in ((9, "trainer_state.json"), (10, "model.safetensors")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / file).touch()
    assert train_hf.last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert train_hf.last_complete_checkpoint(tmp_path / "checkpoint-9") is None


def test_merged_lora_equals_the_adapter_on_its_base(folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path, "--text_tuning", "lora", "--adaptive_tokens", "input", "--learning_rate", "0.01"))
    from peft import PeftModel

    torch.manual_seed(42)  # the base's new parts are drawn as in training
    trainer = train_hf.build_trainer(*parse_arguments(arguments(folder, tmp_path, "--adaptive_tokens", "input")))
    adapted = PeftModel.from_pretrained(trainer.model, tmp_path / "adapter").eval()
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A")]
    assert names and all("text_model.layers" in name for name in names)
    merged = MPCLIPModel.from_pretrained(tmp_path).eval()
    batch = trainer.processing_class(text=COLORS, images=[Image.new("RGB", (40, 40), color) for color in COLORS])
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits_per_image, merged(**batch).logits_per_image, atol=1e-3, rtol=1e-4)


def test_evaluation_equals_the_plain_loop(folder, tmp_path):
    """Images with different numbers of captions, against one text and one image at a time."""
    extra = ("--per_device_eval_batch_size", "1")  # batches with two captions and with three
    trainer = train_hf.build_trainer(*parse_arguments(arguments(folder, tmp_path, *extra)))
    images, texts, mask = trainer.predict(trainer.eval_dataset).predictions
    model, processor = trainer.model.eval(), trainer.processing_class
    rows = load_image_text(str(folder / "data"), "validation")
    assert (mask > 0).sum() == sum(map(len, rows["captions"]))
    for i, row in enumerate(rows):
        with torch.no_grad():
            image = model(**processor(images=[row["image"]])).image_embeds[0]
            torch.testing.assert_close(torch.from_numpy(images[i]), image, atol=1e-5, rtol=1e-4)
            for c, caption in enumerate(row["captions"]):
                text = model(**processor(text=[caption])).text_embeds[0]
                torch.testing.assert_close(torch.from_numpy(texts[i, c]), text, atol=1e-5, rtol=1e-4)


# Caches -----------------------------------------------------------------------------------------------------------


def cached_and_live(folder, tmp_path, *extra):
    model_arguments, data_arguments, _ = parse_arguments(arguments(folder, tmp_path, *extra))
    model, processor = train_hf.build_model(model_arguments, data_arguments.max_text_length)
    prepare_tuning(model, model_arguments)
    rows = load_image_text(str(folder / "data"), "train")
    return model.eval(), processor, rows


def test_cached_states_equal_live_ones_to_bfloat16(folder, tmp_path):
    model, processor, rows = cached_and_live(folder, tmp_path, "--negation_weight", "1.0")
    captions = [caption for row in rows["captions"] for caption in row]
    text = cache_text_states(model, processor.tokenizer, captions, tmp_path, negated=True, tokens_per_batch=200)
    images = cache_image_states(model, processor.image_processor, rows, tmp_path, batch_size=3)
    dataset = ImageTextDataset(rows, "random", seed=0)
    batch = [dataset[i] for i in range(4)]
    live = model(**MPCLIPCollator(processor)(batch), return_loss=True)
    cached = model(**MPCLIPCollator(processor, text, images)(batch), return_loss=True)
    for name in ("text_embeds", "image_embeds", "negated_text_embeds"):
        cosine = torch.nn.functional.cosine_similarity(cached[name], live[name])
        assert cosine.min() > 0.99, name
    assert len(text.store) == len(set(captions))


def test_a_cache_is_found_again_and_misses_when_anything_changes(folder, tmp_path, monkeypatch):
    model, processor, rows = cached_and_live(folder, tmp_path)
    make = lambda m: cache_text_states(m, processor.tokenizer, ["a red square", "blue"], tmp_path)  # noqa: E731
    first = make(model).batch(["blue"])["text_hidden_states"]
    caches = lambda: {path.name for path in tmp_path.iterdir()}  # noqa: E731
    found = caches()
    with monkeypatch.context() as patch:
        patch.setattr(type(model.text_model), "lower", None)  # computing anything would fail
        torch.testing.assert_close(make(model).batch(["blue"])["text_hidden_states"], first, atol=0, rtol=0)
    assert caches() == found
    with torch.no_grad():
        model.text_model.layers[0].mlp.up_proj.weight[0, 0] += 1
    make(model)
    assert len(caches()) == len(found) + 1
    with torch.no_grad():
        model.text_model.adaptive_embedding.weight[0, 0] += 1
    make(model)
    assert len(caches()) == len(found) + 2


def test_a_damaged_shard_is_computed_again_and_a_cut_run_goes_on(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mpclip_training.state_cache.SHARD_ROWS", 3)
    model, processor, rows = cached_and_live(folder, tmp_path)
    texts = [f"a {color} square" for color in COLORS]
    make = lambda: cache_text_states(model, processor.tokenizer, texts, tmp_path)  # noqa: E731
    states = make()
    expected = states.batch(texts)["text_hidden_states"]
    shards = sorted(tmp_path.glob("*/*.arrow"))
    assert len(shards) == 4
    data = bytearray(shards[1].read_bytes())
    data[len(data) // 2] ^= 0xFF
    shards[1].write_bytes(data)
    shards[3].unlink()
    computed = []
    lower = type(model.text_model).lower
    monkeypatch.setattr(
        type(model.text_model), "lower", lambda self, ids, *a: computed.append(len(ids)) or lower(self, ids, *a)
    )
    torch.testing.assert_close(make().batch(texts)["text_hidden_states"], expected, atol=0, rtol=0)
    assert sum(computed) == 6  # the two bad shards of three rows alone
    assert "is damaged or missing" in caplog.text


def test_fewer_prompts_use_the_cache_of_more(folder, tmp_path, monkeypatch):
    many, processor, rows = cached_and_live(folder, tmp_path, "--num_prompts", "3", "--negation_weight", "1")
    texts = ["a red square", "the color blue", ""]
    cache_text_states(many, processor.tokenizer, texts, tmp_path, negated=True)
    one, _, _ = cached_and_live(folder, tmp_path, "--num_prompts", "1")
    with torch.no_grad():
        one.text_model.adaptive_embedding.weight.copy_(many.text_model.adaptive_embedding.weight[:1])
    expected = one.lower_text(**processor(text=texts, padding_side="left"))
    with monkeypatch.context() as patch:
        patch.setattr(type(one.text_model), "lower", None)
        states = cache_text_states(one, processor.tokenizer, texts, tmp_path).batch(texts)["text_hidden_states"]
    similarity = torch.nn.functional.cosine_similarity(states.float(), expected, dim=-1)
    mask = torch.cat([processor(text=texts, padding_side="left")["attention_mask"], torch.ones(3, len(one.prompt_tree()))], 1)
    assert similarity[mask.bool()].min() > 0.99


def test_a_damaged_cache_of_more_prompts_is_left_alone(folder, tmp_path):
    """Computing the few prompts' states into the many's cache would poison it with valid checksums."""
    many, processor, rows = cached_and_live(folder, tmp_path, "--num_prompts", "3")
    texts = ["a red square", "the color blue"]
    whole = cache_text_states(many, processor.tokenizer, texts, tmp_path)
    expected = whole.batch(texts)["text_hidden_states"]
    (shard,) = tmp_path.glob("*/*.arrow")
    shard.unlink()
    one, _, _ = cached_and_live(folder, tmp_path, "--num_prompts", "1")
    with torch.no_grad():
        one.text_model.adaptive_embedding.weight.copy_(many.text_model.adaptive_embedding.weight[:1])
    states = cache_text_states(one, processor.tokenizer, texts, tmp_path)
    assert states.batch(texts)["text_hidden_states"].shape[1] < expected.shape[1]
    again = cache_text_states(many, processor.tokenizer, texts, tmp_path)
    torch.testing.assert_close(again.batch(texts)["text_hidden_states"], expected, atol=0, rtol=0)


def test_what_is_trained_is_not_cached(folder, tmp_path):
    model, processor, rows = cached_and_live(folder, tmp_path, "--adaptive_tokens", "input")
    with pytest.raises(ValueError, match="adaptive_tokens='boundary'"):
        cache_text_states(model, processor.tokenizer, ["a"], tmp_path)
    model, processor, rows = cached_and_live(folder, tmp_path, "--vision_tuning", "full")
    with pytest.raises(ValueError, match="vision encoder is trained"):
        cache_image_states(model, processor.image_processor, rows, tmp_path)
    model.text_model.layers[0].requires_grad_(True)
    with pytest.raises(ValueError, match="parameters below layer 2 are trained"):
        cache_text_states(model, processor.tokenizer, ["a"], tmp_path)


# Options ----------------------------------------------------------------------------------------------------------


def test_recipe_and_overrides(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("num_prompts: 3\nadaptive_init: [a, b, c]\nload_best_model_at_end: false\nlearning_rate: 1e-2\n")
    model, data, training = parse_arguments([str(recipe), "--learning_rate", "0.5", "--output_dir", str(tmp_path)])
    assert (model.num_prompts, model.adaptive_init) == (3, ["a", "b", "c"])
    assert training.learning_rate == 0.5 and not training.load_best_model_at_end
    assert data.cache_states is False


@pytest.mark.parametrize(
    "recipe, argv, message",
    [
        ("num_promts: 3", [], "Unknown option 'num_promts' in .*Did you mean 'num_prompts'"),
        ("", ["--num_promts", "3"], "Unknown option 'num_promts' in the command line"),
        ("- a", [], "must be a mapping"),
        ("text_tuning: some", [], "use one of 'frozen', 'last', 'lora', 'full'"),
        ("bad_images: keep", [], "use 'skip' or 'fail'"),
    ],
)
def test_unknown_options_are_refused(tmp_path, recipe, argv, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(file), "--output_dir", str(tmp_path), *argv])


def test_a_checkpoint_keeps_its_own_config(folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path / "first"))
    options = ["--checkpoint", str(tmp_path / "first"), "--dataset", str(folder / "data"), "--use_cpu", "true"]
    options += ["--output_dir", str(tmp_path / "second"), "--num_train_epochs", "1", "--per_device_train_batch_size", "4"]
    with pytest.raises(ValueError, match="brings its own config; num_prompts would be ignored"):
        train_hf.main([*options, "--num_prompts", "2"])
    train_hf.main(options)
    assert MPCLIPModel.from_pretrained(tmp_path / "second").config.num_prompts == 3


def test_refusals_of_a_run(folder, tmp_path):
    with pytest.raises(SystemExit, match="no recipe"):
        train_hf.main(["nowhere.yaml"])
    with pytest.raises(ValueError, match=r"outside 1\.\.3"):
        train_hf.main(arguments(folder, tmp_path, "--trained_layers", "9"))
    with pytest.raises(ValueError, match="'tint' is no column"):
        train_hf.main(arguments(folder, tmp_path, "--group_column", "tint"))
    with pytest.raises(ValueError, match="Use projection_dim"):
        train_hf.main(arguments(folder, tmp_path, "--projection_dim", "10"))


def test_every_recipe_of_the_project_parses(tmp_path):
    from pathlib import Path

    recipes = sorted(Path(train_hf.__file__).parent.glob("configs/*.yaml"))
    assert recipes
    for recipe in recipes:
        parse_arguments([str(recipe), "--output_dir", str(tmp_path)])


def test_group_sampler_keeps_chunks_of_a_group_together():
    epoch = [0]
    sampler = GroupSampler(list("aaabbbccc"), 2, seed=0, epoch=lambda: epoch[0])
    first, again = list(sampler), list(sampler)
    assert first == again and sorted(first) == list(range(9)) and len(sampler) == 9
    groups = [row // 3 for row in first]
    assert sum(a == b for a, b in itertools.pairwise(groups)) >= 3
    epoch[0] = 1
    assert list(sampler) != first


def test_the_logit_scale_is_bounded_and_keeps_its_gradient(folder, tmp_path):
    """At its bound the scale must still be able to fall: a clamp inside the loss alone would hold it there for good."""
    trainer = train_hf.build_trainer(*parse_arguments(arguments(folder, tmp_path)))
    with torch.no_grad():
        trainer.model.logit_scale.log_scale.fill_(9.0)
    trainer.callback_handler.on_optimizer_step(trainer.args, trainer.state, trainer.control)
    scale = trainer.model.logit_scale
    assert scale.log_scale.exp().item() == pytest.approx(scale.MAX_SCALE, rel=1e-4)
    scale(torch.tensor(0.5)).backward()
    assert scale.log_scale.grad > 0
