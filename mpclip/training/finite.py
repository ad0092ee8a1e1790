"""Ends a run whose loss, gradients or weights are NaN or infinite, before it changes or saves anything.

transformers' Trainer logs such a loss as if it were the mean of the losses before it, goes on, and saves the weights.
"""

from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, TrainerCallback

from modeling_mpclip.checkpoint_guard import not_finite
from mpclip.data.image_text import ImageTextDataset
from mpclip.progress import printable

from .checkpoints import checkpoints_in

NAMED = 5  # examples that a message names; it only counts the rest
LONGEST = 60  # characters of a caption in a message
SMALLEST_SCALE = 1e-4  # of fp16's loss. At a larger one, gradients that are not finite are ordinary: the scaler skips the step
RATES = ("learning_rate", "text_learning_rate", "vision_learning_rate", "adaptive_learning_rate")


class NotFinite(ArithmeticError):
    """A loss, a gradient, an embedding or a weight is NaN or infinite. The message names the examples and what to lower."""


@dataclass
class Batch:
    """What is kept of a batch until the optimizer's step.

    Attributes:
        loss: scalar.
        rows: (B,) row numbers in the training set; None if they are not known.
        embeds: those of pictures and those of texts, (B, D) each; empty if they are not known.
    """

    loss: torch.Tensor
    rows: torch.Tensor | None
    embeds: list[torch.Tensor]

    def suspects(self) -> list[int]:
        """Rows of the examples whose embeddings are not finite; all rows if that is none or all of them."""
        if self.rows is None:
            return []
        bad = torch.zeros(len(self.rows), dtype=torch.bool)  # (B,)
        for embeds in self.embeds:
            bad |= ~embeds.isfinite().all(dim=1).cpu()
        rows = self.rows.cpu()
        return (rows if bad.all() or not bad.any() else rows[bad]).tolist()


class FiniteSteps(TrainerCallback):
    """Checks every step before the optimizer changes a weight: the losses of its batches, and its gradients.

    All processes stop at the same step. A step takes one transfer from the device, of two values, and a reading of the
    gradients, a quarter of the time of clipping them. Trainer's own check of the loss (`logging_nan_inf_filter`) takes two
    transfers per batch.

    With fp16 the gradients of the scaled loss overflow now and then, and the scaler skips that step. This is a fault only if
    the scale has become tiny.

    Args:
        trainer: [`MPCLIPTrainer`]. It appends to `batches`.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.batches: list[Batch] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Raise [`NotFinite`] if a loss or a gradient is not finite."""
        batches, self.batches = self.batches, []
        accelerator = self.trainer.accelerator
        losses = torch.stack([batch.loss.float() for batch in batches])  # (batches of the step,)
        finite = torch.stack([losses.isfinite().all(), gradient_norm(model).to(losses.device).isfinite()])  # (2,)
        faults = (~finite).float()
        if args.world_size > 1:
            faults = accelerator.reduce(faults, "sum")
        bad_loss, bad_gradient = faults.tolist()
        if bad_loss or (bad_gradient and not _scaler_skips(accelerator.scaler)):
            bad = losses[~losses.isfinite()].tolist()
            what = f"the loss is {bad[0] if bad else 'not finite in another process'}"
            if not bad_loss:
                what = f"{_gradients_told(model)} not finite, though the loss is"
            told = [] if bad_loss and not bad else [self._told(batches)]
            told = "".join(gather_object(told))
            raise NotFinite(f"Step {state.global_step + 1}: {what}. {told}{_advice(args)}")

    def _told(self, batches: list[Batch]) -> str:
        """The examples of this process to look at."""
        faulty = [batch for batch in batches if not batch.loss.isfinite()] or batches
        rows = [row for batch in faulty for row in batch.suspects()]
        count = sum(len(batch.rows) for batch in faulty if batch.rows is not None)
        if not rows:
            return ""
        which = "Its batch" if len(rows) == count else f"Not finite are the embeddings of {len(rows)} of its {count} examples"
        return f"{which}: {self.trainer.examples_told(rows)}. "


def gradient_norm(model: torch.nn.Module) -> torch.Tensor:
    """The norm of all gradients, a scalar: NaN or infinite if a value of them is. 0 if there are none.

    Trainer has clipped them before, so that the squares of large ones do not overflow. Of a sharded gradient only this
    process's part is looked at.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    gradients = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.tensor(0.0)


def _gradients_told(model: torch.nn.Module) -> str:
    """Which gradients are not finite, as the start of a sentence. Clipping spreads a NaN to all of them."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return f"the gradient of {bad[0]} is" if len(bad) == 1 else "gradients are"


