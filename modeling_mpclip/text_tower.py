"""The decoder LLM with its prompts: every text followed by the prompt tree, in one pass.

`text_tower_class(config)` subclasses the LLM's own transformers class, so its layers, weights, names and initialisation are
the library's. The forward pass is split where the trained layers begin:

    lower(input_ids)      embeddings and the layers [0, stop): what can be run once and cached while all of it is frozen
    upper(hidden_states)  the layers [start, L), the last of them for the readouts alone, and the final norm
"""

import contextlib
import functools
import inspect

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import capture_outputs

from .prompt_attention import mask_for_implementation, prompt_attention_mask, prompt_position_ids
from .prompt_tree import PromptTree


@functools.lru_cache
def text_tower_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """The prompted subclass of the LLM that belongs to a config class, e.g. `PromptedLlamaModel`.

    Raises:
        ValueError: transformers has no such model.
    """
    if config_class not in MODEL_MAPPING:
        raise ValueError(f"No transformers model for a text config of class {config_class.__name__}.")
    base = MODEL_MAPPING[config_class]
    return type(f"Prompted{base.__name__}", (PromptedTextTower, base), {"__module__": __name__})


class BoundaryEmbedding(nn.Embedding):
    """(M, H) vectors of adaptive_tokens="boundary"; they start at zero, the frozen input embeddings being distinct."""


