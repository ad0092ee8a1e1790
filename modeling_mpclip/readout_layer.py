"""A decoder layer at some columns alone: keys and values for all columns, the rest for the columns that are read (ours)."""

import contextlib
import inspect

import torch
from torch import nn


def run_at_columns(
    layer: nn.Module,
    hidden: torch.Tensor,
    columns: torch.Tensor,
    mask,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | torch.Tensor,
    position_ids: torch.Tensor,
) -> torch.Tensor:
    """Run a decoder layer at R of its L columns.

    The layer is called once, on R columns and with a key-value cache. The cache answers with the keys and values of all L
    columns, which it has from the layer's own code. So the layer's own norms, caps, adapters and attention are used. Nothing of
    the layer is touched outside the call: weights that are offloaded or sharded are in place only during it.

    Args:
        layer: of a transformers decoder.
        hidden: (B, L, H) hidden states that enter the layer.
        columns: (B, R) columns to run.
        mask: which of the L columns each of the R columns attends to, as the layer's attention implementation reads it.
        position_embeddings: cos and sin, (B, L, d) each; or one tensor, as DeepSeek-V2 has them.
        position_ids: (B, L).

    Returns:
        (B, R, H), equal to the output of the whole layer at those columns.
    """
    cache = _CacheOfAllColumns(layer, hidden, position_embeddings=position_embeddings, position_ids=position_ids)
    with _without_checkpointing(layer):
        output = layer(
            gather_columns(hidden, columns),
            attention_mask=mask,
            position_embeddings=(
                gather_columns(position_embeddings, columns)
                if isinstance(position_embeddings, torch.Tensor)
                else tuple(gather_columns(part, columns) for part in position_embeddings)
            ),
            position_ids=position_ids.gather(1, columns),
            **{cache_argument(type(layer).forward): cache},
        )
    return output[0] if isinstance(output, tuple) else output


def gather_columns(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The given columns of each row: (B, L, C), (B, R) -> (B, R, C)."""
    x = x.expand(columns.shape[0], -1, -1)
    # Not torch.take_along_dim, which fixes the batch size of an exported graph.
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))


class _CacheOfAllColumns:
    """A key-value cache for one call of a layer. It holds the keys and values of all columns and is never extended.

    They are computed when the layer's attention asks for them: while the layer runs.
    """

    def __init__(self, layer: nn.Module, hidden: torch.Tensor, **positions):
        self.layer, self.hidden, self.positions = layer, hidden, positions

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Take the keys and values of the R columns, and return those of all: (B, kv heads, L, d) each."""
        hidden = self.hidden.to(key_states.device)
        device = hidden.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):  # not on the meta device
            hidden = hidden.to(key_states.dtype)  # FSDP casts what a layer is given, and this is not given to it
        return keys_and_values(self.layer, hidden, **self.positions)


def keys_and_values(layer: nn.Module, hidden: torch.Tensor, **positions) -> tuple[torch.Tensor, torch.Tensor]:
    """What the attention of a layer would hand to a key-value cache, from the code of the layer itself.

    The code is stopped at that point. Its queries are not needed: zeros stand for them, unless one projection gives queries
    and keys at once.

    Args:
        layer: of a transformers decoder.
        hidden: (B, L, H) hidden states that enter the layer.
        positions: the position arguments of the layer.

    Returns:
        (B, kv heads, L, d) keys, with their positions, and values.
    """
    name = "self_attn" if hasattr(layer, "self_attn") else "attention"
    attention, cache = getattr(layer, name), _Recorder()
    width = getattr(getattr(attention, "q_proj", None), "out_features", None)
    parts = {"q_proj": lambda x: x.new_zeros(()).expand(*x.shape[:-1], width)} if width else {}
    stopped = _StandIn(layer, **{name: _StandIn(attention, **parts)})
    with contextlib.suppress(_Recorded):
        stopped(hidden, attention_mask=None, **positions, **{cache_argument(type(layer).forward): cache})
    return cache.keys, cache.values


class _Recorded(Exception):
    """Stops a layer as soon as a `_Recorder` has its keys and values."""


class _Recorder:
    """A key-value cache that notes what it is handed, and stops the layer."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        self.keys, self.values = key_states, value_states
        raise _Recorded


class _StandIn:
    """Runs the forward code of a module with some of its parts replaced; everything else is the module's own.

    The module itself is not changed, and no hook on it runs a second time.
    """

    def __init__(self, module: nn.Module, **parts):
        self.module, self.parts = module, parts

    def __getattr__(self, name: str):
        return self.parts[name] if name in self.parts else getattr(self.module, name)

    def forward(self, *args, **kwargs):
        return type(self.module).forward(self, *args, **kwargs)

    __call__ = forward


def cache_argument(forward) -> str:
    """Name of the argument for the key-value cache: "cache" since transformers 5.24, or an older one."""
    known = ("cache", "past_key_values", "layer_past")
    return next(name for name in known if name in inspect.signature(forward).parameters)


@contextlib.contextmanager
def _without_checkpointing(layer: nn.Module):
    """Switch gradient checkpointing off: it drops the cache. The activations of R columns are few enough to be kept."""
    was_on = layer.gradient_checkpointing
    layer.gradient_checkpointing = False
    try:
        yield
    finally:
        layer.gradient_checkpointing = was_on
