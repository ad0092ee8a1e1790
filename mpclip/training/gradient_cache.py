"""One large batch in the memory of a small one: the gradient cache (Gao et al. 2021, arXiv 2101.06983).

The contrastive loss needs the embeddings of all pairs of a batch, but it does not need the graphs that made them at once:

    1. The batch is embedded in chunks without a graph. The random state before each chunk is kept.
    2. The loss of all embeddings gives its gradients at the embeddings, and at the logit scale.
    3. Each chunk is embedded again, with a graph and the same random numbers, and its gradients are carried on to the weights.

The gradients are those of a step with all graphs in memory. The price is a second forward pass. Batch norms are in evaluation
mode (`MPCLIPModel.train`), so the embedding of an example is the same in every chunk.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from modeling_mpclip.segments import assembled

# Embeddings, and the segments that they are made of.
SEGMENTS = {
    "text_embeds": "text_prompt_embeds",
    "image_embeds": "image_prompt_embeds",
    "negated_text_embeds": "negated_prompt_embeds",
}


def step_in_chunks(trainer, model: nn.Module, inputs: dict[str, torch.Tensor], rows: int) -> torch.Tensor:
    """As `Trainer.training_step`, with the graphs of a few pairs at a time.

    Args:
        trainer: [`MPCLIPTrainer`].
        model: its model, as it is wrapped for training.
        inputs: a batch on the model's device; `caption_id` is taken out.
        rows: pairs per chunk.

    Returns:
        The loss divided by the steps of gradient accumulation, without a graph.
    """
    model.train()
    if callable(getattr(trainer.optimizer, "train", None)):  # of a schedule-free optimizer
        trainer.optimizer.train()
    caption_ids = inputs.pop("caption_id", None)
    base = trainer.accelerator.unwrap_model(model)
    steps, scaler = trainer.current_gradient_accumulation_steps, trainer.accelerator.scaler

    def loss_of(embeds: dict[str, torch.Tensor]) -> torch.Tensor:
        if trainer.args.world_size == 1:
            embeds["logits_per_image"] = base.logit_scale(embeds["image_embeds"] @ embeds["text_embeds"].T)  # (B, B)
        return trainer.loss_of_embeddings(model, embeds, caption_ids)

    loss = cached_step(
        model,
        inputs,
        rows,
        loss_of,
        [weight for weight in base.logit_scale.parameters() if weight.requires_grad],
        negated=bool(base.config.negation_weight),
        scaled=lambda loss: loss / steps if scaler is None else scaler.scale(loss / steps),
        context=trainer.compute_loss_context_manager,
        no_sync=partial(trainer.accelerator.no_sync, model),
    )
    return loss / steps


def refuse_chunks(trainer, has_own_loss: bool) -> None:
    """Refuse forward_chunk where it would not work.

    Args:
        trainer: [`MPCLIPTrainer`].
        has_own_loss: whether its class computes another loss.

    Raises:
        ValueError: the loss is another one, or gradients are exchanged by FSDP or DeepSpeed.
    """
    who = None
    if has_own_loss:
        who = f"{type(trainer).__name__}, which has a loss of its own"
    elif trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        who = "FSDP and DeepSpeed, which exchange gradients in their own way"
    if who:
        raise ValueError(f"forward_chunk={trainer.args.forward_chunk} does not work with {who}. Leave it out.")


def cached_step(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    rows: int,
    loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    weights_of_loss: list[nn.Parameter],
    *,
    negated: bool = False,
    scaled: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    context: Callable[[], AbstractContextManager] = nullcontext,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> torch.Tensor:
    """Add the gradients of the loss of a batch to the weights, `rows` pairs at a time.

    Args:
        model: [`MPCLIPModel`], or what wraps it.
        inputs: (B, ...) tensors by their names in `MPCLIPModel.forward`.
        rows: pairs per chunk.
        loss_of: gets `text_embeds`, `image_embeds`, `text_prompt_embeds`, `image_prompt_embeds`, and with negated prompts
            `negated_text_embeds`, of all B pairs, and returns a 0-dimensional loss.
        weights_of_loss: the weights that the loss itself uses: of the logit scale.
        negated: also run the negated prompts.
        scaled: the loss -> what the gradients are of, such as the loss divided for gradient accumulation.
        context: makes the context in which model and loss are computed, such as autocast.
        no_sync: makes the context in which the processes do not exchange gradients. The last chunk runs outside of it.

    Returns:
        The loss, without a graph.

    Raises:
        ValueError: a batch norm computes with the statistics of a batch, so chunks would not give the result of the batch.
    """
    _refuse_batch_statistics(model)
    pairs = len(next(iter(inputs.values())))
    chunks = [{name: value[i : i + rows] for name, value in inputs.items()} for i in range(0, pairs, rows)]
    states, embedded = [], []
    for chunk in chunks:
        states.append(_RandomState(chunk))
        with torch.no_grad(), context():
            output = model(**chunk, negated=negated)
        embedded.append({name: output[name].float() for name in SEGMENTS.values() if output.get(name) is not None})
        del output
    segments = {name: torch.cat([part[name] for part in embedded]).requires_grad_() for name in embedded[0]}  # (B, K, D/K)
    del embedded
    with context():
        loss = loss_of(_with_whole_embeds(segments))
    gradients = torch.autograd.grad(scaled(loss), [*segments.values(), *weights_of_loss])
    of_segments = dict(zip(segments, gradients, strict=False))
    of_weights = gradients[len(segments) :]
    for i, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        is_last = i == len(chunks) - 1
        with nullcontext() if is_last else no_sync():
            with state.restored(), context():
                output = model(**chunk, negated=negated)
            # The gradients of this sum at the weights are those of the loss.
            products = [output[name].float() * of_segments[name][i * rows : (i + 1) * rows] for name in segments]
            if is_last:
                products += [weight * gradient for weight, gradient in zip(weights_of_loss, of_weights, strict=True)]
            sum(product.sum() for product in products).backward()
            del output, products
    return loss.detach()


def _with_whole_embeds(segments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the normalised embeddings (B, D) to their segments (B, K, D / K)."""
    return segments | {name: assembled(segments[of]) for name, of in SEGMENTS.items() if of in segments}


class _RandomState:
    """The state of the generators that a forward pass draws from: the CPU's, and that of the inputs' device."""

    def __init__(self, inputs: Mapping[str, torch.Tensor]):
        device = next(iter(inputs.values())).device
        self.cpu, self.devices, self.device_type = torch.get_rng_state(), [], device.type
        if device.type != "cpu":
            self.devices = [device]
            self.on_device = torch.get_device_module(device).get_rng_state(device)

    @contextmanager
    def restored(self):
        """Draw the same numbers again. After that, the generators go on as if nothing had been drawn."""
        kind = {"device_type": self.device_type} if self.devices else {}
        with torch.random.fork_rng(self.devices, **kind):
            torch.set_rng_state(self.cpu)
            for device in self.devices:
                torch.get_device_module(device).set_rng_state(self.on_device, device)
            yield


def _refuse_batch_statistics(model: nn.Module) -> None:
    """Raise a ValueError if a batch norm is in training mode."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"forward_chunk: {name} is a batch norm in training mode, so the embedding of an image depends on its chunk. "
                "Call its eval(), as MPCLIPModel.train does for all batch norms, or leave forward_chunk out."
            )
