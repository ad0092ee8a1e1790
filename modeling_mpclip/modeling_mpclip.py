"""MPCLIPModel: a prompted LLM and a vision encoder, whose embeddings are compared segment by segment.

Paper: "Context-Adaptive Multi-Prompt Embedding with Large Language Models for Vision-Language Alignment" (arXiv 2508.02762).
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .checkpoint_guard import naming_damaged_files, no_larger_than_files, refuse_faulty, refuse_strange_files
from .configuration_mpclip import MPCLIPConfig
from .contrastive_losses import draw_first_prompts, total_loss
from .hub_card import card_in, put_card
from .image_side import ImageSide
from .image_tower import AttentionPooling, SegmentProjection
from .logit_scale import LogitScale
from .outputs_mpclip import MPCLIPOutput
from .part_dtypes import kept_in_fp32, note_part_dtypes, restore_part_dtypes
from .pretrained_towers import adaptive_rows, load_towers, tower_arguments
from .segments import assembled, checked_weights
from .shipped_code import saved_as_shipped, shipped_class
from .source_names import refuse_missing_folder
from .text_families import text_tower_class
from .text_side import TextSide
from .tower_inputs import asked
from .unused_weights import freeze_unused_weights


class MPCLIPModel(TextSide, ImageSide, PreTrainedModel):
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
    # Tools that spread a model over devices leave these whole, and the layers of both towers, which the towers name.
    _no_split_modules = ["AttentionPooling", "SegmentProjection", "LogitScale"]

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
        self.text_pooling = self._new_text_pooling()
        self.text_projection = SegmentProjection(
            config.num_text_vectors,
            config.text_width,
            config.projection_dim,
            config.shared_projection,
        )
        self.logit_scale = LogitScale(has_bias=config.loss == "sigmoid")
        self.vision_model = self.image_pooling = self.image_projection = None
        if not config.text_only:
            self._add_image_side(vision_model)
        self._keep_in_fp32_modules_strict = [*self._keep_in_fp32_modules_strict, *kept_in_fp32(config)]
        self.post_init()
        self.freeze_unused()

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
            kwargs: as for the base class. By default (dtype="auto") every part has the dtype that it was saved in.

        Returns:
            The model; with `output_loading_info`, the model and a dict.

        Raises:
            ValueError: weights are missing, unexpected, of another shape or not finite; the message names them. Or the config
                asks for a model that is far larger than the weights in the files.
            OSError: a file of the checkpoint is missing, damaged or far too large, or an index names files elsewhere; the
                message names it.
        """
        source = pretrained_model_name_or_path
        if source is not None:
            refuse_missing_folder(source)
        where = {name: kwargs[name] for name in ("cache_dir", "revision", "subfolder", "token") if name in kwargs}
        # For an adapter AutoModel passes the base model as source, and the adapter here.
        adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
        refuse_strange_files(source, adapter, **where)
        if source is not None:
            kwargs.setdefault("use_safetensors", True)  # no other format is saved, and others may run code when they are read
        with naming_damaged_files(source, adapter, **where), no_larger_than_files(source, **where):
            # transformers would refuse weights of another shape without naming them.
            kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
            model, info = super().from_pretrained(source, *model_args, **kwargs)
        refuse_faulty(source, model, [info, *model.__dict__.pop("_loading_infos", [])], ignore_mismatched_sizes)
        model.freeze_unused()  # weights from a file are new parameters
        restore_part_dtypes(model, kwargs.get("dtype", kwargs.get("torch_dtype")))
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
            text: Hub id or folder of a decoder LLM, or the name of a packaged one ("smollm2-135m").
            vision: Hub id or folder of a vision encoder, or of a dual encoder that contains one (CLIP, SigLIP), or the name of
                a packaged one.
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

    def freeze_unused(self) -> None:
        """Freeze the weights that no embedding depends on, so that every weight that is trained gets a gradient.

        Call it again after setting `requires_grad` of a whole tower or adding adapters.
        """
        freeze_unused_weights(self)

    def requires_grad_(self, requires_grad: bool = True) -> "MPCLIPModel":
        """Set `requires_grad` of all weights but those that cannot be trained (`freeze_unused`)."""
        super().requires_grad_(requires_grad)
        self.freeze_unused()
        return self

    def train(self, mode: bool = True) -> "MPCLIPModel":
        """Set the training mode as `nn.Module.train` does, but keep frozen towers and all batch norms in evaluation mode.

        With the statistics of a batch, the embedding of an image would depend on the other images in it. A gradient cache or
        several processes would then not give the result of one large batch.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eval()
        for tower in (self.text_model, self.vision_model):
            if tower is not None and not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save as the base class does, and enter all of `AUTO_CLASSES` in the config; the base class enters only one."""
        if getattr(self.config, "quantization_config", None) is not None:
            kwargs.setdefault("save_original_format", False)  # transformers cannot undo the loading of torchao weights
        shipped = shipped_class(type(self))
        reference = f"{shipped.__module__.rpartition('.')[2]}.{shipped.__name__}"
        self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | dict.fromkeys(self.AUTO_CLASSES, reference)
        note_part_dtypes(self)
        self._card_in_folder = card_in(save_directory)
        with saved_as_shipped(self):
            super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id: str, *args, **kwargs):
        # A private method of transformers, through which every push passes: from `push_to_hub` and from `save_pretrained`.
        put_card(working_dir, self._card_in_folder, repo_id, self.config)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding matrix of the LLM."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding matrix of the LLM."""
        self.text_model.set_input_embeddings(value)

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
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> MPCLIPOutput:
        """Embed texts, images or videos. With texts and images (or videos), also compare them.

        `get_text_features`, `get_image_features` and `get_video_features` describe the other arguments.

        Args:
            vision_hidden_states: (B, N, C) tokens of images, or (B, T, N, C) of the frames of videos.
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
        of_frames = vision_hidden_states is not None and vision_hidden_states.dim() == 4
        has_video = pixel_values_videos is not None or of_frames
        has_image = pixel_values is not None or (vision_hidden_states is not None and not of_frames)
        if has_image and has_video:
            raise ValueError("Give images or videos, not both.")
        has_vision = has_image or has_video
        if not has_text and not has_vision:
            raise ValueError("Nothing to embed: give input_ids, pixel_values or pixel_values_videos.")
        if return_loss and not (has_text and has_vision):
            raise ValueError("return_loss=True needs texts and images (or videos): one of each per pair.")
        if negated is None:
            negated = bool(return_loss and self.config.negation_weight)

        output = MPCLIPOutput()
        flags = asked(output_attentions, output_hidden_states)
        if has_text:
            text = self.get_text_features(input_ids, attention_mask, text_hidden_states, negated=negated, **flags)
            output.text_model_output, output.text_prompt_embeds = text, text.prompt_embeds
            weights = None if aspect_weights is None else checked_weights(aspect_weights, self.config.num_prompts)
            output.text_embeds = assembled(text.prompt_embeds, weights)  # (B, D)
            if negated:
                output.negated_prompt_embeds = text.negated_prompt_embeds
                output.negated_text_embeds = assembled(text.negated_prompt_embeds)  # (B, D)
        if has_vision:
            patches = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
            vision = (
                self.get_image_features(pixel_values, vision_hidden_states, **patches, **flags)
                if has_image
                else self.get_video_features(
                    pixel_values_videos, frame_mask, vision_hidden_states=vision_hidden_states, **flags
                )
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


MPCLIPModel.register_for_auto_class("AutoModel")  # so that `save_pretrained` writes the code beside the weights
