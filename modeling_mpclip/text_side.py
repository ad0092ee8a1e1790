"""The text side of the model: token ids or cached hidden states -> prompt embeddings."""

import torch
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from .outputs_mpclip import MPCLIPTextOutput
from .prompt_attention import PromptLayout, tree_tensors
from .prompt_tree import PromptTree
from .segments import assembled, checked_count, checked_weights
from .tower_inputs import asked, masked_mean


class TextSide:
    """Part of [`MPCLIPModel`]; uses its `config`, `text_model` and `text_projection`."""

    def prompt_tree(self, negated: bool = False, num_prompts: int | None = None) -> PromptTree:
        """The compiled prompts; an empty tree for the text poolings without prompts.

        Args:
            negated: include the negated twins.
            num_prompts: m; only the first m prompts. None: all K.

        Raises:
            ValueError: the prompts are not compiled, or there are no negated ones.
        """
        if self.config.text_pooling != "prompts":
            return PromptTree()
        if self.config.prompt_tree is None:
            raise ValueError(
                "The prompts are not compiled: config.prompt_tree is None. Call model.config.compile_prompts(tokenizer) "
                "before the model is built, or build it with MPCLIPModel.from_pretrained_towers(...)."
            )
        return PromptTree.from_dict(self.config.prompt_tree).select(negated=negated, num_prompts=num_prompts)

    def lower_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, negated: bool = False
    ) -> torch.Tensor:
        """Run the layers below the boundary layer. The other methods take the result as `text_hidden_states`.

        Args:
            input_ids, attention_mask: (B, N). Without a mask every token counts.
            negated: also run the negated prompts.

        Returns:
            (B, N + T, H) hidden states of text and prompts that enter the boundary layer.

        Raises:
            ValueError: adaptive_tokens="input", which learns embeddings below every layer.
        """
        if self.text_model.boundary_embedding is None:
            raise ValueError(
                "Hidden states can be kept only if everything below them is frozen, and adaptive_tokens='input' learns "
                "embeddings below the first layer. Use adaptive_tokens='boundary'."
            )
        attention_mask = _mask_or_ones(attention_mask, input_ids)
        layout = PromptLayout(attention_mask, self.prompt_tree(negated))
        return self.text_model.lower(input_ids, layout, self.text_model.split_layer)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_hidden_states: torch.Tensor | None = None,
        aspect_weights: torch.Tensor | list[float] | None = None,
        negated: bool = False,
        num_prompts: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> MPCLIPTextOutput:
        """Embed texts.

        Args:
            input_ids, attention_mask: (B, N) from the tokenizer, without prompts: they are appended here. Texts may be padded
                on either side, and a text may be empty. Without a mask every token counts.
            text_hidden_states: (B, N + T, H) from `lower_text`, in place of `input_ids` and with the same `attention_mask`.
            aspect_weights: K factors w_k of the segments (paper, section 1.7). `pooler_output` and `prompt_embeds` are then
                normalised, and weighted after that. `pooler_output` equals `text_embeds` of `forward` with the same weights.
            negated: also run the negated prompts, in the same pass.
            num_prompts: m; run only the first m prompts, at lower cost. Their segments equal those of a run of all prompts.
            output_attentions, output_hidden_states: also return those of the LLM. Attentions need
                attn_implementation="eager".

        Returns:
            [`MPCLIPTextOutput`], or its tuple with return_dict=False.

        Raises:
            ValueError: an argument has a wrong shape or value, or contradicts another one.
        """
        if (input_ids is None) == (text_hidden_states is None):
            raise ValueError("Give exactly one of input_ids and text_hidden_states.")
        m = checked_count(num_prompts, self.config.num_prompts)
        tree = self.prompt_tree(negated, m)
        if text_hidden_states is None:
            attention_mask = _mask_or_ones(attention_mask, input_ids)
            _check_ids(input_ids, self.text_model)
        elif attention_mask is None or attention_mask.shape[1] + len(tree) != text_hidden_states.shape[1]:
            raise ValueError(
                f"text_hidden_states has {text_hidden_states.shape[1]} columns, {len(tree)} of which are prompts. Give the "
                f"attention_mask of the text, with the other {text_hidden_states.shape[1] - len(tree)} columns."
            )
        else:
            # The cache may have a smaller dtype than the model.
            text_hidden_states = text_hidden_states.to(self.text_model.dtype)  # (B, N + T, H)
        readouts = self._readouts(attention_mask, tree)
        output = self.text_model(
            input_ids,
            attention_mask,
            tree=tree,
            readouts=readouts,
            hidden_states=text_hidden_states,
            **asked(output_attentions, output_hidden_states),
        )
        vectors = output.last_hidden_state  # (B, R, H)
        if self.config.text_pooling == "mean":
            vectors = masked_mean(vectors, attention_mask)[:, None]  # (B, 1, H)
        prompt_embeds = self.text_projection(vectors[:, :m])  # (B, m, D/K)
        if aspect_weights is not None:
            weights = checked_weights(aspect_weights, self.config.num_prompts)
            prompt_embeds = assembled(prompt_embeds, weights).unflatten(1, (m, -1))
        return MPCLIPTextOutput(
            last_hidden_state=output.last_hidden_state,
            pooler_output=prompt_embeds.flatten(1),  # (B, D)
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            prompt_embeds=prompt_embeds,
            negated_prompt_embeds=self.text_projection(vectors[:, m:]) if negated else None,
        )

    def _readouts(self, attention_mask: torch.Tensor, tree: PromptTree) -> torch.Tensor | None:
        """(B, R) columns whose last hidden state is read; None to read all columns."""
        B, N = attention_mask.shape
        if self.config.text_pooling == "mean":
            return None
        if self.config.text_pooling == "last_token":
            columns = torch.arange(N, device=attention_mask.device)
            return (attention_mask.long() * columns).argmax(dim=1, keepdim=True)  # (B, 1)
        return (N + tree_tensors(tree, attention_mask.device).readouts).expand(B, -1)  # (B, R)


def _mask_or_ones(attention_mask: torch.Tensor | None, input_ids: torch.Tensor) -> torch.Tensor:
    """The attention mask (B, N); without one, ones for all tokens."""
    return torch.ones_like(input_ids) if attention_mask is None else attention_mask


def _check_ids(input_ids: torch.Tensor, text_model: PreTrainedModel) -> None:
    """Refuse token ids that have no embedding. Only on the CPU: on an accelerator the check would force a synchronisation."""
    if input_ids.device.type != "cpu" or input_ids.numel() == 0 or torch.compiler.is_compiling():
        return
    highest = max(text_model.embed_tokens.num_embeddings - 1, *text_model.adaptive_token_ids, 0)
    if input_ids.max() > highest or input_ids.min() < 0:
        raise ValueError(
            f"input_ids range from {int(input_ids.min())} to {int(input_ids.max())}, but the ids of this model are 0 to "
            f"{highest}. Tokenize with the tokenizer that was saved with the model."
        )
