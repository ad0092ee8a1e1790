"""One large batch in the memory of a small one: the gradient cache (Gao et al. 2021, arXiv 2101.06983).

The contrastive loss needs the embeddings of all pairs of a batch, but it does not need the graphs that made them at once:

    1. The batch is embedded in chunks without a graph. The random state before each chunk is kept.
    2. The loss of all embeddings gives its gradients at the embeddings, and at the logit scale.
    3. Each chunk is embedded again, with a graph and the same random numbers, and its gradients are carried on to the weights.

The gradients are those of a step with all graphs in memory. The price is a second forward pass. Batch norms are in evaluation
mode (`MPCLIPModel.train`), so the embedding of an example is the same in every chunk.

A chunk is a number of pairs, or as many pairs as fit into a number of text-side tokens. Cached states are read a chunk at a
time (`late_states.py`), and large losses are computed in tiles (`tiled_loss.py`), so that only embeddings grow with the batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from modeling_mpclip.segments import assembled

from .batch_size import pairs_per_process

# Embeddings, and the segments that they are made of.
SEGMENTS = {
    "text_embeds": "text_prompt_embeds",
    "image_embeds": "image_prompt_embeds",
    "negated_text_embeds": "negated_prompt_embeds",
}


def in_chunks(arguments) -> bool:
    """Whether the training arguments ask for a batch in chunks, and a chunk is smaller than the batch."""
    rows = arguments.forward_chunk
    return arguments.forward_chunk_tokens is not None or (rows is not None and rows < pairs_per_process(arguments))


def step_in_chunks(trainer, model: nn.Module, inputs: dict[str, torch.Tensor], read: Callable[[dict], dict]) -> torch.Tensor:
    """As `Trainer.training_step`, with the graphs of a few pairs at a time.

    Args:
        trainer: [`MPCLIPTrainer`].
        model: its model, as it is wrapped for training.
        inputs: a batch; `caption_id` is taken out.
        read: some rows of the batch -> arguments of the model's forward for them, on its device.

    Returns:
        The loss divided by the steps of gradient accumulation, without a graph.
    """
    model.train()
    if callable(getattr(trainer.optimizer, "train", None)):  # of a schedule-free optimizer
        trainer.optimizer.train()
    caption_ids = inputs.pop("caption_id", None)
    base = trainer.accelerator.unwrap_model(model)
    steps, scaler = trainer.current_gradient_accumulation_steps, trainer.accelerator.scaler
    negated = bool(base.config.negation_weight)
    lengths = inputs.pop("text_tokens", None)  # (B,)
    if trainer.args.forward_chunk is not None:
        chunks = chunks_of_rows(len(next(iter(inputs.values()))), trainer.args.forward_chunk)
    else:
        lengths = inputs["attention_mask"].sum(dim=1) if lengths is None else lengths
        chunks = chunks_of_tokens(lengths.cpu(), trainer.args.forward_chunk_tokens, len(base.prompt_tree(negated)))
    loss = cached_step(
        model,
        inputs,
        chunks,
        lambda embeds: trainer.loss_of_embeddings(model, embeds, caption_ids),
        [weight for weight in base.logit_scale.parameters() if weight.requires_grad],
        read=lambda rows: without_padding(read(rows)),
        negated=negated,
        scaled=lambda loss: loss / steps if scaler is None else scaler.scale(loss / steps),
        context=trainer.compute_loss_context_manager,
        no_sync=partial(trainer.accelerator.no_sync, model),
    )
    return loss / steps


def refuse_chunks(trainer, has_own_loss: bool) -> None:
    """Refuse forward_chunk and forward_chunk_tokens where they would not work.

    Args:
        trainer: [`MPCLIPTrainer`].
        has_own_loss: whether its class computes another loss.

    Raises:
        ValueError: both are given, the loss is another one, or gradients are exchanged by FSDP or DeepSpeed.
    """
    given = {name: getattr(trainer.args, name) for name in ("forward_chunk", "forward_chunk_tokens")}
    given = {name: value for name, value in given.items() if value is not None}
    told = " and ".join(f"{name}={value}" for name, value in given.items())
    if len(given) == 2:
        raise ValueError(f"{told} both say how large a chunk is. Give one of them.")
    who = None
    if has_own_loss:
        who = f"{type(trainer).__name__}, which has a loss of its own"
    elif trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        who = "FSDP and DeepSpeed, which exchange gradients in their own way"
    if given and who:
        raise ValueError(f"{told} does not work with {who}. Leave it out.")


def chunks_of_rows(pairs: int, rows: int) -> list[torch.Tensor]:
    """The row numbers of each chunk of `rows` pairs; the last chunk may be smaller."""
    return list(torch.arange(pairs).split(rows))


def chunks_of_tokens(lengths: torch.Tensor, tokens: int, prompt_tokens: int) -> list[torch.Tensor]:
    """The row numbers of chunks with up to `tokens` text-side tokens, those of padding and prompts included.

    Texts of about the same length come together, so that chunks have little padding.

    Args:
        lengths: (B,) tokens of each text.
        tokens: of a chunk.
        prompt_tokens: that every text gets in addition.

    Raises:
        ValueError: one text alone has more.
    """
    longest = int(lengths.max()) + prompt_tokens
    if longest > tokens:
        raise ValueError(
            f"forward_chunk_tokens={tokens}: one text of this batch has {longest} tokens with its prompts. Set it to {longest} "
            "or more, or lower max_text_length."
        )
    order = lengths.argsort(descending=True, stable=True)  # (B,)
    chunks, start = [], 0
    while start < len(order):
        rows = tokens // (int(lengths[order[start]]) + prompt_tokens)
        chunks.append(order[start : start + rows])
        start += rows
    return chunks


def without_padding(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Token ids and attention mask (B, N) without the columns that are padding in all of these texts."""
    used = inputs["attention_mask"].any(dim=0)  # (N,)
    if "input_ids" not in inputs or "text_hidden_states" in inputs or used.all() or not used.any():
        return inputs  # cached states are read without such columns
    return inputs | {name: inputs[name][:, used] for name in ("input_ids", "attention_mask")}


