"""Going on with an interrupted run: which checkpoint, and whether it belongs to a run with the same options."""

import itertools
import json
import logging
from dataclasses import asdict
from pathlib import Path

from mpclip.files import read_json, write_json

from .arguments import RunOptions
from .options import DataArguments, ModelArguments

logger = logging.getLogger("train_hf")

RUN_FILE = "run.json"  # beside the checkpoints: the options they were trained with
# Of the training arguments, those that shape the weights.
SHAPING_ARGUMENTS = (
    *("learning_rate", "text_learning_rate", "vision_learning_rate", "adaptive_learning_rate", "weight_decay"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs", "max_steps"),
    *("warmup_steps", "lr_scheduler_type", "seed", "bf16", "fp16", "train_sampling_strategy"),
)


class OtherRun(ValueError):
    """The checkpoints to go on from belong to a run with other options."""


def checkpoint_to_resume(options: RunOptions, *, writes: bool) -> str | None:
    """The checkpoint that a run goes on from, None where it starts anew.

    `resume_from_checkpoint` decides: a folder is taken, "false" starts anew; by default the newest complete checkpoint of the
    output folder is taken. Options are written to `RUN_FILE` at the start and compared with it later.

    Args:
        writes: whether this process writes to the output folder; one process of a job does.

    Raises:
        OtherRun: the checkpoint belongs to a run with other options; the message names them.
    """
    folder, asked = Path(options.training.output_dir), str(options.training.resume_from_checkpoint)
    now = shaping_options(options)
    if asked.lower() in ("none", "true"):
        found = last_complete_checkpoint(folder)
        if found:
            logger.info("Going on from %s; --resume_from_checkpoint false starts anew.", found)
    else:
        found = None if asked.lower() == "false" else asked
    if found is not None:
        _refuse_other_run(folder / RUN_FILE, now)
    elif writes:
        set_aside_checkpoints(folder)
        write_json(folder / RUN_FILE, now)
    return found


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; Trainer writes `trainer_state.json` last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for checkpoint in checkpoints:
        if (checkpoint / "trainer_state.json").exists():
            return str(checkpoint)
        logger.warning("%s was not written to its end; the one before it is taken.", checkpoint)
    return None


def set_aside_checkpoints(folder: Path) -> None:
    """Move those of an earlier run, and its `RUN_FILE`, into a folder `_earlier-N`.

    A new run that is interrupted before its first checkpoint would go on from them, and one with other tuning read their files.
    """
    checkpoints = list(folder.glob("checkpoint-*"))
    if not checkpoints:
        return
    earlier = next(path for n in itertools.count(1) if not (path := folder / f"_earlier-{n}").exists())
    earlier.mkdir()
    for path in [*checkpoints, *folder.glob(RUN_FILE)]:
        path.rename(earlier / path.name)
    logger.warning("This run starts anew. The checkpoints of the one before are in %s, for you to keep or delete.", earlier)


def shaping_options(options: RunOptions) -> dict:
    """The options that a resumed run must share with the one it goes on from, as JSON values."""
    data = asdict(options.data)
    del data["cache_dir"], data["cache_states"]
    training = {name: getattr(options.training, name) for name in SHAPING_ARGUMENTS}
    return json.loads(json.dumps(asdict(options.model) | data | training, default=str))


def changed_options(before: dict, now: dict) -> dict[str, tuple]:
    """Option -> (value before, value now), of two of `shaping_options`.

    An option that did not exist when `before` was recorded had its default.
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
            "Give another --output_dir, the old options, or --resume_from_checkpoint false to start anew."
        )
