"""Resuming a run: where it starts, and whether the checkpoints in its folder are those of a run with the same options."""

import datetime
import json
import logging
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from mpclip.files import read_json, write_json
from mpclip.hardware import speeds

from .arguments import RunOptions
from .checkpoints import RUN_FILE, checkpoints_in, fault_of, last_complete_checkpoint, set_aside_checkpoints
from .options import DataArguments, ModelArguments

logger = logging.getLogger("train_hf")

FINISHED = "finished"  # key of `RUN_FILE`: when the final model was saved
# The training arguments that influence the weights.
SHAPING_ARGUMENTS = (
    *("learning_rate", "text_learning_rate", "vision_learning_rate", "adaptive_learning_rate", "weight_decay"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs", "max_steps"),
    *("warmup_steps", "lr_scheduler_type", "seed", "bf16", "fp16", "train_sampling_strategy"),
)
SPLIT = ("per_device_train_batch_size", "world_size")  # how the pairs of a step are split among processes
# Options whose value may be the path of a folder or a file. Every spelling of a path is the same value.
PLACES = ("dataset", "checkpoint", "text_model", "vision_model", "text_from_scratch")


class OtherRun(ValueError):
    """The run cannot resume from the checkpoint: it belongs to another run, or it is not complete."""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: the folder of the checkpoint to resume from; None for a new run.
        finished: whether the run was finished before, so that nothing is left to do.
    """

    checkpoint: str | None
    finished: bool = False


def find_start(options: RunOptions) -> Start:
    """Find where a run starts. Nothing is written.

    `resume_from_checkpoint` decides: a folder, or "false" for a new run. By default it is the newest complete checkpoint in
    the output folder.

    Args:
        options: of the run. With precision="auto" a run goes on in the dtype in which it began, on any machine:
            `options.training` takes it over.

    Raises:
        OtherRun: the checkpoint belongs to a run with other options, or the one that is named is not complete.
    """
    folder, asked = Path(options.training.output_dir), str(options.training.resume_from_checkpoint)
    if asked.lower() == "false":
        return Start(None)
    named = None if asked.lower() in ("none", "true") else Path(asked).expanduser()
    recorded = read_json((named.absolute().parent if named else folder) / RUN_FILE)
    if named or FINISHED in recorded or checkpoints_in(folder):
        _take_precision(options, recorded)
    now, scaled = shaping_options(options), options.training.fp16
    processes = recorded.get("world_size", options.training.world_size)  # those that have saved the checkpoints
    if named is None:
        if FINISHED in recorded and not changed_options(recorded, now) and (folder / "training.json").exists():
            newest = next(iter(checkpoints_in(folder)), None)
            return Start(newest and str(newest), finished=True)
        # Complete for the run that saved it. If that had another number of processes, `_refuse_other_run` says so.
        saved_by, was_scaled = recorded.get("world_size", processes), recorded.get("fp16", scaled)
        found = last_complete_checkpoint(folder, saved_by, was_scaled)
    else:
        found = named
        if fault := _fault_of_named(found, processes, scaled):
            raise OtherRun(f"--resume_from_checkpoint {asked}: {fault}")
    if found is not None:
        _refuse_other_run(found, now, folder)
    return Start(found and str(found))


def _take_precision(options: RunOptions, recorded: dict) -> None:
    """Go on in the dtype of a recorded run if none is asked for. The fastest one differs between machines, a run does not."""
    training, device = options.training, options.training.device.type
    before = "bfloat16" if recorded.get("bf16") else "float16" if recorded.get("fp16") else "float32"
    if training.precision_asked != "auto" or "bf16" not in recorded or before == training.precision:
        return
    if before == "float16" and device == "cpu":
        return  # it needs a GPU; the run is refused
    gflops = speeds(device)["gflops"]
    logger.info(
        "The run in %s began in %s and goes on in it, although %s is faster here (GFLOPS of a matrix product: %s). "
        "--resume_from_checkpoint false would start a new run.",
        *(options.training.output_dir, before, training.precision),
        ", ".join(f"{dtype} {gflops[dtype]:.3g}" for dtype in (before, training.precision)),
    )
    training.compute_in(before)


def _fault_of_named(checkpoint: Path, processes: int, scaled: bool) -> str | None:
    """What is wrong with a checkpoint that the user has named, and what to name instead."""
    fault = fault_of(checkpoint, processes, scaled)
    if fault is None:
        return None
    beside = [path for path in (checkpoint, checkpoint.parent) if checkpoints_in(path)]
    if not beside:
        return f"{fault}. Give the folder checkpoint-N of a run, or leave the option out."
    names = ", ".join(path.name for path in checkpoints_in(beside[0])[:10])
    return f"{fault}. The checkpoints in {beside[0]} are {names}. Give one of them, or leave the option out."


def _refuse_other_run(checkpoint: Path, now: dict, folder: Path) -> None:
    file = checkpoint.absolute().parent / RUN_FILE
    if not file.exists():
        raise OtherRun(
            f"There is no {RUN_FILE} beside {checkpoint}, so the options of its run are unknown. Give another --output_dir, or "
            "--resume_from_checkpoint false to start a new run."
        )
    if changed := changed_options(read_json(file), now):
        told = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
        raise OtherRun(
            f"{checkpoint.parent} holds checkpoints of a run with other options ({told}). "
            "Give another --output_dir, the old options, or --resume_from_checkpoint false to start a new run."
        )


def prepare_folder(options: RunOptions, start: Start) -> None:
    """Make the output folder that of this run: a new one sets the checkpoints of others aside and writes its options.

    Args:
        options: of the run.
        start: from `find_start`.
    """
    folder, now = Path(options.training.output_dir), shaping_options(options)
    if start.checkpoint is not None:
        logger.info("Resuming from %s. --resume_from_checkpoint false would start a new run.", start.checkpoint)
        if (folder / RUN_FILE).exists() and not changed_options(recorded := read_json(folder / RUN_FILE), now):
            if any(recorded.get(name) != now[name] for name in SPLIT):
                write_json(folder / RUN_FILE, recorded | {name: now[name] for name in SPLIT})
            return
    set_aside_checkpoints(folder)
    write_json(folder / RUN_FILE, now)


def mark_finished(folder: Path) -> None:
    """Note in the output folder that the final model of its run is saved."""
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(folder / RUN_FILE, read_json(folder / RUN_FILE) | {FINISHED: moment})


def results_of_finished(folder: Path) -> dict[str, float]:
    """The final metrics of a finished run, from its files, with a line in the log that it is finished."""
    logger.info(
        "The run in %s is finished (%s), and its files are left as they are. To train its model further: --checkpoint %s "
        "--output_dir ANOTHER. To run anew: another --output_dir, or --resume_from_checkpoint false.",
        *(folder, read_json(folder / RUN_FILE)[FINISHED], folder),
    )
    return read_json(folder / "eval_results.json") or read_json(folder / "train_results.json")


def how_to_go_on(options: RunOptions, argv: list[str], prog: str) -> str:
    """What a stopped run has saved, and the command that goes on.

    Args:
        options: of the run.
        argv: its command line, without the name of the program.
        prog: that name.
    """
    last = next(iter(checkpoints_in(Path(options.training.output_dir))), None)
    saved = f"Stopped. {last} is saved." if last else "Stopped before the first checkpoint."
    if options.data.cache_states:
        saved += f" The states that are stored in {options.data.cache_dir} are kept."
    secret, name = options.training.hub_token, "--resume_from_checkpoint"
    words = [word for i, word in enumerate(argv) if not word.startswith(name) and (i == 0 or argv[i - 1] != name)]
    words = [word.replace(secret, "<HUB_TOKEN>") if secret else word for word in words]
    if str(options.training.resume_from_checkpoint).lower() == "false" and last:
        words += [name, "true"]
    command = shlex.join([*(["python"] if prog.endswith(".py") else []), *prog.split(), *words])
    launched = " (by the same launcher)" if options.training.world_size > 1 else ""
    return f"{saved} To go on{launched}: {command}"


def shaping_options(options: RunOptions) -> dict:
    """The options that a resumed run must share with the interrupted one, as JSON values by name."""
    data = asdict(options.data)
    del data["cache_dir"], data["cache_states"]
    training = {name: getattr(options.training, name) for name in SHAPING_ARGUMENTS}
    return json.loads(json.dumps(asdict(options.model) | data | training, default=str))


def changed_options(before: dict, now: dict) -> dict[str, tuple]:
    """Compare the options of two runs.

    Args:
        before, now: from `shaping_options`. An option that is missing, because it did not exist yet, has its default. Another
            number of processes is no change if a step has as many pairs as before: all pairs of a step are contrasted together.

    Returns:
        For each option that differs (value before, value now).
    """
    defaults = json.loads(json.dumps(asdict(ModelArguments()) | asdict(DataArguments()), default=str))
    before, now = defaults | before, defaults | now
    names = sorted((before.keys() | now.keys()) - {FINISHED})
    if None not in (pairs := [_pairs_of_step(one) for one in (before, now)]) and pairs[0] == pairs[1]:
        names = [name for name in names if name not in SPLIT]
    return {name: (before.get(name), now.get(name)) for name in names if not _same(name, before.get(name), now.get(name))}


def _pairs_of_step(options: dict) -> int | None:
    """Pairs of a step in all processes together; None if the options do not tell."""
    values = [options.get(name) for name in SPLIT]
    return None if None in values else values[0] * values[1]


def _same(name: str, before: object, now: object) -> bool:
    """Whether two values of an option mean the same."""
    if before == now or name not in PLACES or not (isinstance(before, str) and isinstance(now, str)):
        return before == now
    return os.path.realpath(os.path.expanduser(before)) == os.path.realpath(os.path.expanduser(now))
