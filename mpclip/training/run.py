"""A training run from its options to the saved model: `build_trainer` builds it, `train` runs or resumes and saves it.

    options = parse_options(["configs/flickr8k_smollm2.yaml", "--dataset", "photos"])
    trainer = build_trainer(options)
    metrics = train(trainer, options=options)

No function here changes its options.
"""

import copy
import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import torch
from transformers import AutoConfig, set_seed

from modeling_mpclip import MPCLIPConfig, MPCLIPModel, MPCLIPProcessor
from modeling_mpclip.model_options import OPTION_NAMES
from mpclip.command import next_steps
from mpclip.data.absence_texts import AbsenceTexts
from mpclip.data.backbones import resolve_backbone
from mpclip.data.exclusion_queries import things_of
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.data.joined_captions import EACH_ALONE, JoinedCaptions
from mpclip.data.reading import reading_given, reading_of
from mpclip.data.same_pictures import warn_of_shared_pictures
from mpclip.data.video import Clips
from mpclip.data.video_text import VideoTextDataset, load_video_text, middle_frames
from mpclip.files import read_json, write_json
from mpclip.hardware import precision_told
from mpclip.stop import Interrupted, StopSignals

from .arguments import MPCLIPTrainingArguments, RunOptions
from .batch_size import refuse_few_examples
from .checkpoints import STATE_FILE
from .closed_form import refuse_closed_form, solve_start
from .collator import MPCLIPCollator
from .folder_lock import locked
from .hub_push import HubPusher
from .options import DataArguments, ModelArguments
from .record import record_of
from .refusals import refuse_illegal
from .resume import Start, find_start, mark_finished, prepare_folder
from .saving import removing_half_saved, save_final
from .state_cache import ClipStates, ImageStates, TextStates, cache_clip_states, cache_image_states, cache_text_states
from .step_end import StopAtStepEnd
from .streamed import StreamedTrainer, first_pictures, streamed_pairs, with_states
from .trainer import MPCLIPTrainer
from .tuning import boundary_layer, prepare_tuning

logger = logging.getLogger("train_hf")

OpenSplit = Callable[[DataArguments, str], datasets.Dataset]


def build_model(options: ModelArguments, max_text_length: int) -> tuple[MPCLIPModel, MPCLIPProcessor]:
    """Build the model that training starts from, and its processor.

    Args:
        options: name two towers to join, or a checkpoint to train further.
        max_text_length: tokens that texts are cut to.

    Raises:
        ValueError: options contradict each other, or they are set although the checkpoint decides them.
        OSError: a tower or a checkpoint is not found.
    """
    if options.checkpoint:
        default = ModelArguments()
        given = [name for name in (*OPTION_NAMES, "adaptive_init") if getattr(options, name) != getattr(default, name)]
        if given:
            raise ValueError(
                f"--checkpoint {options.checkpoint} brings its own config; {', '.join(given)} would be ignored. "
                "Leave these options out, or build a new model from --text_model and --vision_model."
            )
        model = MPCLIPModel.from_pretrained(options.checkpoint, dtype=torch.float32)
        return model, MPCLIPProcessor.from_pretrained(options.checkpoint)
    text, vision = resolve_backbone(options.text_model), resolve_backbone(options.vision_model)
    chosen = {name: getattr(options, name) for name in OPTION_NAMES}
    scratch = options.text_from_scratch
    text_config = AutoConfig.from_pretrained(scratch or text).get_text_config()
    if options.adaptive_tokens == "boundary" and options.boundary_layer is None:
        chosen["boundary_layer"] = boundary_layer(options.text_layers or text_config.num_hidden_layers, options)
    config = MPCLIPConfig(text_config, **chosen)  # refuses contradicting options before anything is loaded
    processor = MPCLIPProcessor.from_pretrained_towers(text, vision, config.all_templates, max_text_length)
    model = MPCLIPModel.from_pretrained_towers(
        text,
        vision,
        tokenizer=processor.tokenizer,
        adaptive_init=options.adaptive_init,
        text_config=text_config if scratch else None,
        **chosen,
    )
    return model, processor


