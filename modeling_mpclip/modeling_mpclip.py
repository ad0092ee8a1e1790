"""MPCLIPModel: a prompted LLM and a vision encoder, whose embeddings are compared segment by segment.

Paper: "Context-Adaptive Multi-Prompt Embedding with Large Language Models for Vision-Language Alignment" (arXiv 2508.02762).
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from .checkpoint_guard import naming_damaged_files, refuse_faulty
from .configuration_mpclip import MPCLIPConfig
from .contrastive_losses import draw_first_prompts, total_loss
from .hub_card import card_in, put_card
from .image_tower import (
    AttentionPooling,
    SegmentProjection,
    build_vision_model,
    has_class_token,
    vision_tokens,
)
from .outputs_mpclip import MPCLIPImageOutput, MPCLIPOutput, MPCLIPTextOutput
from .pretrained_towers import adaptive_rows, load_towers, tower_arguments
from .prompt_attention import PromptLayout, tree_tensors
from .prompt_tree import PromptTree
from .segments import assembled, checked_count, checked_weights
from .text_families import text_tower_class


class LogitScale(nn.Module):
    """Similarity -> logit: exp(log_scale) * similarity + bias. It is a module so that adapters can train and save it.

    Args:
        has_bias: whether there is a learned bias, as for the sigmoid loss.
    """

    MAX_SCALE = 100.0  # CLIP's bound

    def __init__(self, has_bias: bool):
        super().__init__()
        # float32 whatever the model's dtype: bfloat16 would round the small steps of the scale away.
        self.log_scale = nn.Parameter(torch.empty((), dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty((), dtype=torch.float32)) if has_bias else None

    def forward(self, similarity: torch.Tensor) -> torch.Tensor:
        """Similarities of any shape -> float32 logits of the same shape."""
        logits = similarity.float() * self.log_scale.float().exp().clamp(max=self.MAX_SCALE)
        return logits if self.bias is None else logits + self.bias.float()


class MPCLIPModel(PreTrainedModel):
    """The dual encoder. `from_pretrained_towers` builds one from a pretrained LLM and a pretrained vision encoder.

    Args:
        config: [`MPCLIPConfig`].
        text_model, vision_model: existing towers. By default they are built from the config, with random weights.

    Raises:
        ValueError: the towers do not fit the config.
    """

    config_class = MPCLIPConfig
    base_model_prefix = "mpclip"
    main_input_name = "input_ids"
    input_modalities = ("text", "image", "video")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The pipeline "zero-shot-image-classification" loads a model by the second.
    AUTO_CLASSES = ("AutoModel", "AutoModelForZeroShotImageClassification")
    _keep_in_fp32_modules_strict = ["logit_scale"]

    def __init__(
        self,
        config: MPCLIPConfig,
        text_model: PreTrainedModel | None = None,
        vision_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        if text_model is None:
            text_model = text_tower_class(type(config.text_config))(config.text_config, **tower_arguments(config))
        self.text_model = text_model
        self.text_projection = SegmentProjection(
            config.num_prompts, config.text_config.hidden_size, config.projection_dim, config.shared_projection
        )
        self.logit_scale = LogitScale(has_bias=config.loss == "sigmoid")
        self.vision_model = self.image_pooling = self.image_projection = None
        if not config.text_only:
            self._add_image_side(vision_model)
        self.post_init()

    def _add_image_side(self, vision_model: PreTrainedModel | None) -> None:
        """Set vision encoder, pooling and projection."""
        config = self.config
        self.vision_model = vision_model if vision_model is not None else build_vision_model(config.vision_config)
        if config.image_pooling == "cls" and not has_class_token(self.vision_model):
            raise ValueError(
                f"image_pooling='cls' needs a class token, and {type(self.vision_model).__name__} has none. "
                "Use 'attention', 'attention_per_prompt' or 'mean'."
            )
        queries, D, C = config.num_pooling_queries, config.projection_dim, self.image_token_dim
        attends = config.image_pooling.startswith("attention")
        width = config.pooling_width if attends else C
        self.image_pooling = AttentionPooling(queries, C, width, config.pooling_heads) if attends else None
        self.image_projection = SegmentProjection(queries, width, D)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LogitScale):
            init.constant_(module.log_scale, self.config.logit_scale_init_value)
            if module.bias is not None:
                init.constant_(module.bias, self.config.logit_bias_init_value)
        elif isinstance(module, SegmentProjection):
            init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
        elif isinstance(module, AttentionPooling):
            init.normal_(module.queries, std=1.0)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | None,
        *model_args,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs,
    ) -> "MPCLIPModel":
        """Load a checkpoint as `PreTrainedModel.from_pretrained` does, but refuse faulty weights instead of replacing them.

        Args:
            ignore_mismatched_sizes: initialise weights of another shape at random instead of refusing them.
            output_loading_info: also return the loading info of transformers.

        Returns:
            The model; with `output_loading_info`, the model and a dict.

        Raises:
            ValueError: weights are missing, unexpected, of another shape or not finite; the message names them.
            OSError: a file of the checkpoint is missing or damaged; the message names it.
        """
        source = pretrained_model_name_or_path
        where = {name: kwargs[name] for name in ("cache_dir", "revision", "subfolder", "token") if name in kwargs}
        # For an adapter AutoModel passes the base model as source, and the adapter here.
        adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
        with naming_damaged_files(source, adapter, **where):
            # transformers would refuse weights of another shape without naming them.
            kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
            model, info = super().from_pretrained(source, *model_args, **kwargs)
        refuse_faulty(source, model, [info, *model.__dict__.pop("_loading_infos", [])], ignore_mismatched_sizes)
        return (model, info) if output_loading_info else model

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        # A private method of transformers. When an adapter is loaded, `from_pretrained` reports only the adapter's weights.
        # This method is also called for the base model.
        super()._adjust_missing_and_unexpected_keys(loading_info)
        self._loading_infos = [*getattr(self, "_loading_infos", []), loading_info.to_dict()]

    @classmethod
    def from_pretrained_towers(
        cls,
        text: str,
        vision: str,
        tokenizer=None,
        adaptive_init: list[str] | None = None,
        text_kwargs: dict | None = None,
        vision_kwargs: dict | None = None,
        text_config: PreTrainedConfig | None = None,
        **config_kwargs,
    ) -> "MPCLIPModel":
        """Build a model from two pretrained towers. Projections, pooling and adaptive tokens are newly initialised.

        Args:
            text: Hub id or folder of a decoder LLM.
            vision: Hub id or folder of a vision encoder, or of a dual encoder that contains one (CLIP, SigLIP).
            tokenizer: of the LLM; compiles the prompts and receives the [APT-i] tokens. By default loaded from `text`;
                `MPCLIPProcessor.from_pretrained_towers` then makes an equal one.
            adaptive_init: M or more words or phrases. [APT-i] starts as the mean embedding of the i-th one. By default the
                adaptive tokens are drawn from the distribution of the embedding matrix. Both ways make them distinct.
            text_kwargs, vision_kwargs: for the `from_pretrained` of each tower (dtype, attn_implementation, device_map, ...).
            text_config: config of a decoder with random weights, for the baseline whose text tower is trained from scratch.
                Only the tokenizer is then loaded from `text`.
            config_kwargs: options of [`MPCLIPConfig`].

        Raises:
            ValueError: options contradict each other, or the weights of a tower are missing or not finite.
            OSError: a tower is not found.
        """
        towers = load_towers(text, vision, tokenizer, text_kwargs, vision_kwargs, text_config, config_kwargs)
        model = cls(towers.config, towers.text_model, towers.vision_model)
        model.text_model.initialize_adaptive(adaptive_rows(model.text_model, towers.tokenizer, adaptive_init))
        return model

    def train(self, mode: bool = True) -> "MPCLIPModel":
        """Set the training mode as `nn.Module.train` does, but keep frozen towers and all batch norms in evaluation mode.

        With the statistics of a batch, the embedding of an image would depend on the other images in it. A gradient cache or
        several processes would then not give the result of one large batch.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for tower in (self.text_model, self.vision_model):
            if tower is not None and not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save as the base class does, and enter all of `AUTO_CLASSES` in the config; the base class enters only one."""
        if getattr(self.config, "quantization_config", None) is not None:
            kwargs.setdefault("save_original_format", False)  # transformers cannot undo the loading of torchao weights
        reference = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | dict.fromkeys(self.AUTO_CLASSES, reference)
        self._card_in_folder = card_in(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id: str, *args, **kwargs):
        # A private method of transformers, through which every push passes: from `push_to_hub` and from `save_pretrained`.
        put_card(working_dir, self._card_in_folder, repo_id, self.config)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @property
    def image_token_dim(self) -> int:
        """C, the number of channels of a vision token; `hidden_dim` in the config of EfficientNet."""
        vision_config = self.config.vision_config
        return getattr(vision_config, "hidden_size", None) or vision_config.hidden_dim

    def get_input_embeddings(self) -> nn.Module:
        """The embedding matrix of the LLM."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding matrix of the LLM."""
        self.text_model.set_input_embeddings(value)

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
            text_hidden_states = text_hidden_states.to(self.text_projection.weight.dtype)  # (B, N + T, H)
        readouts = self._readouts(attention_mask, tree)
        output = self.text_model(
            input_ids,
            attention_mask,
            tree=tree,
            readouts=readouts,
            hidden_states=text_hidden_states,
            **_asked(output_attentions, output_hidden_states),
        )
        vectors = output.last_hidden_state  # (B, R, H)
        if self.config.text_pooling == "mean":
            vectors = _masked_mean(vectors, attention_mask)[:, None]  # (B, 1, H)

        vectors = vectors.to(self.text_projection.weight)  # the LLM may have another dtype or device
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

    def vision_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) pixels -> (B, N, C) vision tokens. The other methods take them as `vision_hidden_states`."""
        return self._encode_images(pixel_values).last_hidden_state

    def _encode_images(
        self,
        pixel_values: torch.Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> BaseModelOutput:
        """Run the vision encoder on (B, C, H, W) pixels; `last_hidden_state` is the (B, N, C) tokens."""
        self._refuse_images_if_text_only()
        output = self.vision_model(
            pixel_values=pixel_values.to(self.vision_model.dtype), **_asked(output_attentions, output_hidden_states)
        )
        return BaseModelOutput(
            last_hidden_state=vision_tokens(output.last_hidden_state),
            hidden_states=output.hidden_states,
            attentions=getattr(output, "attentions", None),  # the output of a CNN has no such field
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> MPCLIPImageOutput:
        """Embed images.

        Args:
            pixel_values: (B, C, H, W).
            vision_hidden_states: (B, N, C) from `vision_tokens`, in place of the pixels.
            output_attentions, output_hidden_states: also return those of the vision encoder, if it runs.

        Returns:
            [`MPCLIPImageOutput`], or its tuple with return_dict=False.

        Raises:
            ValueError: none or both of pixels and tokens are given, or the model is text-only.
        """
        if (pixel_values is None) == (vision_hidden_states is None):
            raise ValueError("Give exactly one of pixel_values and vision_hidden_states.")
        if vision_hidden_states is not None:
            return self._pool_image(BaseModelOutput(vision_hidden_states))
        return self._pool_image(self._encode_images(pixel_values, output_attentions, output_hidden_states))

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> MPCLIPImageOutput:
        """Embed videos by pooling the vision tokens of all frames (paper, section 1.4).

        Args:
            pixel_values_videos: (B, T, C, H, W).
            frame_mask: (B, T), 0 for padding frames. Without it every frame counts.
            output_attentions, output_hidden_states: also return those of the vision encoder, for the B * T frames.

        Returns:
            [`MPCLIPImageOutput`], or its tuple with return_dict=False.

        Raises:
            ValueError: an argument has another shape, a video has no frame, or the model is text-only.
        """
        if pixel_values_videos.dim() != 5:
            raise ValueError(f"pixel_values_videos has the shape {tuple(pixel_values_videos.shape)}; expected (B, T, C, H, W).")
        B, T = pixel_values_videos.shape[:2]
        encoded = self._encode_images(pixel_values_videos.flatten(0, 1), output_attentions, output_hidden_states)
        N = encoded.last_hidden_state.shape[1]  # last_hidden_state is (B*T, N, C)
        mask = None
        if frame_mask is not None:
            if frame_mask.shape != (B, T) or not frame_mask.bool().any(dim=1).all():
                raise ValueError(
                    f"frame_mask has the shape {tuple(frame_mask.shape)}; expected {(B, T)} with a frame in every video. "
                    "Leave out videos without frames."
                )
            mask = frame_mask.bool().repeat_interleave(N, dim=1)  # (B, T*N)
        encoded.last_hidden_state = encoded.last_hidden_state.reshape(B, T * N, -1)  # (B, T*N, C)
        return self._pool_image(encoded, mask, frames=T)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        text_hidden_states: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        aspect_weights: torch.Tensor | list[float] | None = None,
        negated: bool | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> MPCLIPOutput:
        """Embed texts, images or videos. With texts and images (or videos), also compare them.

        `get_text_features`, `get_image_features` and `get_video_features` describe the other arguments.

        Args:
            negated: also run the negated prompts. Default: only if the loss uses them.
            return_loss: also compute the loss that the config selects; text b belongs to image b.
            output_attentions, output_hidden_states: also return those of both towers, in `text_model_output` and
                `vision_model_output`.

        Returns:
            [`MPCLIPOutput`], or its tuple with return_dict=False.

        Raises:
            ValueError: nothing to embed, images and videos together, or a loss without one of the two sides.
        """
        has_text = input_ids is not None or text_hidden_states is not None
        has_image = pixel_values is not None or vision_hidden_states is not None
        if has_image and pixel_values_videos is not None:
            raise ValueError("Give images or videos, not both.")
        has_vision = has_image or pixel_values_videos is not None
        if not has_text and not has_vision:
            raise ValueError("Nothing to embed: give input_ids, pixel_values or pixel_values_videos.")
        if return_loss and not (has_text and has_vision):
            raise ValueError("return_loss=True needs texts and images (or videos): one of each per pair.")
        if negated is None:
            negated = bool(return_loss and self.config.negation_weight)

        output = MPCLIPOutput()
        asked = _asked(output_attentions, output_hidden_states)
        if has_text:
            text = self.get_text_features(input_ids, attention_mask, text_hidden_states, negated=negated, **asked)
            output.text_model_output, output.text_prompt_embeds = text, text.prompt_embeds
            weights = None if aspect_weights is None else checked_weights(aspect_weights, self.config.num_prompts)
            output.text_embeds = assembled(text.prompt_embeds, weights)  # (B, D)
            if negated:
                output.negated_prompt_embeds = text.negated_prompt_embeds
                output.negated_text_embeds = assembled(text.negated_prompt_embeds)  # (B, D)
        if has_vision:
            vision = (
                self.get_image_features(pixel_values, vision_hidden_states, **asked)
                if has_image
                else self.get_video_features(pixel_values_videos, frame_mask, **asked)
            )
            output.vision_model_output, output.image_prompt_embeds = vision, vision.prompt_embeds
            output.image_embeds = assembled(vision.prompt_embeds)  # (B, D)
        if has_text and has_vision:
            output.logits_per_image = self.logit_scale(output.image_embeds @ output.text_embeds.T)  # (B_i, B_t)
            output.logits_per_text = output.logits_per_image.T  # (B_t, B_i)
        losses = {}
        if return_loss:
            losses = total_loss(output, self.config, self.logit_scale, draw_first_prompts(self.config, self.training))
        # A new output has its fields in the declared order. Callers that take the first field get the loss or the embeddings.
        return MPCLIPOutput(**output, **losses)

    def _readouts(self, attention_mask: torch.Tensor, tree: PromptTree) -> torch.Tensor | None:
        """(B, R) columns whose last hidden state is read; None to read all columns."""
        B, N = attention_mask.shape
        if self.config.text_pooling == "mean":
            return None
        if self.config.text_pooling == "last_token":
            columns = torch.arange(N, device=attention_mask.device)
            return (attention_mask.long() * columns).argmax(dim=1, keepdim=True)  # (B, 1)
        return (N + tree_tensors(tree, attention_mask.device).readouts).expand(B, -1)  # (B, R)

    def _pool_image(self, encoded: BaseModelOutput, mask: torch.Tensor | None = None, frames: int = 1) -> MPCLIPImageOutput:
        """Pool and project (B, N, C) tokens of `frames` frames; `mask` (B, N) is False for tokens of padding frames."""
        self._refuse_images_if_text_only()
        tokens = encoded.last_hidden_state.to(self.image_projection.weight)  # they may have another dtype
        attentions = None
        if self.image_pooling is not None:
            vectors, attentions = self.image_pooling(tokens, mask)  # (B, Q, W), (B, Q, heads, N)
        elif self.config.image_pooling == "cls":
            first = tokens.unflatten(1, (frames, -1))[:, :, 0]  # (B, frames, C)
            frame_mask = mask.unflatten(1, (frames, -1))[:, :, 0] if mask is not None else torch.ones_like(first[..., 0])
            vectors = _masked_mean(first, frame_mask)[:, None]  # (B, 1, C)
        else:
            vectors = _masked_mean(tokens, mask if mask is not None else torch.ones_like(tokens[..., 0]))[:, None]  # (B, 1, C)
        embeds = self.image_projection(vectors).flatten(1)  # (B, D)
        return MPCLIPImageOutput(
            last_hidden_state=tokens,
            pooler_output=embeds,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            prompt_embeds=embeds.unflatten(1, (self.config.num_prompts, -1)),  # (B, K, D/K)
            pooling_attentions=attentions,
        )

    def _refuse_images_if_text_only(self) -> None:
        """Raise a ValueError if the model has no image side."""
        if self.config.text_only:
            raise ValueError("This text-only checkpoint has no image side. Use the checkpoint that it was exported from.")


def _asked(output_attentions: bool | None, output_hidden_states: bool | list[int] | None) -> dict:
    """Keyword arguments for a tower: what it shall return. None is left out, so that the tower's config decides."""
    asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
    return {"return_dict": True} | {name: value for name, value in asked.items() if value is not None}


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


def _masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, L, C), mask (B, L) -> (B, C): the mean over columns with a nonzero mask; 0 if a row has none."""
    weights = mask.to(x.dtype)[..., None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


MPCLIPModel.register_for_auto_class("AutoModel")  # so that `save_pretrained` writes the code beside the weights
