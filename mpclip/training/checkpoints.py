"""The checkpoints in an output folder: which of them a run can resume from, and what is wrong with the others."""

import itertools
import logging
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint

from mpclip.files import read_json

logger = logging.getLogger("train_hf")

RUN_FILE = "run.json"  # beside the checkpoints: the options that they were trained with
NUMBERED = re.compile(r"checkpoint-(\d+)")
STATE_FILE = "trainer_state.json"  # Trainer writes it last
# What a resumed run needs -> patterns of the files or folders that hold it. The later ones are of FSDP and DeepSpeed.
PARTS = {
    "its weights": ("*.safetensors", "pytorch_model_fsdp*", "global_step*"),
    "the state of the optimizer (optimizer.pt)": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "the schedule of the learning rates (scheduler.pt)": ("scheduler.pt", "global_step*"),
}


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints that Trainer has saved in a folder, the one with the most steps first.

    Trainer names them by their number of steps. A folder of another name, such as checkpoint-best, is the user's.
    """
    found = [(int(name[1]), path) for path in folder.glob("*") if (name := NUMBERED.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def last_complete_checkpoint(folder: Path, processes: int = 1, scaled: bool = False) -> Path | None:
    """The newest checkpoint in a folder without a fault, or None. A warning names every newer one and its fault.

    Args:
        folder: the output folder.
        processes, scaled: as for `fault_of`.
    """
    for checkpoint in checkpoints_in(folder):
        fault = fault_of(checkpoint, processes, scaled)
        if fault is None:
            return checkpoint
        logger.warning("%s is skipped: %s.", checkpoint, fault)
    return None


def fault_of(checkpoint: Path, processes: int = 1, scaled: bool = False) -> str | None:
    """What keeps a run from resuming from a checkpoint. It reads all weights.

    Args:
        checkpoint: its folder.
        processes: number of processes that have saved it; each has its own random state.
        scaled: whether the run scales its loss, as fp16 does; the scale is then a part of the checkpoint.

    Returns:
        A part of a sentence, such as "it lacks optimizer.pt"; None if nothing is wrong.
    """
    if not checkpoint.is_dir():
        return "there is no such folder"
    lacking = [what for what, patterns in PARTS.items() if not any(any(checkpoint.glob(pattern)) for pattern in patterns)]
    single = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    single += [STATE_FILE] + (["scaler.pt"] if scaled and not any(checkpoint.glob("global_step*")) else [])
    shards = [set(read_json(index).get("weight_map", {}).values()) for index in checkpoint.glob("*.safetensors.index.json")]
    single += sorted(set().union(*shards))
    lacking += [name for name in single if not (checkpoint / name).is_file()]
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    try:
        state = read_json(checkpoint / STATE_FILE)
    except ValueError:
        state = {}
    cut = [] if "global_step" in state else [STATE_FILE]
    states = sorted(file for pattern in ("*.pt", "*.pth") for file in checkpoint.glob(pattern))
    cut += [file.name for file in states if not _is_whole(file)]
    if cut:
        return f"its {cut[0]} is cut short or damaged"
    for file in states:
        foreign = [name for name in get_unsafe_globals_in_checkpoint(file) if not name.startswith("numpy.")]
        if foreign:
            return (
                f"its {file.name} would run {foreign[0]} when it is read, which no state of a training does; it is not opened"
            )
    return fault_of_weights(checkpoint)


def _is_whole(file: Path) -> bool:
    """Whether a file of torch.save is complete and its parts have their checksums. Nothing is unpickled."""
    try:
        with zipfile.ZipFile(file) as parts:
            return parts.testzip() is None
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return False


def fault_of_weights(checkpoint: Path) -> str | None:
    """What is wrong with the weights of a checkpoint, as a part of a sentence; None if nothing is. It reads all of them."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (it is no dict)
                    tensor = weights.get_tensor(name)
                    eight_bit = tensor.element_size() == 1  # torch has no isfinite for those
                    if tensor.is_floating_point() and not eight_bit and not tensor.isfinite().all():
                        return f"its weights {name} have NaN or infinite values"
        except (SafetensorError, OSError) as error:
            return f"its {file.name} is cut short or damaged ({error})"
    return None


def remove_half_saved(folder: Path, step: int) -> Path | None:
    """Remove the checkpoint of a step if saving it has failed halfway.

    Args:
        folder: the output folder.
        step: number of optimizer steps of the checkpoint.

    Returns:
        Its path; None if there is no such checkpoint, or if it was saved to its end.
    """
    checkpoint = folder / f"checkpoint-{step}"
    try:
        if not checkpoint.is_dir() or "global_step" in read_json(checkpoint / STATE_FILE):
            return None
    except ValueError:
        pass  # its last file is cut short
    shutil.rmtree(checkpoint, ignore_errors=True)
    return checkpoint


def set_aside_checkpoints(folder: Path) -> None:
    """Move the checkpoints of an earlier run, and its `RUN_FILE`, into a subfolder `_earlier-N`.

    Otherwise a new run that is interrupted before its first checkpoint would later resume from them. A run with another tuning
    would also read their files, if its own checkpoints have the same names.

    Args:
        folder: the output folder.
    """
    checkpoints = checkpoints_in(folder)
    if not checkpoints:
        return
    earlier = next(path for n in itertools.count(1) if not (path := folder / f"_earlier-{n}").exists())
    earlier.mkdir()
    for path in [*checkpoints, *folder.glob(RUN_FILE)]:
        path.rename(earlier / path.name)
    logger.warning("A new run starts. The checkpoints of the earlier run are now in %s; delete them if not needed.", earlier)