def open_rows(options: DataArguments, split: str) -> datasets.Dataset:
    """Open a split of the data set; check its images if `check_images` is set, and its clips if `video_column` is given.

    Args:
        options: name the data set and its columns.
        split: such as "train" or "train[:1000]".

    Returns:
        A table with the columns `image`, or `video`, and `captions`.

    Raises:
        ValueError, OSError: as `load_image_text` and `load_video_text`.
    """
    if options.video_column:
        return load_video_text(options.dataset, split, video_column=options.video_column, **reading_of(options))
    return load_image_text(options.dataset, split, check_images=options.check_images, **reading_of(options))


def cached_states(
    model: MPCLIPModel,
    processor: MPCLIPProcessor,
    rows: datasets.Dataset,
    *,
    options: RunOptions,
    negated: bool = False,
    joined: JoinedCaptions = EACH_ALONE,
    further: Sequence[str] = (),
) -> tuple[TextStates | None, ImageStates | ClipStates | None]:
    """Compute and store the states of the frozen towers, or find them in the cache.

    Args:
        model: the model to train.
        processor: its processor.
        rows: a table with the columns `image`, or `video`, and `captions`.
        options: of the run.
        negated: include the negated prompts.
        joined: how captions are made into texts.
        further: texts beside those of the pictures.

    Returns:
        States of texts and of images or clips for [`MPCLIPCollator`]. None where the options do not ask for a cache.
    """
    data, training = options.data, options.training
    how = {"format": data.cache_format, "device": training.device, "precision": training.precision}
    if not data.cache_states:
        return None, None
    folder = Path(data.cache_dir)
    text = images = None
    if data.cache_text_states:
        texts = [text for row in rows.with_format(None)["captions"] for text in joined.every(row)]
        texts += further
        text = cache_text_states(model, processor.tokenizer, texts, folder, negated, **how)
    if options.model.vision_tuning == "frozen":
        if data.video_column:
            clips = Clips(rows["video"][:], data.num_frames, data.frame_sampling)
            images = cache_clip_states(model, processor.image_processor, clips, folder, **how)
        else:
            images = cache_image_states(model, processor.image_processor, rows, folder, **how)
    return text, images


def build_trainer(
    options: RunOptions, *, write_card: Callable | None = None, open_split: OpenSplit = open_rows
) -> MPCLIPTrainer:
    """Build the Trainer of a run: open the data, build the model, freeze weights, cache states.

    Args:
        options: of the run.
        write_card: writes the model card, as `model_card.card.write_card` does. None: transformers writes its own.
        open_split: opens a split of the data. A caller that trains on the same data many times can give a function that does
            not check the images again.

    Raises:
        ValueError: options contradict each other; the message names them and says what to set.
        OSError: a tower, a checkpoint or the data set is not found.
    """
    model_options, data = options.model, options.data
    arguments = _trainer_arguments(options)
    cached_images = data.cache_states and model_options.vision_tuning == "frozen"
    refuse_illegal(options, cached_images)
    # Before the slow part: it raises an error if the repository cannot be written to.
    hub_pusher = HubPusher(options.training, data.cache_dir) if options.training.push_to_hub else None
    set_seed(arguments.seed)
    checked = replace(data, check_images=True)
    rows, stream = {}, streamed_pairs(options) if data.streaming else None
    if stream is None:
        rows["train"] = open_split(checked if cached_images else data, data.train_split)
        what = "clips" if data.video_column else "pictures"
        if not arguments.without_steps:
            refuse_few_examples(
                len(rows["train"]), arguments, f"{what} with captions in {data.dataset}, split {data.train_split!r}"
            )
    if data.eval_split:
        rows["eval"] = open_split(checked, data.eval_split)
        if not data.video_column and stream is None:
            warn_of_shared_pictures(rows["train"], rows["eval"], data.train_split, data.eval_split)

    base, processor = build_model(model_options, data.max_text_length)
    if model_options.projection_start == "closed_form":
        refuse_closed_form(base.config)
    model = prepare_tuning(base, model_options)
    counts = [sum(p.numel() for p in base.parameters() if p.requires_grad or not only) for only in (True, False)]
    logger.info("%d of %d parameters are trained", *counts)
    logger.info("%s", precision_told(options.training.precision, options.training.device.type))

    absences = AbsenceTexts(things_of(rows["train"]), arguments.seed) if data.without_weight else None

    def collator(split: str) -> MPCLIPCollator:
        negated = split == "train" and base.config.negation_weight > 0  # evaluation does not use negated prompts
        joined, absent = (data.joined, absences) if split == "train" else (EACH_ALONE, None)
        how = {"options": options, "negated": negated, "joined": joined, "further": absent.every() if absent else ()}
        return MPCLIPCollator(processor, *cached_states(base, processor, rows[split], **how), base.config.words, absent)

    stream_collator = MPCLIPCollator(processor)
    if stream is not None and data.cache_states:
        negated = base.config.negation_weight > 0
        stream, stream_collator = with_states(stream, options, base, processor, negated)
    shown = rows.get("eval", rows.get("train"))  # what the model card draws pictures from
    if shown is None:
        shown = first_pictures(stream, 3)
    if stream is None:
        examples = _examples(rows["train"], "random", data, arguments.seed, cached_images, absences)
        make_trainer = MPCLIPTrainer
    else:
        examples, make_trainer = stream, StreamedTrainer
    return make_trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=_examples(rows["eval"], "all", data, arguments.seed, cached_images) if "eval" in rows else None,
        data_collator=collator("train") if stream is None else stream_collator,
        eval_collator=collator("eval") if "eval" in rows else None,
        train_groups=_groups(rows["train"], data.group_column) if stream is None else None,
        group_size=data.group_size,
        without_weight=data.without_weight,
        named_rows=rows,
        hub_pusher=hub_pusher,
        write_card=write_card and partial(write_card, rows=middle_frames(shown, 3) if data.video_column else shown),
        processing_class=processor,
    )


