"""Train an MP-CLIP model on image-text pairs.

    python train_hf.py configs/openmoji_smollm2.yaml
    python train_hf.py configs/flickr8k_smollm2.yaml --dataset path/to/flickr8k --num_train_epochs 5
    python train_hf.py configs/flickr8k_smollm2.yaml configs/systems/mean_pooling.yaml --dataset path/to/flickr8k
    python train_hf.py --text_model Qwen/Qwen3-0.6B --vision_model google/siglip-base-patch16-224 \\
        --dataset my_pictures --train_split "train[:90%]" --eval_split "train[90%:]" \\
        --adaptive_tokens input --text_tuning lora --vision_tuning full --output_dir runs/mine
    accelerate launch train_hf.py configs/flickr8k_smollm2.yaml

A recipe is a YAML mapping of the options below. Several are laid over one another, a setting and then a system of
configs/systems; options on the command line override them; unknown ones are refused.

What happens: the data set is opened and its images checked; the two towers are joined (or `--checkpoint` is loaded); what
`--text_tuning` and `--vision_tuning` name is trained and the rest frozen; with `--cache_states true` the frozen towers run
once and training works on their stored states. Every epoch draws a new caption for each image and ends with
recall at 1, 5 and 10 both ways over the whole evaluation split.

`--output_dir` receives checkpoint-*/ while it runs and in the end the best model, with its code, processor, metrics
(`eval_results.json`), origin (`training.json`) and model card (`README.md`; `python -m model_card` writes it again). With LoRA
that is the merged model; a run that continued a `--checkpoint` also leaves adapter/, which goes onto that checkpoint. A run
that was interrupted goes on from its last checkpoint when it is started again; `--resume_from_checkpoint false` starts it anew
and moves the checkpoints that are there to `--output_dir`/_earlier-1/, where they could still be gone on from.

`--push_to_hub true --hub_model_id you/model` pushes that model in the end; `--hub_strategy` every_save, checkpoint or
all_checkpoints pushes in between as well. A repository that cannot be written to is refused at the start. A push that fails
later ends no training: in between it is logged, in the end the model is saved, the command that repeats the push is shown
and the exit status is 1.
"""

import itertools
import json
import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
from transformers import set_seed

from eval.metrics import retrieval_compute_metrics
from model_card.card import write_card
from model_card.energy import measured_energy
from model_card.origin import origin_facts
from modeling_mpclip import MPCLIPConfig, MPCLIPModel, MPCLIPProcessor
from mpclip.data.backbones import resolve_backbone
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.hub_push import HubPusher, PushFailed
from mpclip.training.options import DataArguments, ModelArguments, MPCLIPTrainingArguments, parse_arguments
from mpclip.training.state_cache import cache_image_states, cache_text_states
from mpclip.training.trainer import MPCLIPTrainer
from mpclip.training.tuning import boundary_layer, prepare_tuning

