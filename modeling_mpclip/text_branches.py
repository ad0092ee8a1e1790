"""A text tower for decoders that prompt-wise masks cannot express: the text once, then the prompts from its cache (ours).

The decoder's own forward pass runs, so convolutions, recurrent states, attention chunks and inputs per layer are its own code.
Every prompt that is not the beginning of another is a branch. A text runs once, and all branches continue from copies of its
cache as one batch. Texts of equal length run together: no padding enters a state. The padding behind a branch is harmless,
because nothing is read there and a decoder never looks ahead.

Where a cache does not work, text and branch run as one sequence each: exact as well, but the text runs once per branch.
"""

import copy
import functools
from dataclasses import dataclass
from inspect import signature

import torch
import torch.distributed
from torch import nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from .prompt_tree import PromptTree
from .readout_layer import cache_argument, gather_columns
from .text_tower import PromptedTextTower


class BranchedTextTower(PromptedTextTower):
    """Mixin with the arguments and the interface of [`PromptedTextTower`], for a decoder of any kind.

    Raises:
        ValueError: adaptive_tokens="boundary", which needs the layers one by one; or text_attention="bidirectional".
    """

    path = "branches"

    def __init__(
        self,
        config: PreTrainedConfig,
        adaptive_token_ids: tuple[int, ...] = (),
        boundary_layer: int | None = None,
        text_attention: str = "causal",
    ):
        if text_attention != "causal":
            raise ValueError(
                f"text_attention={text_attention!r} and a text model of type {config.model_type!r}: its tokens are mixed by "
                "more than attention masks, and in one direction. Set text_attention='causal', or use a text model whose path "
                "is 'tree' in docs/towers.md."
            )
        if boundary_layer is not None and adaptive_token_ids:
            raise ValueError(
                f"adaptive_tokens='boundary' and a text model of type {config.model_type!r}: its layers do not run one by one, "
                "because it mixes tokens by more than attention masks. Set adaptive_tokens='input', or use a text model whose "
                "path is 'tree' in docs/towers.md."
            )
        super().__init__(config, adaptive_token_ids)

    @can_return_tuple
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
        """Run the text and its branches.

        Args:
            input_ids, attention_mask, tree, readouts: as in `PromptedTextTower.forward`.
            hidden_states, output_attentions, output_hidden_states: refused.

        Returns:
            last_hidden_state: (B, R, H) at the readouts; (B, N + T, H) without readouts, 0 at padding.

        Raises:
            ValueError: an argument is refused, or a graph is being exported.
        """
        if hidden_states is not None or output_attentions or output_hidden_states:
            self._refuse("stored or requested hidden states and attentions of single layers")
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            self._refuse("the export of a graph")
        branches = branch_tensors(tree, input_ids.device)
        run = self._whole_rows if self._cache_is_unusable() else self._continued_rows
        hidden = run(input_ids, attention_mask, branches)  # (B, N + T, H)
        return BaseModelOutput(last_hidden_state=hidden if readouts is None else gather_columns(hidden, readouts))

    def lower(self, *args, **kwargs):
        """Refused: the layers of this decoder do not run one by one."""
        self._refuse("hidden states between layers")

    upper = lower

    def _refuse(self, what: str):
        raise ValueError(
            f"A text model of type {self.config.model_type!r} cannot serve {what}: its prompts continue from the cache of the "
            "text. Use a text model whose path is 'tree' in docs/towers.md."
        )

    def _cache_is_unusable(self) -> bool:
        """Some decoders and checkpointed layers cannot use one; processes that share weights must call layers equally often."""
        if self.family.path == "rows":
            return True
        checkpointing = self.training and torch.is_grad_enabled() and self.is_gradient_checkpointing
        return checkpointing or torch.compiler.is_compiling() or _several_processes()

    def _continued_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, branches: "Branches") -> torch.Tensor:
        """Each text once, then its branches from copies of its cache: (B, N) -> (B, N + T, H)."""
        (B, N), P, T = input_ids.shape, len(branches.token_ids), len(branches.branch_of)
        hidden = torch.zeros(B, N + T, self.config.hidden_size, dtype=self.dtype, device=input_ids.device)
        lengths = attention_mask.long().sum(dim=1)  # (B,)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]  # (b,)
            cache = None
            if length:
                columns = attention_mask[rows].bool().nonzero()[:, 1].view(-1, length)  # (b, n)
                cache = self._new_cache() if P else None
                text = self._decode(input_ids[rows[:, None], columns], cache)  # (b, n, H)
                hidden = hidden.to(text.dtype).index_put((rows[:, None], columns), text)
            if P:
                if cache is not None:
                    cache.reorder_cache(torch.arange(len(rows), device=rows.device).repeat_interleave(P))
                continued = self._decode(branches.token_ids.repeat(len(rows), 1), cache).unflatten(0, (-1, P))  # (b, P, D, H)
                nodes = continued[:, branches.branch_of, branches.depth_of]  # (b, T, H)
                hidden = hidden.to(nodes.dtype).index_put((rows[:, None], N + torch.arange(T, device=rows.device)), nodes)
        return hidden

    def _new_cache(self) -> DynamicCache:
        config = self.config
        if self.family.windows == "none" and getattr(config, "sliding_window", None):
            config = copy.copy(config)  # a cache believes a window that the decoder does not read
            config.sliding_window = None
        return _Cache(config=config)

    def _whole_rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, branches: "Branches") -> torch.Tensor:
        """Each text with each branch as one row, all rows as one batch: (B, N) -> (B, N + T, H)."""
        (B, N), T, device = input_ids.shape, len(branches.branch_of), input_ids.device
        order = (attention_mask == 0).long().argsort(dim=1, stable=True)  # (B, N) the columns of the text, then of the padding
        lengths = attention_mask.long().sum(dim=1)  # (B,)
        paths = branches.token_ids if T else input_ids.new_zeros(1, 1)  # (P, D)
        behind = torch.arange(N + paths.shape[1], device=device) - lengths[:, None]  # (B, N + D) 0 where the branch begins
        text = nn.functional.pad(input_ids.gather(1, order), (0, paths.shape[1]))  # (B, N + D)
        branch = paths[:, behind.clamp(0, paths.shape[1] - 1)].transpose(0, 1)  # (B, P, N + D)
        token_ids = torch.where(behind[:, None] < 0, text[:, None], branch)  # (B, P, N + D)
        hidden = self._decode(token_ids.flatten(0, 1)).unflatten(0, (B, -1))  # (B, P, N + D, H)
        texts = gather_columns(hidden[:, 0], order.argsort(dim=1))  # (B, N, H) in the columns of input_ids
        texts = texts * attention_mask[..., None].to(texts)
        nodes = hidden[torch.arange(B, device=device)[:, None], branches.branch_of, lengths[:, None] + branches.depth_of]
        return torch.cat([texts, nodes], dim=1)  # (B, N + T, H)

    def _decode(self, token_ids: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """The decoder's own forward pass over unpadded rows: (b, n) ids -> (b, n, H)."""
        decoder = super(PromptedTextTower, self)
        embeds = self.embed(token_ids)  # (b, n, H)
        if self.family.multiplied == "its own embeddings":
            embeds = embeds * self.config.embedding_multiplier
        inputs = {"inputs_embeds": embeds, "use_cache": cache is not None, "return_dict": True}
        if getattr(self, "hidden_size_per_layer_input", 0):
            inputs["per_layer_inputs"] = self._inputs_per_layer(token_ids)
        if cache is not None:
            inputs[cache_argument(decoder.forward)] = cache
        return decoder.forward(**inputs).last_hidden_state.to(token_ids.device)

    def _inputs_per_layer(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The embeddings that enter every layer of a Gemma: (b, n, layers, width). Adaptive tokens have those of token 0."""
        first, M = (self.adaptive_token_ids or [0])[0], len(self.adaptive_token_ids)
        known = token_ids.masked_fill((token_ids >= first) & (token_ids < first + M), 0)  # (b, n)
        # transformers before 5.24 asks for an argument that it does not read.
        unused = {"inputs_embeds": None} if "inputs_embeds" in signature(self.get_per_layer_inputs).parameters else {}
        return self.get_per_layer_inputs(known, **unused)


@dataclass(frozen=True)
class Branches:
    """The branches of a prompt tree: the paths from the text to its P leaves, of D tokens at most.

    Attributes:
        token_ids: (P, D) int64, padded behind with 0; D is at least 2.
        branch_of: (T,) int64, a branch on which each node of the tree lies.
        depth_of: (T,) int64, its place on the branch.
    """

    token_ids: torch.Tensor
    branch_of: torch.Tensor
    depth_of: torch.Tensor


def branch_tensors(tree: PromptTree, device: torch.device) -> Branches:
    """The branches of a tree on a device. As in `tree_tensors`, they are made once, but anew while a graph is traced."""
    make = _branch_tensors.__wrapped__ if torch.compiler.is_compiling() else _branch_tensors
    return make(tree, device)


@functools.lru_cache(maxsize=128)
def _branch_tensors(tree: PromptTree, device: torch.device) -> Branches:
    leaves, lineage = sorted(set(range(len(tree))) - set(tree.parents)), tree.lineage
    paths = [[node for node, on_path in enumerate(lineage[leaf]) if on_path] for leaf in leaves]  # parents before children
    # Some decoders overwrite their state when a single token continues it, and the backward pass still needs it.
    longest = max([2, *map(len, paths)]) if paths else 0
    branch_of = {node: p for p, path in enumerate(paths) for node in path}
    with torch.inference_mode(False):  # tensors of inference mode could not be used in training
        rows = [[tree.token_ids[node] for node in path] + [0] * (longest - len(path)) for path in paths]
        return Branches(
            token_ids=torch.tensor(rows, dtype=torch.long, device=device).view(len(paths), longest),
            branch_of=torch.tensor([branch_of[node] for node in range(len(tree))], dtype=torch.long, device=device),
            depth_of=torch.tensor(tree.depths, dtype=torch.long, device=device),
        )


class _Cache(DynamicCache):
    """A cache that a backward pass can follow: a state is not overwritten where the pass still needs it."""

    def update_recurrent_state(self, recurrent_states: torch.Tensor, layer_idx: int, *args, **kwargs) -> torch.Tensor:
        states = self.layers[layer_idx].recurrent_states
        states.update({i: state.clone() for i, state in states.items() if state is not None})
        return super().update_recurrent_state(recurrent_states, layer_idx, *args, **kwargs)


def _several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
