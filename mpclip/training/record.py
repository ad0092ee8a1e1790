"""training.json: the record of a training run, from which the model card is written.

It is made at the end of the run, because some facts cannot be found later: whether a name was a relative path or a Hub id, what
the folders of the towers contained, how many parameters a merged adapter had.
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
from mpclip.hardware import describe_machine, speeds

from .arguments import RunOptions
from .options import ModelArguments

logger = logging.getLogger("train_hf")

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
HUB_LICENCES = {"Apache-2.0": "apache-2.0", "Gemma terms of use": "gemma"}  # licence in BACKBONES -> identifier of the Hub


def record_of(trainer, *, options: RunOptions, command: list[str], resumed_from: str | None = None) -> dict:
    """The content of training.json.

    Args:
        trainer: [`MPCLIPTrainer`] after training. A LoRA adapter must not be merged yet.
        options: the options of the run.
        command: the command line. A Hub token in it is replaced.
        resumed_from: the checkpoint from which the run was resumed, or None.

    Returns:
        A dict of JSON values:

        * `command`, `commit`, `versions` of the libraries;
        * `ModelArguments`, `DataArguments`, `MPCLIPTrainingArguments`: the options; those of the model with the values of its
          config;
        * `base_models` and `data`, in the form of `describe_source`; `data` has in addition the numbers of images and captions
          in `train` and `eval`; of a stream the images of an epoch, and None for the captions, which nobody has counted;
        * `trained_parameters`, 0 if no step was made; `processes`, `machine`, `date`, `resumed_from`;
        * `gflops`: the machine's speed in each dtype, from which `precision` was chosen.
    """
    arguments, config, secret = trainer.args, trainer.model.config, trainer.args.hub_token
    steps = not arguments.without_steps
    model_options = asdict(options.model) | {name: getattr(config, name) for name in OPTION_NAMES}
    # These as given: the config has replaced a default of None by a value.
    as_given = ("logit_scale_init_value", "boundary_layer", "frame_position")
    model_options |= {name: getattr(options.model, name) for name in as_given}
    if options.model.checkpoint:
        model_options |= {"text_model": None, "vision_model": None}  # not used: the towers come from the checkpoint
    counts = {
        name: _count(data)
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
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad and steps),
        "processes": arguments.world_size,
        "machine": describe_machine(str(arguments.device)),
        "gflops": speeds(arguments.device.type)["gflops"],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "resumed_from": resumed_from and Path(resumed_from).name,
    }


def _count(data) -> dict[str, int | None]:
    """The numbers of images and captions of a data set, and of images that could not be read in training, if there are any."""
    if not hasattr(data, "rows"):
        return {"images": len(data), "captions": None}
    unreadable = len(getattr(data, "unreadable", []))
    counts = {"images": len(data), "captions": sum(map(len, data.rows.with_format(None)["captions"]))}
    return counts | ({"unreadable": unreadable} if unreadable else {})


def _git_commit() -> str | None:
    """The git commit of this code; None outside a git checkout."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


def base_models(arguments: ModelArguments) -> list[dict]:
    """The pretrained models that the weights come from.

    Args:
        arguments: of the run.

    Returns:
        For each model `tower` ("text", "vision" or "both") and the result of `describe_source`. A run that continues a local
        checkpoint has the base models of that checkpoint, if its training.json names them.
    """
    if arguments.checkpoint is None:
        towers = {"text": arguments.text_model, "vision": arguments.vision_model}
        return [{"tower": tower} | describe_source(name, "model") for tower, name in towers.items()]
    recorded = read_json(Path(arguments.checkpoint, "training.json")).get("base_models")
    return recorded or [{"tower": "both"} | describe_source(arguments.checkpoint, "model")]


def describe_source(name: str, kind: str) -> dict:
    """Describe a model or a data set: where it is from, and its licence.

    Licence and language are read from the metadata on top of a folder's README.md or ATTRIBUTION.md, or from the card on the
    Hub. The attribution is the first paragraph of a folder's ATTRIBUTION.md.

    Args:
        name: as given to train_hf.py: a packaged backbone, a folder, a file or a Hub id.
        kind: "model" or "dataset".

    Returns:
        `name` (for a folder its last part), `hub_id`, `where`, `license` (identifier of the Hub), `language`, `attribution`.
        Unknown values are None.
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
    """The YAML metadata on top of a Markdown file; {} if there are none."""
    if not file.is_file() or not file.read_text(encoding="utf-8").startswith("---"):
        return {}
    try:
        return ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        logger.warning("The metadata of %s cannot be read (%s); its licence counts as unknown.", file, error)
        return {}


def _first_paragraph(file: Path) -> str | None:
    """The first paragraph of a Markdown file that is neither metadata nor a heading; None if there is none."""
    if not file.is_file():
        return None
    text = REGEX_YAML_BLOCK.sub("", file.read_text(encoding="utf-8"))
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return next((part for part in paragraphs if part and not part.startswith("#")), None)


def _metadata_on_hub(name: str, kind: str) -> dict:
    """The metadata of a card on the Hub; {} if it cannot be read."""
    try:
        card_data = HfApi().repo_info(name, repo_type=kind, timeout=10).card_data
    except Exception as error:  # of the network, the Hub or the card: the licence is then unknown
        logger.warning("The card of %s cannot be read (%s); its licence counts as unknown.", name, type(error).__name__)
        return {}
    return card_data.to_dict() if card_data is not None else {}