logger = logging.getLogger("train_hf")
# The model arguments that are the config's.
CONFIG_OPTIONS = (
    *("num_prompts", "projection_dim", "shared_projection", "templates", "negated_templates"),
    *("adaptive_tokens", "text_pooling"),
    *("image_pooling", "pooling_queries", "pooling_width", "pooling_heads"),
    *("loss", "logit_scale_init_value", "diversity_weight", "negation_weight", "negation_form", "elastic_prompts"),
)
RUN_FILE = "run.json"  # beside the checkpoints: what they were trained with
SHAPING_ARGUMENTS = (
    *("learning_rate", "text_learning_rate", "vision_learning_rate", "adaptive_learning_rate", "weight_decay"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs", "max_steps"),
    *("warmup_steps", "lr_scheduler_type", "seed", "bf16", "fp16", "train_sampling_strategy"),
)


def build_model(arguments: ModelArguments, max_text_length: int) -> tuple[MPCLIPModel, MPCLIPProcessor]:
    """The model to start from and its processor."""
    if arguments.checkpoint:
        default = ModelArguments()
        given = [name for name in (*CONFIG_OPTIONS, "adaptive_init") if getattr(arguments, name) != getattr(default, name)]
        if given:
            raise ValueError(
                f"--checkpoint {arguments.checkpoint} brings its own config; {', '.join(given)} would be ignored. "
                "Leave them out, or build a new model from --text_model and --vision_model."
            )
        model = MPCLIPModel.from_pretrained(arguments.checkpoint, dtype=torch.float32)
        return model, MPCLIPProcessor.from_pretrained(arguments.checkpoint)
    text, vision = resolve_backbone(arguments.text_model), resolve_backbone(arguments.vision_model)
    options = {name: getattr(arguments, name) for name in CONFIG_OPTIONS}
    scratch = arguments.text_from_scratch
    text_config = transformers.AutoConfig.from_pretrained(scratch or text).get_text_config()
    if arguments.adaptive_tokens == "boundary":
        options["boundary_layer"] = boundary_layer(text_config.num_hidden_layers, arguments)
    config = MPCLIPConfig(text_config, **options)  # refuses what does not fit before anything is loaded
    processor = MPCLIPProcessor.from_pretrained_towers(
        text, vision, [*config.templates, *config.negated_templates], max_text_length
    )
    model = MPCLIPModel.from_pretrained_towers(
        text,
        vision,
        tokenizer=processor.tokenizer,
        adaptive_init=arguments.adaptive_init,
        text_config=text_config if scratch else None,
        **options,
    )
    return model, processor


def build_trainer(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: MPCLIPTrainingArguments,
    open_split: Callable[[DataArguments, str], datasets.Dataset] | None = None,
) -> MPCLIPTrainer:
    """The Trainer that `main` runs: data, model, what is trained, cached states.

    `open_split` opens a split of the data; whoever trains on the same data many times need not look at every image anew.
    """
    open_split = open_split or open_rows
    if data_arguments.dataset is None:
        raise ValueError("No data set given: pass --dataset with a Hub id, a folder or a parquet file.")
    if arguments.n_gpu > 1:
        raise ValueError(
            f"One process sees {arguments.n_gpu} GPUs, among which torch would split every batch. "
            "Start a process for each: accelerate launch train_hf.py ..., or show it one: CUDA_VISIBLE_DEVICES=0."
        )
    cached_images = data_arguments.cache_states and model_arguments.vision_tuning == "frozen"
    if cached_images and data_arguments.smallest_crop < 1:
        raise ValueError(
            f"smallest_crop={data_arguments.smallest_crop} draws new crops in every epoch, but cache_states keeps the states "
            "of whole images. Use --vision_tuning full, --cache_states false or --smallest_crop 1."
        )
    hub_pusher = None
    if arguments.push_to_hub:
        hub_pusher = HubPusher(arguments, data_arguments.cache_dir)  # refuses before hours are spent
        arguments.push_to_hub = False  # or Trainer would push as well
    set_seed(arguments.seed)
    arguments.dataloader_pin_memory &= arguments.device.type != "cpu"
    rows = {"train": open_split(data_arguments, data_arguments.train_split)}
    if data_arguments.eval_split:
        rows["eval"] = open_split(data_arguments, data_arguments.eval_split)
    else:
        arguments.eval_strategy, arguments.load_best_model_at_end = "no", False

    base, processor = build_model(model_arguments, data_arguments.max_text_length)
    model = prepare_tuning(base, model_arguments)
    counts = [sum(p.numel() for p in base.parameters() if p.requires_grad or not only) for only in (True, False)]
    logger.info("%d of %d parameters are trained", *counts)

    def collator(which: str) -> MPCLIPCollator:
        negated = which == "train" and base.config.negation_weight > 0  # evaluation has no use for negated prompts
        device = arguments.device
        states = cached_states(base, processor, rows[which], negated, model_arguments, data_arguments, device)
        return MPCLIPCollator(processor, *states, all_captions=which != "train")

    trainer = MPCLIPTrainer(
        model=model,
        args=arguments,
        train_dataset=ImageTextDataset(
            rows["train"], "random", arguments.seed, not cached_images, data_arguments.smallest_crop
        ),
        eval_dataset=ImageTextDataset(rows["eval"], "all", with_images=not cached_images) if "eval" in rows else None,
        data_collator=collator("train"),
        eval_collator=collator("eval") if "eval" in rows else None,
        train_groups=_groups(rows["train"], data_arguments.group_column),
        group_size=data_arguments.group_size,
        hub_pusher=hub_pusher,
        write_card=partial(write_card, rows=rows.get("eval", rows["train"])),
        compute_metrics=retrieval_compute_metrics,
        processing_class=processor,
    )
    return trainer


def cached_states(
    model: MPCLIPModel,
    processor: MPCLIPProcessor,
    rows: datasets.Dataset,
    negated: bool,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    device: torch.device,
) -> tuple:
    """(text states, image states) of rows, each None where it is not cached: for `MPCLIPCollator`."""
    if not data_arguments.cache_states:
        return None, None
    folder, form = Path(data_arguments.cache_dir), data_arguments.cache_format
    text = images = None
    if data_arguments.cache_text_states:
        captions = [caption for row in rows.with_format(None)["captions"] for caption in row]
        text = cache_text_states(model, processor.tokenizer, captions, folder, negated, form, device)
    if model_arguments.vision_tuning == "frozen":
        images = cache_image_states(model, processor.image_processor, rows, folder, form, device)
    return text, images


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train; returns the final metrics. `argv` as on the command line."""
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(__doc__)
    try:
        model_arguments, data_arguments, arguments = parse_arguments(argv)
        logging.basicConfig(format="%(message)s")
        logger.setLevel(logging.INFO if arguments.should_log else logging.WARNING)
        trainer = build_trainer(model_arguments, data_arguments, arguments)
    except (ValueError, OSError) as error:  # an option, a file or a repository that is not what it should be
        raise SystemExit(f"train_hf.py: {error}") from error
    try:
        return train(trainer, argv, (model_arguments, data_arguments))
    except (OtherRun, PushFailed) as error:
        raise SystemExit(f"train_hf.py: {error}") from error


def train(trainer: MPCLIPTrainer, argv: list[str], described: tuple) -> dict[str, float]:
    """Run or resume training, evaluate, and save the model with its processor, metrics and origin."""
    arguments = trainer.args
    resume = arguments.resume_from_checkpoint
    if resume is None or str(resume).lower() == "true":
        resume = last_complete_checkpoint(Path(arguments.output_dir))
        if resume:
            logger.info("Going on from %s; --resume_from_checkpoint false starts anew.", resume)
    elif str(resume).lower() == "false":
        resume = None
    if resume is None and trainer.is_world_process_zero():
        set_aside_checkpoints(Path(arguments.output_dir))
        _write_json(Path(arguments.output_dir, RUN_FILE), what_shapes_the_weights(*described, arguments))
    elif resume is not None:
        _refuse_other_run(Path(arguments.output_dir, RUN_FILE), what_shapes_the_weights(*described, arguments))
    with measured_energy(trainer.is_world_process_zero()) as energy:
        metrics = trainer.train(resume_from_checkpoint=resume).metrics
    trainer.save_metrics("train", metrics | energy, combined=False)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics, combined=False)
    if trainer.is_world_process_zero():
        origin = origin_of(trainer, argv, *described) | origin_facts(trainer, *described, resume)
        _write_json(Path(arguments.output_dir, "training.json"), origin)
    save_final(trainer, with_adapter=described[0].checkpoint is not None)
    _write_card(trainer)
    if trainer.is_world_process_zero():
        logger.info("The model is in %s", arguments.output_dir)
        if trainer.hub_pusher is not None:
            trainer.hub_pusher.push_final()
    return metrics


def origin_of(trainer: MPCLIPTrainer, argv: list[str], model_arguments: ModelArguments, data_arguments: DataArguments) -> dict:
    """How the model came to be: command, code, versions and options; the model's are those of its config."""
    arguments, config = trainer.args, trainer.model.config
    secret = arguments.hub_token
    options = {**asdict(model_arguments), **{name: getattr(config, name) for name in CONFIG_OPTIONS}}
    options["logit_scale_init_value"] = model_arguments.logit_scale_init_value  # the config tells the default's number
    if model_arguments.checkpoint:
        options |= {"text_model": None, "vision_model": None}  # the checkpoint has them; the defaults would be a lie
    return {
        "command": ["python", "train_hf.py", *(part.replace(secret, "<HUB_TOKEN>") if secret else part for part in argv)],
        "commit": _git_commit(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, datasets)},
        "ModelArguments": options,
        "DataArguments": asdict(data_arguments),
        "MPCLIPTrainingArguments": arguments.to_dict() | {"push_to_hub": trainer.hub_pusher is not None},
    }


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; Trainer writes `trainer_state.json` last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for checkpoint in checkpoints:
        if (checkpoint / "trainer_state.json").exists():
            return str(checkpoint)
        logger.warning("%s was not written to its end; the one before it is taken.", checkpoint)
    return None