def train(
    trainer: MPCLIPTrainer,
    *,
    options: RunOptions,
    command: list[str] | None = None,
    start: Start | None = None,
    signals: StopSignals | None = None,
) -> dict[str, float]:
    """Run or resume training, evaluate, and save the model with its processor, metrics, training.json and model card.

    Args:
        trainer: from `build_trainer`.
        options: the options that `build_trainer` got.
        command: the command line, for training.json.
        start: from `find_start`; by default it is looked for.
        signals: end the training after a step, with a checkpoint. By default they are not watched.

    Returns:
        The final metrics by name: those of the evaluation, or those of training if there is no evaluation split.

    Raises:
        OtherRun: the output folder has checkpoints of a run with other options.
        FolderInUse: another run is writing to the output folder.
        NotFinite: a loss, a gradient or a weight is not finite. Nothing of it is saved.
        NotSaved: a checkpoint or the model could not be written.
        Interrupted: a signal has ended the training.
        PushFailed: the model is saved but could not be pushed.
    """
    folder, writes = Path(trainer.args.output_dir), trainer.is_world_process_zero()
    with locked(folder) if writes else nullcontext():
        start = start or find_start(options)
        if writes:
            prepare_folder(options, start)
        solved = {} if start.checkpoint else solve_start(trainer, options.model)
        metrics = {} if trainer.args.without_steps else _fit(trainer, start.checkpoint, signals)
        _tell_unreadable(trainer)
        if trainer.eval_dataset is not None:
            metrics = trainer.evaluate()
            trainer.save_metrics("eval", metrics, combined=False)
        record = record_of(trainer, options=options, command=command or [], resumed_from=start.checkpoint) if writes else {}
        record |= {"closed_form": solved} if writes and solved else {}
        save_final(trainer, with_adapter=options.model.checkpoint is not None)
        if writes:
            write_json(folder / "training.json", record)
        _write_card(trainer)
        if writes:
            mark_finished(folder)
            logger.info("The model is in %s\n%s", folder, next_steps(_next(options)))
            if trainer.hub_pusher is not None:
                trainer.hub_pusher.push_final()
    return metrics


