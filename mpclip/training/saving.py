"""Saving the final model, and what is said and left if a checkpoint or the model cannot be saved, as on a full disk."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .checkpoints import checkpoints_in, remove_half_saved
from .hub_push import OUTDATED
from .trainer import MPCLIPTrainer


class NotSaved(OSError):
    """A checkpoint or the final model could not be written. Checkpoints of before are kept."""


def save_final(trainer: MPCLIPTrainer, *, with_adapter: bool) -> None:
    """Save the whole model to `output_dir`. With LoRA that is the merged model.

    The files are written to a subfolder and moved when all are there. Until then a model of an earlier run stays as it is.

    Args:
        trainer: after training.
        with_adapter: also save the LoRA adapter, to adapter/. Its base model is the checkpoint that training continued. A model
            that was joined from two towers has no saved base model.

    Raises:
        NotSaved: a file could not be written.
    """
    folder, writes = Path(trainer.args.output_dir), trainer.is_world_process_zero()
    written = folder / "_saving"
    model = trainer.accelerator.unwrap_model(trainer.model)
    try:
        if hasattr(model, "merge_and_unload"):
            if with_adapter and writes:
                model.save_pretrained(written / "adapter")
            trainer.model = model.merge_and_unload()
        trainer.save_model(str(written))
        trainer.accelerator.wait_for_everyone()
        if writes:
            _replace(folder, written)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise NotSaved(f"The model could not be saved in {folder}: {_cause(error)}. {_whats_left(folder)}") from error
    finally:
        if writes:
            shutil.rmtree(written, ignore_errors=True)


def _replace(folder: Path, written: Path) -> None:
    """Move the files of a model into its folder, and remove those of an earlier one that would be loaded instead of them."""
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    for old in [path for pattern in OUTDATED for path in folder.glob(pattern)]:
        old.unlink()
    for new in written.iterdir():
        new.replace(folder / new.name)


@contextmanager
def removing_half_saved(trainer: MPCLIPTrainer) -> Iterator[None]:
    """Context manager: a checkpoint that could not be saved to its end is removed, and [`NotSaved`] says so."""
    folder = Path(trainer.args.output_dir)
    try:
        yield
    except BaseException as error:
        removed = remove_half_saved(folder, trainer.state.global_step) if trainer.is_world_process_zero() else None
        if removed and isinstance(error, Exception):
            raise NotSaved(f"{removed} could not be saved and is removed: {_cause(error)}. {_whats_left(folder)}") from error
        raise


def _whats_left(folder: Path) -> str:
    """The newest checkpoint and the free space of its disk, as the end of a message."""
    last = next(iter(checkpoints_in(folder)), None)
    kept = f"The same command goes on from {last}." if last else "There is no other checkpoint."
    return f"Its disk has {shutil.disk_usage(folder).free / 1e6:,.0f} MB left: free some, or give another --output_dir. {kept}"


def _cause(error: BaseException) -> BaseException:
    """The error of the operating system behind another one, if there is one."""
    behind = error
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__cause__ or behind.__context__
    return behind or error