def cached_step(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    chunks: Sequence[torch.Tensor],
    loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    weights_of_loss: list[nn.Parameter],
    *,
    read: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
    negated: bool = False,
    scaled: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    context: Callable[[], AbstractContextManager] = nullcontext,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> torch.Tensor:
    """Add the gradients of the loss of a batch to the weights, a chunk of pairs at a time.

    Args:
        model: [`MPCLIPModel`], or what wraps it.
        inputs: (B, ...) tensors, as `read` takes them.
        chunks: the row numbers of each chunk; every row is in one of them.
        loss_of: gets `text_embeds`, `image_embeds`, `text_prompt_embeds`, `image_prompt_embeds`, and with negated prompts
            `negated_text_embeds`, of all B pairs, and returns a 0-dimensional loss.
        weights_of_loss: the weights that the loss itself uses: of the logit scale.
        read: some rows of `inputs` -> the arguments of `MPCLIPModel.forward` for them. By default they are that. It is called
            twice for every chunk, in another thread, while the chunk before is computed.
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
    states, embedded = [], []
    for chunk in _read_ahead(inputs, chunks, read):
        states.append(_RandomState(chunk))
        with torch.no_grad(), context():
            output = model(**chunk, negated=negated)
        embedded.append({name: output[name].float() for name in SEGMENTS.values() if output.get(name) is not None})
        del output
    device = next(iter(embedded[0].values())).device
    place = torch.cat(list(chunks)).argsort().to(device)  # (B,) row -> where it was embedded
    together = {name: torch.cat([part[name] for part in embedded]) for name in embedded[0]}
    segments = {name: value[place].requires_grad_() for name, value in together.items()}  # (B, K, D/K)
    del embedded, together
    with context():
        loss = loss_of(_with_whole_embeds(segments))
    gradients = torch.autograd.grad(scaled(loss), [*segments.values(), *weights_of_loss])
    of_segments = dict(zip(segments, gradients, strict=False))
    of_weights = gradients[len(segments) :]
    for i, (chunk, rows, state) in enumerate(zip(_read_ahead(inputs, chunks, read), chunks, states, strict=True)):
        is_last = i == len(chunks) - 1
        with nullcontext() if is_last else no_sync():
            with state.restored(), context():
                output = model(**chunk, negated=negated)
            # The gradients of this sum at the weights are those of the loss.
            products = [output[name].float() * of_segments[name][rows.to(device)] for name in segments]
            if is_last:
                products += [weight * gradient for weight, gradient in zip(weights_of_loss, of_weights, strict=True)]
            sum(product.sum() for product in products).backward()
            del output, products
    return loss.detach()


def _read_ahead(
    inputs: Mapping[str, torch.Tensor], chunks: Sequence[torch.Tensor], read: Callable[[dict], dict]
) -> Iterator[dict]:
    """The inputs of one chunk after the other. The next one is read while the caller computes with this one."""

    def inputs_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return read({name: value[rows.to(value.device)] for name, value in inputs.items()})

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(inputs_of, chunks[0])
        for following in [*chunks[1:], None]:
            chunk = coming.result()
            if following is not None:
                coming = pool.submit(inputs_of, following)
            yield chunk


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
                f"A batch in chunks: {name} is a batch norm in training mode, so the embedding of an image depends on its "
                "chunk. Call its eval(), as MPCLIPModel.train does for all batch norms, or leave forward_chunk and "
                "forward_chunk_tokens out."
            )
