"""The text side of the model: token ids or cached hidden states -> prompt embeddings.

The baseline text_pooling="attention" has no prompts. Q learned pooling queries attend to the states of the text, as those of
the image attend to its tokens; each gives D / Q dimensions of the embedding.
"""

import torch
import torch.nn.functional as F
from transformers.utils import can_return_tuple

from .image_tower import AttentionPooling
from .outputs_mpclip import MPCLIPTextOutput
from .prompt_attention import PromptLayout, tree_tensors
from .prompt_tree import PromptTree
from .segments import assembled, checked_count, checked_weights
from .tower_inputs import asked, masked_mean, refuse_foreign_ids, refuse_no_texts, refuse_other_mask, warn_of_padding


class TextSide:
    """Part of [`MPCLIPModel`]; uses its `config`, `text_model`, `text_pooling` and `text_projection`."""

    _has_looked_for_padding = False

    def _new_text_pooling(self) -> AttentionPooling | None:
        """The pooling of text_pooling="attention"; None for the other poolings."""
        config = self.config
        if config.text_pooling != "attention":
            return None
        H = config.text_config.hidden_size
        return AttentionPooling(config.num_text_vectors, H, config.pooling_width, config.pooling_heads)

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
            ValueError: adaptive_tokens="input", which learns embeddings below every layer; or the layers of the LLM do not run
                one by one (text_branches.py).
        """
        if self.text_model.path == "tree" and self.text_model.boundary_embedding is None:
            raise ValueError(
                "Hidden states can be kept only if everything below them is frozen, and adaptive_tokens='input' learns "
                "embeddings below the first layer. Use adaptive_tokens='boundary'."
            )
        input_ids, attention_mask = self._checked_texts(input_ids, attention_mask)
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
            text_hidden_states: (B, N + T, H) from `lower_text`, in place of `input_ids` and with the same `attention_mask`. A
                model that reads words (`words`) needs the `input_ids` of the texts as well.
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
        self._refuse_other_inputs(input_ids, text_hidden_states)
        m = checked_count(num_prompts, self.config.num_prompts, self.config.joint_projection)
        tree = self.prompt_tree(negated, m)
        if text_hidden_states is None:
            input_ids, attention_mask = self._checked_texts(input_ids, attention_mask)
        elif attention_mask is None or attention_mask.shape[-1] + len(tree) != text_hidden_states.shape[1]:
            raise ValueError(
                f"text_hidden_states has {text_hidden_states.shape[1]} columns, {len(tree)} of which are prompts. Give the "
                f"attention_mask of the text, with the other {text_hidden_states.shape[1] - len(tree)} columns."
            )
        else:
            refuse_other_mask(attention_mask, (text_hidden_states.shape[0], text_hidden_states.shape[1] - len(tree)))
            if input_ids is not None:
                self._refuse_no_ids(input_ids, attention_mask)
            # The cache may have a smaller dtype than the model.
            text_hidden_states = text_hidden_states.to(self.text_model.dtype)  # (B, N + T, H)
        readouts = self._readouts(attention_mask, tree)
        output = self.text_model(
            None if text_hidden_states is not None else input_ids,
            attention_mask,
            tree=tree,
            readouts=readouts,
            hidden_states=text_hidden_states,
            **asked(output_attentions, output_hidden_states),
        )
        vectors = output.last_hidden_state  # (B, R, H)
        if self.config.text_pooling == "mean":
            vectors = masked_mean(vectors, attention_mask)[:, None]  # (B, 1, H)
        if self.text_pooling is not None:
            vectors, _ = self.text_pooling(vectors, attention_mask.bool())  # (B, Q, W)
            vectors = vectors * attention_mask.bool().any(dim=1)[:, None, None]  # a text without tokens has 0, as by the mean
        read = m if self.text_pooling is None else vectors.shape[1]  # vectors that are not negated
        words = self._words(input_ids, attention_mask) if self.config.words else None
        prompt_embeds = self._segments(vectors[:, :read], words)  # (B, m, D/K)
        if aspect_weights is not None:
            weights = checked_weights(aspect_weights, self.config.num_prompts)
            prompt_embeds = assembled(prompt_embeds, weights).unflatten(1, (m, -1))
        return MPCLIPTextOutput(
            last_hidden_state=output.last_hidden_state,
            pooler_output=prompt_embeds.flatten(1),  # (B, D)
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            prompt_embeds=prompt_embeds,
            negated_prompt_embeds=self._segments(vectors[:, read:], words) if negated else None,
        )

    def _refuse_other_inputs(self, input_ids: torch.Tensor | None, text_hidden_states: torch.Tensor | None) -> None:
        """Raise a ValueError unless what the model reads is given, and nothing else."""
        if self.config.words and input_ids is None:
            raise ValueError(
                "This model also reads the words of a text (words=True), so it needs input_ids, beside text_hidden_states too."
            )
        if not self.config.words and (input_ids is None) == (text_hidden_states is None):
            raise ValueError("Give exactly one of input_ids and text_hidden_states.")

    def _words(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, N) ids -> (B, H), the mean of their input embeddings, scaled to a mean square of 1 (ours)."""
        mean = masked_mean(self.text_model.embed(input_ids).float(), attention_mask)  # (B, H)
        return F.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5  # onnxruntime's rms_norm of an empty text is NaN

    def _segments(self, vectors: torch.Tensor, words: torch.Tensor | None) -> torch.Tensor:
        """Project what is read of the prompts, (B, m, H), and the words, (B, H), to segments (B, m, D / K).

        The Q vectors of an attention pooling, (B, Q, W), become one segment (B, 1, D).
        """
        m = vectors.shape[1]
        if self.config.joint_projection:
            vectors = vectors.flatten(1)[:, None].expand(-1, m, -1)  # (B, K, K*H)
        if words is not None:
            vectors = torch.cat([vectors, words.to(vectors)[:, None].expand(-1, m, -1)], dim=-1)  # (B, m, C)
        segments = self.text_projection(vectors)  # (B, m, D / K) or (B, Q, D / Q)
        return segments if self.text_pooling is None else segments.flatten(1)[:, None]

    def _readouts(self, attention_mask: torch.Tensor, tree: PromptTree) -> torch.Tensor | None:
        """(B, R) columns whose last hidden state is read; None to read all columns."""
        B, N = attention_mask.shape
        if self.config.text_pooling in ("mean", "attention"):
            return None
        if self.config.text_pooling == "last_token":
            columns = torch.arange(N, device=attention_mask.device)
            return (attention_mask.long() * columns).argmax(dim=1, keepdim=True)  # (B, 1)
        return (N + tree_tensors(tree, attention_mask.device).readouts).expand(B, -1)  # (B, R)

    def _checked_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Refuse what is no batch of texts. Returns ids and mask, (B, N) each; without a mask every token counts."""
        self._refuse_no_ids(input_ids, attention_mask)
        if attention_mask is None:
            self._look_for_padding(input_ids)
            attention_mask = torch.ones_like(input_ids)
        if input_ids.shape[1] == 0 and self.config.text_pooling != "prompts":
            # Empty texts alone, and no prompt: a column of padding, as they have beside other texts.
            input_ids, attention_mask = (F.pad(x, (0, 1)) for x in (input_ids, attention_mask))  # (B, 1)
        return input_ids, attention_mask

    def _refuse_no_ids(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Raise a ValueError for what is no batch of texts, and for ids that the model does not have."""
        refuse_no_texts(input_ids, attention_mask)
        # An embedding matrix may be wrapped by an adapter, but has a weight. Adaptive tokens have embeddings of their own.
        rows = self.text_model.get_input_embeddings().weight.shape[0]
        refuse_foreign_ids(input_ids, max(rows - 1, *self.text_model.adaptive_token_ids, 0))

    def _look_for_padding(self, input_ids: torch.Tensor) -> None:
        """Warn if texts without a mask seem to be padded. An accelerator would wait each time, so there only once."""
        if input_ids.device.type == "cpu" or not self._has_looked_for_padding:
            self._has_looked_for_padding = True
            pad_token_id = getattr(self.config, "pad_token_id", None)
            warn_of_padding(input_ids, self.config.text_config.pad_token_id if pad_token_id is None else pad_token_id)