def _scaler_skips(scaler: torch.amp.GradScaler | None) -> bool:
    """Whether a loss scaler skips a step of infinite gradients and goes on with half the scale."""
    return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= SMALLEST_SCALE


def refuse_weights(model: PreTrainedModel, arguments) -> None:
    """Refuse to save a model with a NaN or infinite weight.

    Raises:
        NotFinite: there is one; the message names it.
    """
    if names := not_finite(model):
        raise NotFinite(f"The model is not saved: {_first(names)} has NaN or infinite values. {_advice(arguments)}")


def refuse_embeddings(embeds: dict[str, torch.Tensor], dataset, table: datasets.Dataset | None, arguments) -> None:
    """Refuse to evaluate embeddings that are not finite.

    Args:
        embeds: `image_embeds` (I, D), `text_embeds` (T, D) and `caption_image` (T,).
        dataset: the evaluation set, an `ImageTextDataset` of I pictures.
        table: as for `examples_named`.
        arguments: of the training.

    Raises:
        NotFinite: the message names the examples, unless they are all of them.
    """
    pictures = ~embeds["image_embeds"].isfinite().all(dim=1)  # (I,)
    texts = ~embeds["text_embeds"].isfinite().all(dim=1)  # (T,)
    rows = sorted({*pictures.nonzero()[:, 0].tolist(), *embeds["caption_image"][texts].tolist()})
    if rows:
        told = f"{examples_named(dataset, rows, table)}. " if len(rows) < len(pictures) else ""
        raise NotFinite(f"The embeddings of {len(rows)} of {len(pictures)} examples are not finite. {told}{_advice(arguments)}")


def examples_named(dataset, rows: list[int], table: datasets.Dataset | None = None) -> str:
    """Examples as a part of a message: file names or row numbers, each with the caption of this epoch.

    Args:
        dataset: an `ImageTextDataset`; of another one only row numbers are told.
        rows: row numbers. The first `NAMED` are named.
        table: the table with the columns that the data set has left out, such as the file name.
    """
    shown = rows[:NAMED]
    captions, names = {}, {}
    if isinstance(dataset, ImageTextDataset):
        texts = ImageTextDataset(dataset.rows, dataset.captions, dataset.seed, with_images=False)
        texts.set_epoch(dataset.epoch)
        captions = {row: texts[row]["captions"][0] for row in shown}
        names = _file_names(dataset.rows if table is None else table, shown)
    parts = [names.get(row) or f"row {row}" for row in shown]
    for i, row in enumerate(shown):
        if row in captions:
            parts[i] = with_caption(parts[i], captions[row])
    return listed(parts, len(rows))


def with_caption(name: str, caption: str) -> str:
    """An example as a part of a message: its name and the beginning of its caption."""
    return f'{printable(name)} ("{printable(caption[:LONGEST])}{"..." if len(caption) > LONGEST else ""}")'


def listed(parts: list[str], count: int) -> str:
    """The first `NAMED` of `count` examples, and how many more there are."""
    return ", ".join(parts[:NAMED]) + (f" and {count - NAMED} more" if count > NAMED else "")


def _file_names(table: datasets.Dataset, rows: list[int]) -> dict[int, str]:
    """row -> the name of its picture's file, where the table has one."""
    table = table.with_format(None).select(rows)
    if "file_name" in table.column_names:
        return dict(zip(rows, table["file_name"][:], strict=True))
    if "image" not in table.column_names:
        return {}
    cells = table.cast_column("image", datasets.Image(decode=False))["image"][:]
    return {row: Path(cell["path"]).name for row, cell in zip(rows, cells, strict=True) if cell["path"]}


def _first(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} other weights" if len(names) > 1 else names[0]


def _advice(arguments) -> str:
    """What is left of the run, and what to change."""
    good = next(iter(checkpoints_in(Path(arguments.output_dir))), None)
    kept = f"The last good checkpoint is {good}." if good else "No checkpoint was saved yet."
    rates = ", ".join(f"{name}={getattr(arguments, name):g}" for name in RATES)
    half = " fp16 overflows above 65504; bf16 does not." if arguments.fp16 else ""
    return f"{kept} Lower the learning rates ({rates}), or raise warmup_steps.{half}"
