"""Resuming an interrupted run: finds the checkpoint, and refuses one of a run with other options."""

import itertools
import json
import logging
from dataclasses import asdict
from pathlib import Path

from mpclip.files import read_json, write_json

from .arguments import RunOptions
from .options import DataArguments, ModelArguments

logger = logging.getLogger("train_hf")

RUN_FILE = "run.json"  # beside the checkpoints: the options that they were trained with
# The training arguments that influence the weights.
SHAPING_ARGUMENTS = (
    *("learning_rate", "text_learning_rate", "vision_learning_rate", "adaptive_learning_rate", "weight_decay"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs", "max_steps"),
    *("warmup_steps", "lr_scheduler_type", "seed", "bf16", "fp16", "train_sampling_strategy"),
)


class OtherRun(ValueError):
    """The checkpoint to resume from belongs to a run with other options."""


def checkpoint_to_resume(options: RunOptions, *, writes: bool) -> str | None:
    """Find the checkpoint that a run resumes from.

    A new run writes its options to `RUN_FILE`; a resumed run compares its options with that file. `resume_from_checkpoint`
    selects the checkpoint: a folder, or "false" for a new run. By default it is the newest complete checkpoint in the output
    folder.

    Args:
        options: of the run.
        writes: whether this process writes to the output folder. One process of a job does.

    Returns:
        The folder of the checkpoint; None for a new run.

    Raises:
        OtherRun: the checkpoint belongs to a run with other options; the message names them.
    """
    folder, asked = Path(options.training.output_dir), str(options.training.resume_from_checkpoint)
    now = shaping_options(options)
    if asked.lower() in ("none", "true"):
        found = last_complete_checkpoint(folder)
        if found:
            logger.info("Resuming from %s. --resume_from_checkpoint false would start a new run.", found)
    else:
        found = None if asked.lower() == "false" else asked
    if found is not None:
        _refuse_other_run(folder / RUN_FILE, now)
    elif writes:
        set_aside_checkpoints(folder)
        write_json(folder / RUN_FILE, now)
    return found


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint in a folder, or None. Trainer writes `trainer_state.json` last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for checkpoint in checkpoints:
        if (checkpoint / "trainer_state.json").exists():
            return str(checkpoint)
        logger.warning("%s is incomplete and is skipped.", checkpoint)
    return None


def set_aside_checkpoints(folder: Path) -> None:
    """Move the checkpoints of an earlier run, and its `RUN_FILE`, into a subfolder `_earlier-N`.

    Otherwise a new run that is interrupted before its first checkpoint would later resume from them. A run with another tuning
    would also read their files, if its own checkpoints have the same names.

    Args:
        folder: the output folder.
    """
    checkpoints = list(folder.glob("checkpoint-*"))
    if not checkpoints:
        return
    earlier = next(path for n in itertools.count(1) if not (path := folder / f"_earlier-{n}").exists())
    earlier.mkdir()
    for path in [*checkpoints, *folder.glob(RUN_FILE)]:
        path.rename(earlier / path.name)
    logger.warning("A new run starts. The checkpoints of the earlier run are now in %s; delete them if not needed.", earlier)


def shaping_options(options: RunOptions) -> dict:
    """The options that a resumed run must share with the interrupted one, as JSON values by name."""
    data = asdict(options.data)
    del data["cache_dir"], data["cache_states"]
    training = {name: getattr(options.training, name) for name in SHAPING_ARGUMENTS}
    return json.loads(json.dumps(asdict(options.model) | data | training, default=str))


def changed_options(before: dict, now: dict) -> dict[str, tuple]:
    """Compare the options of two runs.

    Args:
        before, now: from `shaping_options`. An option that is missing, because it did not exist yet, has its default.

    Returns:
        For each option that differs (value before, value now).
    """
    defaults = json.loads(json.dumps(asdict(ModelArguments()) | asdict(DataArguments()), default=str))
    before, now = defaults | before, defaults | now
    names = sorted(before.keys() | now.keys())
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def _refuse_other_run(file: Path, now: dict) -> None:
    changed = changed_options(read_json(file), now)
    if changed:
        told = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
        raise OtherRun(
            f"{file.parent} holds checkpoints of a run with other options ({told}). "
            "Give another --output_dir, the old options, or --resume_from_checkpoint false to start a new run."
        )
