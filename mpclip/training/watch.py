"""What a tracker shows of a training beside the parts of the loss: `--report_to tensorboard`, wandb, trackio or others.

    waiting_share                             share of the time in which the processes waited for their batches (0 to 1)
    samples_per_second, tokens_per_second     pairs, and text-side tokens with prompts and without padding, of all processes
    prompt_similarity                         mean cosine of two different prompts' segments of one text; 1: all say the same
    prompt_similarity_matrix                  (K, K), its mean over the texts, as a picture; tensorboard and trackio
    grad_norm_new, _adaptive, _llm, _lora, _image_tower      norms of the gradients by group, as the optimizer gets them

Evaluations and checkpoints count in no rate. Similarity and norms are those of the last batch before a log; no other step
computes them. In a job of several processes all values are those of all processes.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback

from .tuning import learning_rate_group

MATRIX_EVERY = 10  # logs from one picture of the matrix to the next
GROUPS = {
    "learning_rate": "new",
    "adaptive_learning_rate": "adaptive",
    "text_learning_rate": "llm",
    "vision_learning_rate": "image_tower",
}


class Watch(TrainerCallback):
    """Collects what a tracker shows; `values` gives it to the Trainer's log.

    Args:
        trainer: [`MPCLIPTrainer`]. It tells of every batch by `saw` and `waiting`.

    Attributes:
        segments: (B, K, D / K), those of the texts of the last batch of this process, without a graph; None before.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.segments: torch.Tensor | None = None
        self.norms: dict[str, torch.Tensor] = {}
        self.logs = 0
        self._begin()

    def _begin(self) -> None:
        self.waited = self.computed = 0.0  # seconds since the last log
        self.pairs, self.tokens = 0, torch.zeros((), dtype=torch.int64)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager for the time in which a batch is awaited."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def saw(self, inputs: dict[str, torch.Tensor], prompt_tokens: int) -> None:
        """Count the pairs and tokens of a batch.

        Args:
            inputs: as from the loader. `text_tokens` (B,) or `attention_mask` (B, N) tells the tokens of the texts; a batch
                without them is not counted.
            prompt_tokens: that every text gets in addition.
        """
        lengths = inputs.get("text_tokens", inputs.get("attention_mask"))
        if lengths is None:
            return
        self.pairs += len(lengths) - len(inputs.get("without_true", ()))  # texts on what is absent are no pairs
        # A sum on the device: nothing waits for it.
        self.tokens = self.tokens.to(lengths.device) + lengths.sum() + len(lengths) * prompt_tokens

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.computed += time.perf_counter() - self._began

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Measure the gradients, if this step is logged."""
        step = state.global_step + 1
        if step % state.logging_steps == 0 or (step == 1 and args.logging_first_step):
            self.norms = norms_by_group(model, self.trainer.accelerator)

    def values(self) -> dict[str, float]:
        """What was collected since the last call, as means or sums over the processes. All of them must call it."""
        accelerator, device = self.trainer.accelerator, self.trainer.args.device
        matrix = None if self.segments is None else mean_similarity(self.segments)  # (K, K)
        told = torch.tensor([self.waited, self.computed, self.pairs], device=device)
        told = torch.cat([told, self.tokens[None].to(device).float()])  # (4,)
        if matrix is not None:
            told = torch.cat([told, matrix.flatten().to(device)])
        if self.trainer.args.world_size > 1:
            told = accelerator.reduce(told, "mean")
        told = told.cpu()
        waited, computed, pairs, tokens = told[:4].tolist()
        seconds = max(waited + computed, 1e-9)
        found = {"waiting_share": round(waited / seconds, 4)}
        if pairs:
            found["samples_per_second"] = round(pairs * self.trainer.args.world_size / seconds, 2)
            found["tokens_per_second"] = round(tokens * self.trainer.args.world_size / seconds, 1)
        if matrix is not None and (K := len(matrix)) > 1:
            matrix = told[4:].view(K, K)
            found["prompt_similarity"] = round(((matrix.sum() - matrix.trace()) / (K * (K - 1))).item(), 4)
            if self.logs % MATRIX_EVERY == 0:
                show_matrix(matrix, self.trainer.callback_handler.callbacks, self.trainer.state.global_step)
        found |= {f"grad_norm_{group}": float(f"{norm.item():.4g}") for group, norm in self.norms.items()}
        self.norms, self.logs = {}, self.logs + 1
        self._begin()
        return found


def mean_similarity(segments: torch.Tensor) -> torch.Tensor:
    """(B, K, D / K) segments of any norm -> (K, K) float32, the cosines of two prompts' segments, averaged over B texts."""
    unit = torch.nn.functional.normalize(segments.float(), dim=-1)  # (B, K, D/K)
    return torch.einsum("bid,bjd->ij", unit, unit) / len(unit)


def norms_by_group(model: torch.nn.Module, accelerator) -> dict[str, torch.Tensor]:
    """The norm of the gradients of each group that has any: "new" modules, "adaptive" tokens, "llm", "lora", "image_tower".

    Args:
        model: after the backward pass. Gradients may be sharded among the processes of the accelerator.
        accelerator: sums over the processes.
    """
    whole: dict[str, list[torch.Tensor]] = {}
    sharded: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            group = "lora" if "lora_" in name else GROUPS[learning_rate_group(name)]
            if hasattr(parameter.grad, "to_local"):
                sharded.setdefault(group, []).append(parameter.grad.to_local())
            else:
                whole.setdefault(group, []).append(parameter.grad)
    norms = {group: torch.nn.utils.get_total_norm(gradients) for group, gradients in whole.items()}
    if sharded:
        names = sorted(sharded)
        squares = torch.stack([torch.nn.utils.get_total_norm(sharded[name]).square() for name in names])  # (groups,)
        for name, square in zip(names, accelerator.reduce(squares, "sum"), strict=True):
            norms[name] = (square + norms.get(name, square.new_zeros(())).square()).sqrt()
    return norms


def show_matrix(matrix: torch.Tensor, callbacks: list[TrainerCallback], step: int) -> None:
    """Give (K, K) cosines to the trackers that show pictures: -1 is black and 1 is white, with 16 x 16 pixels for each.

    Args:
        matrix: the cosines, float32 on the CPU.
        callbacks: of the Trainer; those of tensorboard and trackio are looked for.
        step: number of optimizer steps.
    """
    picture = (matrix.clamp(-1, 1) + 1) / 2
    picture = picture.repeat_interleave(16, 0).repeat_interleave(16, 1)  # (16 K, 16 K)
    for callback in callbacks:
        kind = type(callback).__name__
        if kind == "TensorBoardCallback" and getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_image("train/prompt_similarity_matrix", picture, step, dataformats="HW")
        elif kind == "TrackioCallback":
            import trackio

            pixels = (picture * 255).round().to(torch.uint8)[..., None].expand(-1, -1, 3)  # (16 K, 16 K, 3)
            trackio.log({"train/prompt_similarity_matrix": trackio.Image(pixels.contiguous().numpy())})
