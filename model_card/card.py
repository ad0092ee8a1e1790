"""write_card: the model card of a checkpoint, and the picture beside it."""

import dataclasses
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import ModelCard, ModelCardData

from eval.tables import markdown_table
from mpclip.data.image_text import load_image_text
from mpclip.data.reading import READING_NAMES
from mpclip.files import read_json
from mpclip.maps.drawing import draw_maps
from mpclip.maps.prompt_maps import prompt_maps

from .evaluation import Measured, all_measured, result_table
from .facts import (
    TOWERS,
    code,
    duration,
    fenced,
    image_pooling_in_words,
    language_codes,
    large,
    licence_of_weights,
    loss_in_words,
    options_given,
    parameters_in,
    plain,
    prompt_rows,
    trained_in_words,
)

logger = logging.getLogger("train_hf")

TEMPLATE = Path(__file__).parent / "template.md"
PICTURE = "assets/maps.png"  # path from the card
PICTURES = 3  # shown in it
OLDEST_TRANSFORMERS = "5.17"
TAGS = ["mp-clip", "image-text-retrieval", "video-text-retrieval", "multi-prompt", "custom_code"]
PAPER = {
    "title": "Context-Adaptive Multi-Prompt Embedding with Large Language Models for Vision-Language Alignment",
    "arxiv": "2508.02762",
}
PAPER["bibtex"] = f"""@inproceedings{{kim2025multiprompt,
  title = {{{PAPER["title"]}}},
  author = {{Kim, Dahun and Angelova, Anelia}},
  booktitle = {{Conference on Language Modeling (COLM)}},
  year = {{2025}},
  eprint = {{{PAPER["arxiv"]}}},
  archivePrefix = {{arXiv}}
}}"""