class PromptedTextTower:
    """Mixin over a transformers decoder (`LlamaModel` and its relatives): the prompt-wise forward pass.

    Args:
        config: the LLM's config.
        adaptive_token_ids: ids of the M adaptive tokens in the tokenizer, consecutive.
        boundary_layer: layer below which the vectors of adaptive_tokens="boundary" are added; None learns the input
            embeddings of the adaptive tokens.
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

    def __reduce__(self):
        # This class is made at run time; another process finds it by the config's, which is importable.
        return _blank_tower, (type(self.config),), self.__dict__

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BoundaryEmbedding):
            init.zeros_(module.weight)

    def _refuse_foreign_structure(self) -> None:
        parts = [name for name in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(self, name)]
        if not parts:
            layer = self.layers[0]
            names = ("input_layernorm", "self_attn.k_proj", "self_attn.v_proj", "self_attn.head_dim")
            parts = [name for name in names if not _has(layer, name)]
        if parts:
            raise ValueError(
                f"{type(self).__mro__[2].__name__} is not a decoder of a supported family (it has no {', '.join(parts)}). "
                "Use Llama, Gemma, Gemma2, Gemma3 text, Qwen2, Qwen3 or Mistral."
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

    def lower(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tree: PromptTree, stop: int) -> torch.Tensor:
        """Hidden states of text and tree that enter layer `stop`.

        Args:
            input_ids, attention_mask: (B, N) the texts, padded on either side.

        Returns:
            (B, N + T, H)
        """
        B = input_ids.shape[0]  # len() would fix the batch size of an exported graph
        nodes = torch.tensor(tree.token_ids, dtype=torch.long, device=input_ids.device)  # (T,)
        prompts = self.embed(nodes).expand(B, -1, -1)  # (B, T, H)
        hidden = torch.cat([self.embed(input_ids), prompts], dim=1)  # (B, N + T, H)
        return self._layers(hidden, attention_mask, tree, 0, stop)

    def upper(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        tree: PromptTree,
        start: int,
        readouts: torch.Tensor | None,
    ) -> torch.Tensor:
        """Layers from `start` on and the final norm.

        Args:
            hidden_states: (B, N + T, H) entering layer `start`, as `lower` returns them.
            attention_mask: (B, N) of the texts.
            readouts: (B, R) columns to read; None reads all of them.

        Returns:
            (B, R, H) or (B, N + T, H)
        """
        if self.boundary_embedding is not None and start != self.boundary_layer:
            raise ValueError(f"upper() starts at layer {start}; the boundary vectors belong before {self.boundary_layer}.")
        hidden = hidden_states
        if self.boundary_embedding is not None and len(tree):
            added = self._boundary(tree).to(hidden.dtype)  # (T, H)
            hidden = torch.cat([hidden[:, : -len(tree)], hidden[:, -len(tree) :] + added], dim=1)
        L = len(self.layers)
        if readouts is None or start == L or _kept_elsewhere(self.layers[-1], hidden):
            hidden = self._layers(hidden, attention_mask, tree, start, L)
            hidden = hidden if readouts is None else _gather(hidden, readouts)
        else:
            hidden = self._layers(hidden, attention_mask, tree, start, L - 1)
            hidden = self._readout_layer(hidden, attention_mask, tree, readouts)
        return self.norm(hidden)

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

        Arguments as in `lower` and `upper`.

        Returns:
            last_hidden_state: (B, R, H) at the readouts, (B, N + T, H) without.
            hidden_states: what enters the first layer that runs, then what each layer gives, the last one normed:
                (B, N + T, H), and (B, R, H) where the last layer runs at the readouts alone.
            attentions: (B, heads, N + T, N + T) of each layer that runs, (B, heads, R, N + T) of a last one at the readouts;
                of the implementation "eager" only, the others do not form them.
        """
        if hidden_states is None:
            hidden_states = self.lower(input_ids, attention_mask, tree, self.split_layer)
        return BaseModelOutput(last_hidden_state=self.upper(hidden_states, attention_mask, tree, self.split_layer, readouts))

    @property
    def split_layer(self) -> int:
        """Where `forward` goes from `lower` to `upper`."""
        return 0 if self.boundary_layer is None else self.boundary_layer

    def _boundary(self, tree: PromptTree) -> torch.Tensor:
        """(T, H): each adaptive token's vector for itself and what follows it in its prompt, zero in the shared stem."""
        index = torch.tensor(tree.last_adaptive(self.adaptive_token_ids), device=self.boundary_embedding.weight.device)
        return torch.where(index[:, None] >= 0, self.boundary_embedding(index.clamp(min=0)), 0.0)

    def _layers(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor, tree: PromptTree, start: int, stop: int
    ) -> torch.Tensor:
        """Run the layers [start, stop) over all columns."""
        if start >= stop:
            return hidden
        positions = prompt_position_ids(attention_mask, tree)  # (B, N + T)
        kinds = {self._kind(i) for i in range(start, stop)}
        masks = {kind: self._mask(kind, attention_mask, tree, hidden.dtype) for kind in kinds}
        rotary = {kind: self._rotary(kind, hidden, positions) for kind in kinds}
        for i in range(start, stop):
            kind = self._kind(i)
            hidden = self.layers[i](
                hidden,
                attention_mask=masks[kind],
                position_embeddings=rotary[kind],
                position_ids=positions,
                use_cache=False,
            )
        return hidden

    def _readout_layer(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor, tree: PromptTree, readouts: torch.Tensor
    ) -> torch.Tensor:
        """The last layer for the readouts alone: keys and values of all columns, everything else for R of them (ours).

        The layer itself runs on the R readouts and meets the keys and values of all columns as if they had been cached; so its
        norms, MLP, soft caps, adapters and attention implementation are its own.

        Args:
            hidden: (B, N + T, H) entering the last layer.
            readouts: (B, R) columns.

        Returns:
            (B, R, H), equal to the full layer at those columns.
        """
        layer, kind = self.layers[-1], self._kind(len(self.layers) - 1)
        attention = layer.self_attn
        positions = prompt_position_ids(attention_mask, tree)  # (B, N + T)
        cos, sin = self._rotary(kind, hidden, positions)  # (B, N + T, d) each

        normed = layer.input_layernorm(hidden)
        heads = (*hidden.shape[:2], -1, attention.head_dim)
        keys = attention.k_proj(normed).view(heads)
        if hasattr(attention, "k_norm"):
            keys = attention.k_norm(keys)
        keys = _rotate(keys.transpose(1, 2), cos, sin)  # (B, kv heads, N + T, d)
        values = attention.v_proj(normed).view(heads).transpose(1, 2)

        allowed = prompt_attention_mask(attention_mask, tree, self._window(kind))[:, 0]  # (B, N + T, N + T)
        allowed = _gather(allowed, readouts)[:, None]  # (B, 1, R, N + T)
        with _without_checkpointing(layer):
            return layer(
                _gather(hidden, readouts),
                attention_mask=mask_for_implementation(allowed, self.config._attn_implementation, hidden.dtype),
                position_embeddings=(_gather(cos, readouts), _gather(sin, readouts)),
                position_ids=positions.gather(1, readouts),
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

    def _mask(self, kind: str, attention_mask: torch.Tensor, tree: PromptTree, dtype: torch.dtype):
        allowed = prompt_attention_mask(attention_mask, tree, self._window(kind))
        return mask_for_implementation(allowed, self.config._attn_implementation, dtype)

    def _rotary(self, kind: str, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), (B, N + T, d) each; Gemma 3 has a base per attention type."""
        if "layer_type" in inspect.signature(self.rotary_emb.forward).parameters:
            return self.rotary_emb(hidden, positions, kind)
        return self.rotary_emb(hidden, positions)


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


def _blank_tower(config_class: type[PreTrainedConfig]) -> PreTrainedModel:
    tower_class = text_tower_class(config_class)
    return tower_class.__new__(tower_class)


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
