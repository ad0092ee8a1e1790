"""The text tower: a decoder LLM run once over a text and its prompt tree.

`PromptedTextTower` is a mixin over a transformers decoder (`LlamaModel` and its relatives); text_families.py has the classes.
A pass has a lower part, whose states can be cached while it is frozen, an upper part, and a last layer that is computed at the
readouts alone.
"""

import contextlib
import inspect

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import capture_outputs

from .prompt_attention import PromptLayout, mask_for_implementation
from .prompt_tree import PromptTree


class BoundaryEmbedding(nn.Embedding):
    """(M, H) vectors of adaptive_tokens="boundary". They start at zero: the frozen input embeddings already differ."""


class PromptedTextTower:
    """Mixin over a transformers decoder: the prompt-wise forward pass.

    Args:
        config: the LLM's config.
        adaptive_token_ids: ids of the M adaptive tokens in the tokenizer, consecutive.
        boundary_layer: layer below which the vectors of adaptive_tokens="boundary" are added; None learns the input
            embeddings of the adaptive tokens.

    Raises:
        ValueError: the decoder lacks a part that this forward pass uses.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        adaptive_token_ids: tuple[int, ...] = (),
        boundary_layer: int | None = None,
    ):
        super().__init__(config)
        self._refuse_foreign_structure()
        if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
            # sdpa cannot cap scores; transformers before 5.23 would silently leave Gemma 2's uncapped.
            self.set_attn_implementation("eager")
        self.adaptive_token_ids = list(adaptive_token_ids)
        self.boundary_layer = boundary_layer
        # The adaptive tokens' embeddings stand beside the embedding matrix: they train alone while all of it stays frozen.
        # They are what `embed_tokens` would return, so Gemma's scaling is already in them.
        M, H = len(self.adaptive_token_ids), config.hidden_size
        self.adaptive_embedding = nn.Embedding(M, H)
        self.adaptive_embedding.weight.requires_grad_(boundary_layer is None)
        self.boundary_embedding = None if boundary_layer is None else BoundaryEmbedding(M, H)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BoundaryEmbedding):
            init.zeros_(module.weight)

    def _refuse_foreign_structure(self) -> None:
        missing = [name for name in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(self, name)]
        if not missing:
            layer = self.layers[0]
            names = ("input_layernorm", "self_attn.k_proj", "self_attn.v_proj", "self_attn.head_dim")
            missing = [name for name in names if not _has(layer, name)]
        if missing:
            raise ValueError(
                f"{type(self).__name__.removeprefix('Prompted')} is not a decoder of a supported family (it has no "
                f"{', '.join(missing)}). Use Llama, Gemma, Gemma2, Gemma3 text, Qwen2, Qwen3 or Mistral."
            )

    def initialize_adaptive(self, rows: torch.Tensor) -> None:
        """Set the adaptive embeddings to (M, H) rows, in the scale of `embed_tokens`' output."""
        with torch.no_grad():
            self.adaptive_embedding.weight.copy_(rows)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(..., H) embeddings; adaptive tokens come from `adaptive_embedding`, whatever the matrix holds at their ids."""
        M = len(self.adaptive_token_ids)
        if not M:
            return self.embed_tokens(input_ids)
        index = input_ids - self.adaptive_token_ids[0]
        adaptive = (index >= 0) & (index < M)
        embedded = self.embed_tokens(input_ids.masked_fill(adaptive, 0))
        learned = self.adaptive_embedding(index.clamp(0, M - 1)).to(embedded.dtype)
        return torch.where(adaptive[..., None], learned, embedded)

    @capture_outputs  # hooks on the layers, set when something is first asked for; reads the two flags and return_dict
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        tree: PromptTree,
        readouts: torch.Tensor | None = None,
        hidden_states: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> BaseModelOutput:
        """The whole pass, or its upper part from cached `hidden_states` (B, N + T, H) that enter `split_layer`.

        Args:
            input_ids, attention_mask: (B, N) the texts, padded on either side. The mask is needed in both cases.
            tree: T nodes, run behind every text.
            readouts: (B, R) columns to read; None reads all of them.

        Returns:
            last_hidden_state: (B, R, H) at the readouts, (B, N + T, H) without.
            hidden_states: what enters the first layer that runs, then what each layer gives, the last one normed:
                (B, N + T, H), and (B, R, H) where the last layer runs at the readouts alone.
            attentions: (B, heads, N + T, N + T) of each layer that runs, (B, heads, R, N + T) of a last one at the readouts.
                Only attn_implementation="eager" forms them.
        """
        layout = PromptLayout(attention_mask, tree)
        if hidden_states is None:
            hidden_states = self.lower(input_ids, layout, self.split_layer)
        return BaseModelOutput(last_hidden_state=self.upper(hidden_states, layout, self.split_layer, readouts))

    @property
    def split_layer(self) -> int:
        """The layer where `forward` goes from `lower` to `upper`."""
        return 0 if self.boundary_layer is None else self.boundary_layer

    def lower(self, input_ids: torch.Tensor, layout: PromptLayout, stop: int) -> torch.Tensor:
        """Hidden states of text and tree that enter layer `stop`.

        Args:
            input_ids: (B, N) the texts.
            layout: of their attention mask and the tree.

        Returns:
            (B, N + T, H)
        """
        B = input_ids.shape[0]  # len() would fix the batch size of an exported graph
        prompts = self.embed(layout.nodes.token_ids).expand(B, -1, -1)  # (B, T, H)
        hidden = torch.cat([self.embed(input_ids), prompts], dim=1)  # (B, N + T, H)
        return self._run_layers(hidden, layout, 0, stop)

    def upper(self, hidden: torch.Tensor, layout: PromptLayout, start: int, readouts: torch.Tensor | None) -> torch.Tensor:
        """Layers from `start` on and the final norm.

        Args:
            hidden: (B, N + T, H) entering layer `start`, as `lower` returns them.
            readouts: (B, R) columns to read; None reads all of them.

        Returns:
            (B, R, H) or (B, N + T, H)

        Raises:
            ValueError: `start` is not the boundary, where the boundary vectors are added.
        """
        if self.boundary_embedding is not None and start != self.boundary_layer:
            raise ValueError(f"upper() starts at layer {start}; the boundary vectors belong before {self.boundary_layer}.")
        T = len(layout.tree)
        if self.boundary_embedding is not None and T:
            added = self._boundary_vectors(layout.tree).to(hidden.dtype)  # (T, H)
            hidden = torch.cat([hidden[:, :-T], hidden[:, -T:] + added], dim=1)
        L = len(self.layers)
        if readouts is None or start == L or _kept_elsewhere(self.layers[-1], hidden):
            hidden = self._run_layers(hidden, layout, start, L)
            hidden = hidden if readouts is None else _gather(hidden, readouts)
        else:
            hidden = self._run_layers(hidden, layout, start, L - 1)
            hidden = self._run_last_layer(hidden, layout, readouts)
        return self.norm(hidden)

    def _boundary_vectors(self, tree: PromptTree) -> torch.Tensor:
        """(T, H): each adaptive token's vector for itself and what follows it in its prompt, zero in the shared stem."""
        index = torch.tensor(tree.last_adaptive(self.adaptive_token_ids), device=self.boundary_embedding.weight.device)
        return torch.where(index[:, None] >= 0, self.boundary_embedding(index.clamp(min=0)), 0.0)

    def _run_layers(self, hidden: torch.Tensor, layout: PromptLayout, start: int, stop: int) -> torch.Tensor:
        """Run the layers [start, stop) over all columns: (B, N + T, H) -> (B, N + T, H)."""
        rotary = {kind: self._rotary(kind, hidden, layout) for kind in {self._kind(i) for i in range(start, stop)}}
        for i in range(start, stop):
            kind = self._kind(i)
            hidden = self.layers[i](
                hidden,
                attention_mask=layout.mask(self._window(kind), self.config._attn_implementation, hidden.dtype),
                position_embeddings=rotary[kind],
                position_ids=layout.positions,
                use_cache=False,
            )
        return hidden

    def _run_last_layer(self, hidden: torch.Tensor, layout: PromptLayout, readouts: torch.Tensor) -> torch.Tensor:
        """The last layer for the readouts alone: keys and values of all columns, everything else for R of them (ours).

        The layer itself runs on the R readouts and finds the keys and values of all columns in its cache. So its norms, MLP,
        soft caps, adapters and attention implementation are its own.

        Args:
            hidden: (B, N + T, H) entering the last layer.
            readouts: (B, R) columns.

        Returns:
            (B, R, H), equal to the full layer at those columns.
        """
        layer, kind = self.layers[-1], self._kind(len(self.layers) - 1)
        attention = layer.self_attn
        cos, sin = self._rotary(kind, hidden, layout)  # (B, N + T, d) each

        normed = layer.input_layernorm(hidden)
        heads = (*hidden.shape[:2], -1, attention.head_dim)
        keys = attention.k_proj(normed).view(heads)
        if hasattr(attention, "k_norm"):
            keys = attention.k_norm(keys)
        keys = _rotate(keys.transpose(1, 2), cos, sin)  # (B, kv heads, N + T, d)
        values = attention.v_proj(normed).view(heads).transpose(1, 2)

        allowed = _gather(layout.allowed(self._window(kind))[:, 0], readouts)[:, None]  # (B, 1, R, N + T)
        with _without_checkpointing(layer):
            return layer(
                _gather(hidden, readouts),
                attention_mask=mask_for_implementation(allowed, self.config._attn_implementation, hidden.dtype),
                position_embeddings=(_gather(cos, readouts), _gather(sin, readouts)),
                position_ids=layout.positions.gather(1, readouts),
                **{_cache_argument(layer): _KnownKeysValues(keys, values)},
            )

    def _kind(self, i: int) -> str:
        """Attention type of layer i."""
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None:
            return kinds[i]
        return "sliding_attention" if getattr(self.config, "sliding_window", None) else "full_attention"

    def _window(self, kind: str) -> int | None:
        return self.config.sliding_window if kind == "sliding_attention" else None

    def _rotary(self, kind: str, hidden: torch.Tensor, layout: PromptLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), (B, N + T, d) each; Gemma 3 has a base per attention type."""
        if "layer_type" in inspect.signature(self.rotary_emb.forward).parameters:
            return self.rotary_emb(hidden, layout.positions, kind)
        return self.rotary_emb(hidden, layout.positions)


def _kept_elsewhere(layer: nn.Module, hidden: torch.Tensor) -> bool:
    """True for a layer that accelerate keeps off the device and brings in only when it is called as a whole."""
    return not hidden.is_meta and any(parameter.is_meta for parameter in layer.parameters())


def _cache_argument(layer: nn.Module) -> str:
    """What the layer calls its key-value cache: `past_key_values` before transformers 5.24, which renamed it."""
    return "cache" if "cache" in inspect.signature(layer.forward).parameters else "past_key_values"


class _KnownKeysValues:
    """A key-value cache for one call of one layer: it already holds every column, the readouts' own included."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys, self.values = keys, values

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        return self.keys, self.values


@contextlib.contextmanager
def _without_checkpointing(layer: nn.Module):
    """Gradient checkpointing would drop the cache; the R readouts' activations are too few to be worth recomputing."""
    was_on = layer.gradient_checkpointing
    layer.gradient_checkpointing = False
    try:
        yield
    finally:
        layer.gradient_checkpointing = was_on


def _gather(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, L, C), (B, R) -> (B, R, C)."""
    x = x.expand(columns.shape[0], -1, -1)
    # Not torch.take_along_dim, which fixes the batch size of an exported graph.
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of (B, heads, L, d) by (B, L, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def _has(module: nn.Module, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True