def _next(options: RunOptions) -> list[tuple[list[str], str]]:
    """What can be done with the model."""
    folder, data = options.training.output_dir, options.data
    where = ["--model", folder, "--data", data.dataset, "--split", data.eval_split or data.train_split]
    where += [word for name, value in reading_given(data).items() for word in (f"--{name}", str(value))]
    if data.video_column:
        return [(["mpclip", "eval", "video", *where, "--json", f"{folder}/video.json"], "measure it")]
    return [
        (["mpclip", "eval", "retrieval", *where, "--json", f"{folder}/retrieval.json"], "measure it"),
        (["mpclip", "search", "build", *where, "--index", f"{folder}_index"], "search these pictures"),
    ]


def _fit(trainer: MPCLIPTrainer, checkpoint: str | None, signals: StopSignals | None) -> dict[str, float]:
    """Run the training loop, and save its metrics.

    Returns:
        The metrics. If the checkpoint was that of the last step already, those of the run that made it.
    """
    folder, stop = Path(trainer.args.output_dir), StopAtStepEnd(trainer, signals or StopSignals())
    trainer.add_callback(stop)
    steps_before = read_json(Path(checkpoint, STATE_FILE))["global_step"] if checkpoint else 0
    with removing_half_saved(trainer), signals.waiting() if signals else nullcontext():
        result = trainer.train(resume_from_checkpoint=checkpoint)
    trained = result.global_step > steps_before
    if trained and not stop.before_the_end:
        trainer.save_metrics("train", result.metrics, combined=False)
    if stop.signal is not None:
        raise Interrupted(stop.signal)
    return result.metrics if trained else read_json(folder / "train_results.json")


def _tell_unreadable(trainer: MPCLIPTrainer) -> None:
    """Say how many pictures could not be read in training. They were named when they were met."""
    if faulty := getattr(trainer.train_dataset, "unreadable", []):
        logger.warning(
            "%d of %d pictures could not be read; each time, the next one that could took its place. --check_images true "
            "leaves them out before training.",
            *(len(faulty), len(trainer.train_dataset)),
        )


def _examples(
    rows: datasets.Dataset,
    captions: str,
    data: DataArguments,
    seed: int,
    cached_images: bool,
    absences: AbsenceTexts | None = None,
) -> ImageTextDataset:
    """The examples of a split, with pictures or clips where these are not cached."""
    trains = captions == "random"
    joined = data.joined if trains else EACH_ALONE
    if data.video_column:
        return VideoTextDataset(rows, captions, seed, not cached_images, data.num_frames, data.frame_sampling, joined)
    crop = data.smallest_crop if trains else 1.0
    return ImageTextDataset(rows, captions, seed, not cached_images, crop, data.bad_images, joined, absences)


def _trainer_arguments(options: RunOptions) -> MPCLIPTrainingArguments:
    """A copy of the training arguments for Trainer: without its own pushes, and without evaluation if there is no split."""
    arguments = copy.copy(options.training)
    arguments.push_to_hub = False  # HubPusher pushes
    arguments.logging_nan_inf_filter = False  # MPCLIPTrainer ends the run
    arguments.dataloader_pin_memory &= arguments.device.type != "cpu"
    if not options.data.eval_split:
        arguments.eval_strategy, arguments.load_best_model_at_end = "no", False
    return arguments


def _groups(rows: datasets.Dataset, column: str | None) -> list | None:
    """The group of each row, or None without a column."""
    if column is not None and column not in rows.column_names:
        raise ValueError(f"group_column={column!r} is no column of the data set; it has {', '.join(rows.column_names)}.")
    return None if column is None else rows.with_format(None)[column]


def _write_card(trainer: MPCLIPTrainer) -> None:
    """Write the model card. An error is logged with the command that repeats it."""
    try:
        trainer.create_model_card()
    except Exception as error:  # of any kind: the model is saved, and the push must not fail
        command = ["python", "-m", "model_card", trainer.args.output_dir]
        if trainer.hub_pusher is not None:
            command += ["--repo_id", trainer.hub_pusher.repo_id]
        logger.warning("The model card could not be written: %r\nTo write it later: %s", error, shlex.join(command))