def set_aside_checkpoints(folder: Path) -> None:
    """Move those of an earlier run out of the way, and what they were trained with along with them.

    A new run that is interrupted before its first checkpoint would go on from them, and one with other tuning read their files.
    """
    checkpoints = list(folder.glob("checkpoint-*"))
    if not checkpoints:
        return
    aside = next(path for n in itertools.count(1) if not (path := folder / f"_earlier-{n}").exists())
    aside.mkdir()
    for path in [*checkpoints, *folder.glob(RUN_FILE)]:
        path.rename(aside / path.name)
    logger.warning("This run starts anew. The checkpoints of the one before are in %s, for you to keep or delete.", aside)


def what_shapes_the_weights(
    model_arguments: ModelArguments, data_arguments: DataArguments, arguments: MPCLIPTrainingArguments
) -> dict:
    """The options that a resumed run must share with the one it goes on from."""
    data = asdict(data_arguments)
    del data["cache_dir"], data["cache_states"]
    return {**asdict(model_arguments), **data, **{name: getattr(arguments, name) for name in SHAPING_ARGUMENTS}}


class OtherRun(ValueError):
    """The checkpoints to go on from belong to a run with other options."""


def changed_options(before: dict, now: dict) -> dict[str, tuple]:
    """Option -> (value before, value now), of two of `what_shapes_the_weights` as JSON.

    An option that was not there yet when `before` was recorded had its default.
    """
    defaults = json.loads(json.dumps({**asdict(ModelArguments()), **asdict(DataArguments())}, default=str))
    before, now = defaults | before, defaults | now
    names = sorted(before.keys() | now.keys())
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def _refuse_other_run(file: Path, now: dict) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    changed = changed_options(before, json.loads(json.dumps(now, default=str)))
    if changed:
        told = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
        raise OtherRun(
            f"{file.parent} holds checkpoints of a run with other options ({told}). "
            "Give another --output_dir, the old options, or --resume_from_checkpoint false to start anew."
        )


