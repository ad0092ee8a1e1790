"""MPCLIPConfig: the two towers, the prompts, the poolings and the loss, refused together where they do not fit."""

import transformers

from .checkpoint_guard import refuse_old_versions
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

CHOICES = {
    "adaptive_tokens": ("input", "boundary"),
    "text_pooling": ("prompts", "mean", "last_token"),
    "image_pooling": ("attention", "attention_per_prompt", "mean", "cls"),
    "loss": ("softmax", "sigmoid"),
    "negation_form": ("contrastive", "hinge"),
}


class MPCLIPConfig(transformers.PreTrainedConfig):
    r"""Configuration of an [`MPCLIPModel`].

    Args:
        text_config: a decoder LLM's config (Llama, Gemma, Gemma2, Gemma3 text, Qwen2, Qwen3, Mistral) or its dict.
        vision_config: a vision encoder's config (ViT, SigLIP, CLIP, DINOv2, EfficientNet) or its dict.
        text_only: the model has no image side; `vision_config` is None.
        num_prompts: K, the prompts per text; each yields `projection_dim / num_prompts` dimensions.
        projection_dim: D, dimensions of the text and image embeddings; a multiple of K.
        shared_projection: one text projection serves all prompts, in place of one for each.
        templates: K prompt templates; by default "The [APT-i] of this image means:" (paper, section 1.1).
        negated_templates: their K negated twins, or [] for a model that never sees negation.
        prompt_tree: the compiled templates (`compile_prompts` fills it), as `PromptTree.to_dict()`.
        adaptive_token_ids: token ids of [APT-1..M]; filled with the tree.
        adaptive_tokens: "input" learns the [APT-i] input embeddings; "boundary" freezes them and learns a vector per token
            that is added where the trained layers begin, so that hidden states below can be cached (ours).
        boundary_layer: index of the first trained layer for "boundary", 0 to the number of layers; the last by default.
        text_pooling: "prompts" reads each prompt's last token; the baselines "mean" and "last_token" read the text itself
            and have num_prompts=1.
        image_pooling: "attention" (one learned query), "attention_per_prompt" (K of them, ours), "mean", or "cls".
        pooling_queries: Q, queries of the attention pooling, each of which gives D / Q dimensions; by default K for
            "attention_per_prompt" and 1 for "attention". Others tell what the queries do apart from the prompts.
        pooling_width: channels inside the attention pooling.
        pooling_heads: its heads; a divisor of `pooling_width`.
        loss: "softmax" (CLIP) or "sigmoid" (SigLIP, with a learned bias).
        logit_scale_init_value: logarithm of the initial scale; by default log(1 / 0.07), or log(10) for sigmoid.
        logit_bias_init_value: initial bias of the sigmoid loss.
        diversity_weight: lambda_div.
        diversity_margin: cosine above which two prompts of a text repel each other.
        negation_weight: lambda_neg; above 0 it needs `negated_templates`.
        negation_form: "contrastive" (the negated text is one more negative of its image) or "hinge" on the cosine of a text
            and its negation.
        negation_margin: of the hinge.
        elastic_prompts: the contrastive loss is the mean of that of all prompts and that of the first m alone, m drawn in every
            step, so that these are a good embedding by themselves (ours).
        initializer_range: standard deviation of new projections.

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
        num_prompts: int = 6,
        projection_dim: int = 768,
        shared_projection: bool = False,
        templates: list[str] | None = None,
        negated_templates: list[str] | None = None,
        prompt_tree: dict | None = None,
        adaptive_token_ids: list[int] | None = None,
        adaptive_tokens: str = "input",
        boundary_layer: int | None = None,
        text_pooling: str = "prompts",
        image_pooling: str = "attention_per_prompt",
        pooling_queries: int | None = None,
        pooling_width: int = 512,
        pooling_heads: int = 8,
        loss: str = "softmax",
        logit_scale_init_value: float | None = None,
        logit_bias_init_value: float = -10.0,
        diversity_weight: float = 0.0,
        diversity_margin: float = 0.0,
        negation_weight: float = 0.0,
        negation_form: str = "contrastive",
        negation_margin: float = 0.0,
        elastic_prompts: bool = False,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        self.text_config = _sub_config(text_config, "llama", "text_config")
        if text_only and vision_config is not None:
            raise ValueError("A model with text_only=True has no image side; leave vision_config out.")
        self.vision_config = None if text_only else _sub_config(vision_config, "vit", "vision_config")
        self.text_only = text_only
        self.num_prompts = num_prompts
        self.projection_dim = projection_dim
        self.shared_projection = shared_projection
        prompted = text_pooling == "prompts"
        self.templates = templates if templates is not None else default_templates(num_prompts) if prompted else []
        if negated_templates is None:
            # A model with its own templates has the default negation no longer as its twin.
            negated_templates = default_templates(num_prompts, negated=True) if prompted and templates is None else []
        self.negated_templates = negated_templates
        self.prompt_tree = prompt_tree
        self.adaptive_token_ids = adaptive_token_ids or []
        self.adaptive_tokens = adaptive_tokens
        if adaptive_tokens == "boundary" and boundary_layer is None:
            boundary_layer = self.text_config.num_hidden_layers - 1
        self.boundary_layer = boundary_layer
        self.text_pooling = text_pooling
        self.image_pooling = image_pooling
        self.pooling_queries = pooling_queries
        self.pooling_width = pooling_width
        self.pooling_heads = pooling_heads
        self.loss = loss
        if logit_scale_init_value is None:
            logit_scale_init_value = 2.302585 if loss == "sigmoid" else 2.659260
        self.logit_scale_init_value = logit_scale_init_value
        self.logit_bias_init_value = logit_bias_init_value
        self.diversity_weight = diversity_weight
        self.diversity_margin = diversity_margin
        self.negation_weight = negation_weight
        self.negation_form = negation_form
        self.negation_margin = negation_margin
        self.elastic_prompts = elastic_prompts
        self.initializer_range = initializer_range
        self._refuse_illegal()
        super().__init__(**kwargs)

    def _refuse_illegal(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, allowed))}.")
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
        self.adaptive_token_ids = add_adaptive_tokens(tokenizer, [*self.templates, *self.negated_templates])
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
    def num_adaptive_tokens(self) -> int:
        """M, the adaptive tokens that the templates name."""
        return len(adaptive_token_names([*self.templates, *self.negated_templates]))


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
