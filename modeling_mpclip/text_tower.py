"""The text tower: a decoder LLM that runs once over a text and its prompt tree.

`PromptedTextTower` is a mixin for a transformers decoder such as `LlamaModel`; text_families.py has the classes. The forward
pass has a lower part, an upper part and a last layer. The hidden states of a frozen lower part can be cached. The last layer
runs at the readouts alone. In the upper part the text may attend both ways; the lower part is causal, as it was pretrained.
Decoders that prompt-wise masks cannot express have the forward pass of text_branches.py.
"""

import inspect

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import capture_outputs

from .family_table import family_of
from .prompt_attention import PromptLayout, mask_for_implementation
from .prompt_tree import PromptTree
from .readout_layer import gather_columns, run_at_columns


class BoundaryEmbedding(nn.Embedding):
    """The (M, H) vectors of adaptive_tokens="boundary". They start at 0, as the frozen input embeddings already differ."""


class PromptedTextTower:
    """Mixin that gives a transformers decoder the prompt-wise forward pass.

    Args:
        config: config of the LLM.
        adaptive_token_ids: consecutive ids of the M adaptive tokens.
        boundary_layer: index of the layer before which the vectors of adaptive_tokens="boundary" are added. None: the input
            embeddings of the adaptive tokens are learned instead.
        text_attention: "causal", or "bidirectional": from the boundary layer on, the text's tokens also attend to later ones.

    Attributes:
        family: the row of the table of families (family_table.py) for this decoder.
        path: how the prompts are computed, in the words of that table. It differs from `family.path` if another one is forced.

    Raises:
        ValueError: the decoder is of no family of the table, or its text tokens attend to later ones.
    """

    path = "tree"

    def __init__(
        self,
        config: PreTrainedConfig,
        adaptive_token_ids: tuple[int, ...] = (),
        boundary_layer: int | None = None,
        text_attention: str = "causal",
    ):
        super().__init__(config)
        self.family = family_of(config.model_type)
        if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
            raise ValueError(
                "The text model has use_bidirectional_attention=True, so its text would attend to the prompts. Give a decoder "
                "whose tokens attend only to earlier ones, such as the LLM that this encoder was made of."
            )
        if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
            # sdpa cannot cap scores. transformers before 5.23 would run Gemma 2 without the cap, and without an error.
            self.set_attn_implementation("eager")
        self.adaptive_token_ids = list(adaptive_token_ids)
        self.boundary_layer = boundary_layer
        self.text_attention = text_attention
        # The embeddings of the adaptive tokens are not part of the embedding matrix: they train while the matrix is frozen.
        # They are at the scale of the output of the matrix's module, which Gemma multiplies by a constant.
        M, H = len(self.adaptive_token_ids), config.hidden_size
        self.adaptive_embedding = nn.Embedding(M, H)
        self.adaptive_embedding.weight.requires_grad_(boundary_layer is None)
        self.boundary_embedding = None if boundary_layer is None else BoundaryEmbedding(M, H)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BoundaryEmbedding):
            init.zeros_(module.weight)

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last layer."""
        return getattr(self, self.family.norm)

    def initialize_adaptive(self, rows: torch.Tensor) -> None:
        """Set the adaptive embeddings to (M, H) rows, at the scale of the output of `get_input_embeddings()`."""
        with torch.no_grad():
            self.adaptive_embedding.weight.copy_(rows)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(...) ids -> (..., H) embeddings. Those of adaptive tokens come from `adaptive_embedding`, not from the matrix."""
        M = len(self.adaptive_token_ids)
        if not M:
            return self.get_input_embeddings()(input_ids)
        index = input_ids - self.adaptive_token_ids[0]
        adaptive = (index >= 0) & (index < M)
        embedded = self.get_input_embeddings()(input_ids.masked_fill(adaptive, 0))
        learned = self.adaptive_embedding(index.clamp(0, M - 1)).to(embedded.dtype)
        return torch.where(adaptive[..., None], learned, embedded)

    @capture_outputs  # reads return_dict and the two output flags; records attentions and hidden states by hooks on the layers
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
        """Run all layers, or only the upper ones on cached hidden states.

        Args:
            input_ids: (B, N) token ids of the texts, padded on either side. None with `hidden_states`.
            attention_mask: (B, N), 1 for text and 0 for padding.
            tree: T nodes that follow every text.
            readouts: (B, R) columns to read; None reads all columns.
            hidden_states: (B, N + T, H) that enter `split_layer`, from `lower`.

        Returns:
            last_hidden_state: (B, R, H) at the readouts; (B, N + T, H) without readouts.
            hidden_states: (B, N + T, H) each: the input of the first layer that runs, then the output of every layer. The last
                one is normalised, and (B, R, H) if the last layer runs at the readouts alone.
            attentions: (B, heads, N + T, N + T) of each layer that runs; (B, heads, R, N + T) of a last layer at the readouts
                alone. Only attn_implementation="eager" has them.
        """
        layout = PromptLayout(attention_mask, tree)
        if hidden_states is None:
            hidden_states = self.lower(input_ids, layout, self.split_layer)
        return BaseModelOutput(last_hidden_state=self.upper(hidden_states, layout, self.split_layer, readouts))

    @property
    def split_layer(self) -> int:
        """Index of the layer at which `upper` starts: the boundary layer, or 0."""
        return 0 if self.boundary_layer is None else self.boundary_layer

    def lower(self, input_ids: torch.Tensor, layout: PromptLayout, stop: int) -> torch.Tensor:
        """Run the layers below `stop` over texts and tree.

        Args:
            input_ids: (B, N) token ids of the texts.
            layout: positions and masks of the texts and the tree.
            stop: index of the first layer that does not run.

        Returns:
            (B, N + T, H) hidden states that enter layer `stop`.

        Raises:
            ValueError: `stop` is above the boundary layer, from which on the text attends both ways.
        """
        if self.text_attention == "bidirectional" and stop > self.split_layer:
            raise ValueError(
                f"lower() got stop={stop}; with text_attention='bidirectional' the hidden states of the lower, causal part end "
                f"at the boundary layer, {self.split_layer}."
            )
        B = input_ids.shape[0]  # len() would fix the batch size of an exported graph
        prompts = self.embed(layout.nodes.token_ids).expand(B, -1, -1)  # (B, T, H)
        hidden = torch.cat([self.embed(input_ids), prompts], dim=1)  # (B, N + T, H)
        if self.family.multiplied != "nothing":
            hidden = hidden * self.config.embedding_multiplier
        return self._run_layers(hidden, layout, 0, stop)

    def upper(self, hidden: torch.Tensor, layout: PromptLayout, start: int, readouts: torch.Tensor | None) -> torch.Tensor:
        """Run the layers from `start` on, and the final norm.

        Args:
            hidden: (B, N + T, H) hidden states that enter layer `start`, from `lower`.
            layout: positions and masks of the texts and the tree.
            start: index of the first layer that runs.
            readouts: (B, R) columns to read; None reads all columns.

        Returns:
            (B, R, H); (B, N + T, H) without readouts.

        Raises:
            ValueError: `start` is not the boundary layer, before which the boundary vectors are added.
        """
        if self.boundary_embedding is not None and start != self.boundary_layer:
            raise ValueError(f"upper() got start={start}; with boundary vectors it must be {self.boundary_layer}.")
        T = len(layout.tree)
        if self.boundary_embedding is not None and T and self.adaptive_token_ids:
            added = self._boundary_vectors(layout.tree, hidden.device).to(hidden)  # (T, H)
            hidden = torch.cat([hidden[:, :-T], hidden[:, -T:] + added], dim=1)
        L = len(self.layers)
        if readouts is None or start == L:
            hidden = self._run_layers(hidden, layout, start, L)
            hidden = hidden if readouts is None else gather_columns(hidden, readouts)
        else:
            hidden = self._run_layers(hidden, layout, start, L - 1)
            hidden = self._run_last_layer(hidden, layout, readouts)
        return self.final_norm(hidden)

    def _boundary_vectors(self, tree: PromptTree, device: torch.device) -> torch.Tensor:
        """(T, H): for each node the vector of the last adaptive token on its path, 0 before the first adaptive token."""
        index = torch.tensor(tree.last_adaptive(self.adaptive_token_ids), device=device)
        return torch.where(index[:, None] >= 0, self.boundary_embedding(index.clamp(min=0)), 0.0)

    def _run_layers(self, hidden: torch.Tensor, layout: PromptLayout, start: int, stop: int) -> torch.Tensor:
        """Run the layers [start, stop) over all columns: (B, N + T, H) -> (B, N + T, H)."""
        rotary = {kind: self._rotary(kind, hidden, layout) for kind in {self._kind(i) for i in range(start, stop)}}
        for i in range(start, stop):
            kind = self._kind(i)
            output = self.layers[i](
                hidden,
                attention_mask=layout.mask(
                    self._window(kind), self.config._attn_implementation, hidden.dtype, self._both_ways(i)
                ),
                position_embeddings=rotary[kind],
                position_ids=layout.positions,
                use_cache=False,
            )
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def _run_last_layer(self, hidden: torch.Tensor, layout: PromptLayout, readouts: torch.Tensor) -> torch.Tensor:
        """Run the last layer at the readouts alone: keys and values for all columns, the rest for R columns (ours).

        Args:
            hidden: (B, N + T, H) hidden states that enter the last layer.
            readouts: (B, R) columns.

        Returns:
            (B, R, H), equal to the output of the full layer at those columns.
        """
        last = len(self.layers) - 1
        kind = self._kind(last)
        allowed = layout.allowed(self._window(kind), self._both_ways(last))  # (B, 1, N + T, N + T)
        allowed = gather_columns(allowed[:, 0], readouts)[:, None]  # (B, 1, R, N + T)
        mask = mask_for_implementation(allowed, self.config._attn_implementation, hidden.dtype)
        return run_at_columns(self.layers[-1], hidden, readouts, mask, self._rotary(kind, hidden, layout), layout.positions)

    def _kind(self, i: int) -> str:
        """Attention type of layer i: "full_attention" or "sliding_attention"."""
        if self.family.windows == "layer types":
            return self.config.layer_types[i]
        windowed = self.family.windows == "every layer" and self.config.sliding_window
        return "sliding_attention" if windowed else "full_attention"

    def _window(self, kind: str) -> int | None:
        return self.config.sliding_window if kind == "sliding_attention" else None

    def _both_ways(self, i: int) -> bool:
        """Whether the text's tokens attend to later ones in layer i."""
        return self.text_attention == "bidirectional" and i >= self.split_layer

    def _rotary(self, kind: str, hidden: torch.Tensor, layout: PromptLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of the rotary positions, (B, N + T, d) each. In Gemma 3 they differ between attention types."""
        positions = layout.positions  # (B, N + T)
        sections = "mrope_section" in (getattr(self.config, "rope_parameters", None) or {})
        if sections or hasattr(self.rotary_emb, "mrope_section"):
            positions = positions.expand(3, -1, -1)  # of time, height and width, which are the same in a text
        if "layer_type" in inspect.signature(self.rotary_emb.forward).parameters:
            return self.rotary_emb(hidden, positions, kind)
        return self.rotary_emb(hidden, positions)
