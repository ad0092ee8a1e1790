"""MPCLIPConfig: the two towers and the choices of `ModelOptions`, refused together where they do not fit."""

from dataclasses import fields

import transformers

from .checkpoint_guard import refuse_old_versions
from .model_options import ModelOptions, list_of_options, refuse_unknown_choices
from .prompt_tree import (
    PromptTree,
    adaptive_token_names,
    add_adaptive_tokens,
    compile_prompt_tree,
    default_templates,
)
from .sentence_files import save_sentence_files

# Here every way to load a model passes first; older versions have no PreTrainedConfig to import.
refuse_old_versions()


class MPCLIPConfig(transformers.PreTrainedConfig):
    __doc__ = f"""Configuration of an [`MPCLIPModel`].

    Args:
        text_config: a decoder LLM's config (Llama, Gemma, Gemma2, Gemma3 text, Qwen2, Qwen3, Mistral) or its dict.
        vision_config: a vision encoder's config (ViT, SigLIP, CLIP, DINOv2, EfficientNet) or its dict.
        text_only: the model has no image side; `vision_config` is None.
        prompt_tree: the compiled templates as `PromptTree.to_dict()`; `compile_prompts` fills it.
        adaptive_token_ids: token ids of [APT-1..M]; filled with the tree.
{list_of_options(ModelOptions)}

    Raises:
        ValueError: a value or a pair of values that cannot work; the message says which and what to set.
    """

    model_type = "mpclip"
    sub_configs = {"text_config": transformers.AutoConfig, "vision_config": transformers.AutoConfig}

    def __init__(
        self,
        text_config: transformers.PreTrainedConfig | dict | None = None,
        vision_config: transformers.PreTrainedConfig | dict | None = None,
        text_only: bool = False,
        prompt_tree: dict | None = None,
        adaptive_token_ids: list[int] | None = None,
        **kwargs,
    ):
        self.text_config = _sub_config(text_config, "llama", "text_config")
        if text_only and vision_config is not None:
            raise ValueError("A model with text_only=True has no image side; leave vision_config out.")
        self.vision_config = None if text_only else _sub_config(vision_config, "vit", "vision_config")
        self.text_only = text_only
        self.prompt_tree = prompt_tree
        self.adaptive_token_ids = adaptive_token_ids or []
        for option in fields(ModelOptions):
            setattr(self, option.name, kwargs.pop(option.name, option.default))
        refuse_unknown_choices(self, ModelOptions)
        self._fill_in_defaults()
        self._refuse_illegal()
        super().__init__(**kwargs)

    def _fill_in_defaults(self) -> None:
        """Options of None whose default depends on other options."""
        own_templates = self.templates is not None
        prompted = self.text_pooling == "prompts"
        if self.templates is None:
            self.templates = default_templates(self.num_prompts) if prompted else []
        if self.negated_templates is None:
            # The default negation is no twin of templates of your own.
            twins = prompted and not own_templates
            self.negated_templates = default_templates(self.num_prompts, negated=True) if twins else []
        if self.adaptive_tokens == "boundary" and self.boundary_layer is None:
            self.boundary_layer = self.text_config.num_hidden_layers - 1
        if self.logit_scale_init_value is None:
            self.logit_scale_init_value = 2.302585 if self.loss == "sigmoid" else 2.659260

    def _refuse_illegal(self) -> None:
        K, D = self.num_prompts, self.projection_dim
        if K < 1:
            raise ValueError(f"num_prompts={K}; a model has at least one prompt.")
        if D % K:
            raise ValueError(
                f"projection_dim={D} is not a multiple of num_prompts={K}: every prompt gives the same number of dimensions. "
                f"Use projection_dim={max(1, round(D / K)) * K}."
            )
        if self.text_pooling != "prompts" and (K != 1 or self.templates):
            raise ValueError(
                f"text_pooling={self.text_pooling!r} reads the text itself and has no prompts; "
                "set num_prompts=1 and leave templates out, or use text_pooling='prompts'."
            )
        if self.text_pooling == "prompts" and len(self.templates) != K:
            raise ValueError(f"Got {len(self.templates)} templates for num_prompts={K}; give one template per prompt.")
        if self.negated_templates and len(self.negated_templates) != K:
            raise ValueError(
                f"Got {len(self.negated_templates)} negated templates for num_prompts={K}; give one per prompt, or []."
            )
        for weight in ("diversity_weight", "negation_weight"):
            if getattr(self, weight) < 0:
                raise ValueError(f"{weight}={getattr(self, weight)} is negative; use 0 to switch the loss off.")
        if self.negation_weight and not self.negated_templates:
            raise ValueError(
                f"negation_weight={self.negation_weight} needs negated prompts, and negated_templates is empty. "
                "Give one negated template per prompt, or set negation_weight=0."
            )
        if self.diversity_weight and K == 1:
            raise ValueError("diversity_weight compares prompts and there is one; set it to 0 or num_prompts above 1.")
        if self.elastic_prompts and K == 1:
            raise ValueError("elastic_prompts drops some of the prompts and there is one; set it to False.")
        layers = self.text_config.num_hidden_layers
        if self.adaptive_tokens == "boundary" and not 0 <= self.boundary_layer <= layers:
            raise ValueError(f"boundary_layer={self.boundary_layer} is outside 0..{layers}, the text model's layers.")
        if self.adaptive_tokens == "input" and self.boundary_layer is not None:
            raise ValueError(
                "boundary_layer belongs to adaptive_tokens='boundary'; with 'input' the adaptive tokens are learned below "
                "all layers. Leave it out, or set adaptive_tokens='boundary'."
            )
        if self.num_pooling_queries < 1 or D % self.num_pooling_queries:
            raise ValueError(
                f"pooling_queries={self.pooling_queries} does not divide projection_dim={D}; every query gives as many of them."
            )
        if self.num_pooling_queries > 1 and not self.image_pooling.startswith("attention"):
            raise ValueError(f"pooling_queries belong to the attention pooling, not to image_pooling={self.image_pooling!r}.")
        if self.image_pooling.startswith("attention") and self.pooling_width % self.pooling_heads:
            raise ValueError(f"pooling_width={self.pooling_width} is not a multiple of pooling_heads={self.pooling_heads}.")

    def compile_prompts(self, tokenizer) -> PromptTree:
        """Add [APT-i] to `tokenizer` (in place), compile the templates with it, keep tree and ids here; returns the tree."""
        self.adaptive_token_ids = add_adaptive_tokens(tokenizer, self.all_templates)
        tree = compile_prompt_tree(tokenizer, self.templates, self.negated_templates)
        self.prompt_tree = tree.to_dict()
        return tree

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As any config's; beside it what tells sentence-transformers how to load the folder.

        `MPCLIPModel.save_pretrained` comes by here before it uploads anything.
        """
        super().save_pretrained(save_directory, **kwargs)
        save_sentence_files(save_directory)

    @property
    def num_pooling_queries(self) -> int:
        """Q, queries of the image pooling; 1 where it has none and gives one vector."""
        if self.pooling_queries is not None:
            return self.pooling_queries
        return self.num_prompts if self.image_pooling == "attention_per_prompt" else 1

    @property
    def all_templates(self) -> list[str]:
        """The K templates, then their negated twins."""
        return [*self.templates, *self.negated_templates]

    @property
    def num_adaptive_tokens(self) -> int:
        """M, the adaptive tokens that the templates name."""
        return len(adaptive_token_names(self.all_templates))


def _sub_config(
    config: transformers.PreTrainedConfig | dict | None, default_type: str, name: str
) -> transformers.PreTrainedConfig:
    if config is None:
        config = {}
    if isinstance(config, dict):
        config = dict(config)
        config = transformers.AutoConfig.for_model(config.pop("model_type", default_type), **config)
    if not isinstance(config, transformers.PreTrainedConfig):
        raise ValueError(f"{name} is a {type(config).__name__}; give a transformers config or its dictionary.")
    return config


MPCLIPConfig.register_for_auto_class()  # `save_pretrained` then writes the code beside the weights