def _write_json(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, default=str))


def save_final(trainer: MPCLIPTrainer, with_adapter: bool) -> None:
    """The whole model in `output_dir`, with LoRA the merged one.

    Beside it `with_adapter` the adapter. It goes onto the checkpoint that training continued; of two towers that were joined
    here with new random parts there is none to put an adapter on.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_world_process_zero():
        shutil.rmtree(Path(trainer.args.output_dir, "adapter"), ignore_errors=True)  # an earlier run's, of another model
    if hasattr(model, "merge_and_unload"):
        if with_adapter and trainer.is_world_process_zero():
            model.save_pretrained(Path(trainer.args.output_dir, "adapter"))
        trainer.model = model.merge_and_unload()
    trainer.save_model()


def _write_card(trainer: MPCLIPTrainer) -> None:
    try:
        trainer.create_model_card()
    except Exception as error:  # whatever it is, the model is saved and can be pushed
        command = ["python", "-m", "model_card", trainer.args.output_dir]
        if trainer.hub_pusher is not None:
            command += ["--repo_id", trainer.hub_pusher.repo_id]
        logger.warning("The model card could not be written: %r\nTo write it later: %s", error, shlex.join(command))


def open_rows(arguments: DataArguments, split: str) -> datasets.Dataset:
    return load_image_text(
        arguments.dataset,
        split,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        bad_images=arguments.bad_images,
    )


def _groups(rows: datasets.Dataset, column: str | None) -> list | None:
    if column is not None and column not in rows.column_names:
        raise ValueError(f"group_column={column!r} is no column of the data set; it has {', '.join(rows.column_names)}.")
    return None if column is None else rows.with_format(None)[column]


def _git_commit() -> str | None:
    """The commit of the code that trains, None outside a git checkout."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


if __name__ == "__main__":
    main()