def write_card(
    folder: str | Path,
    *,
    evaluations: Sequence[str | Path] = (),
    out: str | Path | None = None,
    repo_id: str | None = None,
    model=None,
    processor=None,
    rows: datasets.Dataset | None = None,
) -> Path:
    """Write the card of a checkpoint.

    Args:
        folder: of the checkpoint. It must have config.json; training.json, train_results.json, eval_results.json and the
            weights are read if they are there.
        evaluations: JSON files of `python -m eval retrieval` and `differences`.
        out: the card's file; README.md in `folder` by default.
        repo_id: name that the snippets load; by default the recorded `hub_model_id`, or the folder's name.
        model, processor: of this checkpoint, to draw the picture with. Without them, an existing picture is kept, and a missing
            one is drawn with the saved model.
        rows: table with a column `image`, of which some are drawn; by default the recorded evaluation split.

    Returns:
        The card's file.

    Raises:
        FileNotFoundError: `folder` has no config.json.
        ValueError: `folder` is no MP-CLIP checkpoint with both towers, or a file of `evaluations` is not a result of it.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if not config:
        raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a checkpoint, such as an --output_dir.")
    if config.get("model_type") != "mpclip":
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}; expected 'mpclip'.")
    if config.get("text_only"):
        raise ValueError(f"{folder} is a text-only export: name the checkpoint that it was made from, with --source.")
    training = read_json(folder / "training.json")
    repo_id = repo_id or training.get("MPCLIPTrainingArguments", {}).get("hub_model_id") or folder.absolute().name
    results = all_measured(Measured(folder, repo_id), config, training, list(evaluations))
    out = Path(out) if out is not None else folder / "README.md"
    picture = out.parent / PICTURE
    if model is not None or not picture.exists():
        _draw(picture, folder, config, training, model, processor, rows)

    base_models = training.get("base_models", [])
    licence, licence_sentence = licence_of_weights(base_models)
    facts = card_facts(folder, config, training) | {
        "title": repo_id.split("/")[-1],
        "repo": json.dumps(repo_id, ensure_ascii=False),
        "results": results,
        "result_table": result_table(results),
        "shows_intervals": any(row.intervals for row in results),
        "licence": licence_sentence,
        "picture": PICTURE if picture.exists() else None,
    }
    in_index = [result for row in results for result in row.for_index()]
    hub_ids = list(dict.fromkeys(model["hub_id"] for model in base_models if model["hub_id"]))
    source = training.get("data", {})
    metadata = ModelCardData(
        **licence,
        base_model=hub_ids or None,
        datasets=[source["hub_id"]] if source.get("hub_id") else None,
        language=language_codes(source.get("language")) or None,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=[*TAGS, *(["sentence-transformers"] if facts["has_sentence_transformers"] else [])],
        model_name=facts["title"],
        eval_results=in_index or None,
    )
    if not in_index:
        metadata.pop("model_name")  # part of the model-index
    ModelCard.from_template(metadata, template_path=str(TEMPLATE), **facts).save(out)
    # PEFT writes a card to fill in beside an adapter. This card describes the adapter.
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    return out


def card_facts(folder: Path, config: dict, training: dict) -> dict:
    """Values of the template that describe the checkpoint and its training.

    Args:
        folder: of the checkpoint.
        config: content of config.json.
        training: content of training.json; {} if it is not there.
    """
    arguments = {}
    if "ModelArguments" in training:
        arguments = {"model": training["ModelArguments"], "data": training["DataArguments"]}
    prompts = prompt_rows(config, arguments.get("model", {}).get("adaptive_init"))
    base_models = training.get("base_models", [])
    languages = language_codes(training.get("data", {}).get("language"))
    facts = {
        "config": config,
        "paper": PAPER,
        "code": code,
        "plain": plain,
        "towers": TOWERS,
        "oldest_transformers": OLDEST_TRANSFORMERS,
        "arguments": arguments,
        "prompts": prompts,
        "prompt_table": _prompt_table(prompts),
        "segment": config["projection_dim"] // config["num_prompts"],
        "weights": [1.5] + [1] * (config["num_prompts"] - 1),
        "image_pooling": image_pooling_in_words(config),
        "per_prompt": config["num_prompts"] > 1 and not config.get("joint_projection"),  # whether a segment stands for a prompt
        "queries_per_prompt": config["image_pooling"] == "attention_per_prompt",
        "loss": loss_in_words(config),
        "parameters": large(parameters_in(folder)),
        "trained_parameters": large(training["trained_parameters"]) if "trained_parameters" in training else None,
        "base_models": base_models,
        "gemma": any(model["license"] == "gemma" for model in base_models),
        "language": ", ".join(languages),
        "has_pipeline": "AutoModelForZeroShotImageClassification" in config.get("auto_map", {}),
        "has_sentence_transformers": (folder / "modules.json").exists(),
        "pictures_alt": "Pictures, and maps over them of what each prompt's part of the score depends on.",
        "pictures_from": _pictures_from(training),
    }
    if arguments:
        facts |= {
            "data": _data_in_words(training),
            "checkpoint": Path(arguments["model"]["checkpoint"] or "").name,
            "trained": trained_in_words(config, arguments["model"], any_trained=training.get("trained_parameters") != 0),
            "option_table": markdown_table(
                ["option", "value"], [[code(name), code(value, True)] for name, value in options_given(training)]
            ),
            "cost": _cost_in_words(read_json(folder / "train_results.json"), training),
            "commit": training.get("commit"),
            "versions": ", ".join(f"{name} {version}" for name, version in training["versions"].items()),
            "command": fenced(shlex.join(training["command"])),
        }
    return facts


def _prompt_table(prompts: list[dict]) -> str:
    """The prompts, as from `prompt_rows`, as a Markdown table."""
    head, rows = ["", "prompt, after the text"], [[i, code(prompt["template"], True)] for i, prompt in enumerate(prompts, 1)]
    if any(prompt["init"] for prompt in prompts):
        head.append("[APT] initialised from")
        rows = [[*row, code(prompt["init"] or "a random vector", True)] for row, prompt in zip(rows, prompts, strict=True)]
    if any(prompt["negated"] for prompt in prompts):
        head.append("negated twin, in training")
        rows = [[*row, code(prompt["negated"], True)] for row, prompt in zip(rows, prompts, strict=True)]
    return markdown_table(head, rows)


def _data_in_words(training: dict) -> dict:
    """`line`, the training data in Markdown; their `licence`; and their `attribution`."""
    arguments, source = training["DataArguments"], training.get("data", {})
    name = source.get("name") or Path(arguments["dataset"]).name
    where = {"Hub": f"[{name}](https://huggingface.co/datasets/{name})", "local": f"{code(name)} (a local data set)"}
    line = where.get(source.get("where"), code(name)) + f", split {code(arguments['train_split'])}"
    if "train" in source:
        captions = source["train"]["captions"]
        with_captions = "" if captions is None else f" with {captions:,} captions"
        line += f": {source['train']['images']:,} images{with_captions}{' per epoch' if captions is None else ''}"
    if arguments["group_column"]:
        line += f"; batches hold groups of {arguments['group_size']} rows with equal {code(arguments['group_column'])}"
    return {"line": line, "licence": source.get("license"), "attribution": source.get("attribution")}


def _cost_in_words(metrics: dict, training: dict) -> str | None:
    """Duration, speed, dtype and machine of the training; None if they are not recorded."""
    if not metrics:
        return None
    parts = [duration(metrics["train_runtime"])]
    if training.get("resumed_from"):  # Trainer's rate counts the samples of the whole run
        parts[0] += f" for the last part of a run that was resumed from {code(training['resumed_from'])}"
    else:
        parts.append(f"{metrics['train_samples_per_second']:.1f} samples/s")
    if precision := training.get("MPCLIPTrainingArguments", {}).get("precision"):
        fast = ", ".join(f"{dtype} {speed:.3g}" for dtype, speed in training.get("gflops", {}).items())
        parts.append(f"computed in {precision}" + (f" (GFLOPS of a matrix product there: {fast})" if fast else ""))
    machine = training.get("machine", {})
    where = [str(machine[key]) for key in ("gpu", "cpu") if key in machine]
    where += [f"{machine['cores']} cores"] if "cores" in machine else []
    where += [f"{training['processes']} processes"] if training.get("processes", 1) > 1 else []
    return ", ".join(parts) + (f"; on {', '.join(where)}" if where else "")


def _pictures_from(training: dict) -> str | None:
    """The data set and the split of the pictures, in Markdown."""
    if "DataArguments" not in training:
        return None
    arguments = training["DataArguments"]
    name = training.get("data", {}).get("name") or Path(arguments["dataset"]).name
    return f"{code(name)}, split {code(arguments['eval_split'] or arguments['train_split'])}"


def _draw(picture: Path, folder: Path, config: dict, training: dict, model, processor, rows) -> None:
    """Draw where a few captions' scores come from, if the model's pooling reads places and its data are recorded.

    A failure is logged and leaves no picture; the card is written without it.

    Args:
        picture: the PNG to write.
        folder, config, training, model, processor, rows: see `write_card` and `card_facts`.
    """
    picture.unlink(missing_ok=True)
    if config["image_pooling"] == "cls" or "DataArguments" not in training:
        return
    try:
        if rows is None:
            arguments = training["DataArguments"]
            split = arguments["eval_split"] or arguments["train_split"]
            reading = {name: arguments[name] for name in READING_NAMES if name in arguments}
            rows = load_image_text(arguments["dataset"], split, **reading)
        if model is None:
            from modeling_mpclip import MPCLIPModel, MPCLIPProcessor

            model, processor = MPCLIPModel.from_pretrained(folder), MPCLIPProcessor.from_pretrained(folder)
        chosen = np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).astype(int)
        found = [prompt_maps(model, processor, row["captions"][0], row["image"]) for row in (rows[int(i)] for i in chosen)]
        prompts = prompt_rows(config, training["ModelArguments"]["adaptive_init"])
        titles = [p["template"] + (f" ({p['init']})" if p["init"] else "") for p in prompts]
        if titles and not config.get("joint_projection"):
            found = [dataclasses.replace(one, prompts=titles) for one in found]
        draw_maps(found, picture)
    except Exception as error:  # such as a data set that is gone; the card is written all the same
        logger.warning("The picture of what each prompt sees could not be drawn: %s", error)
