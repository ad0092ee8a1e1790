"""MPCLIPConfig: the configs of both towers and the options of `ModelOptions`. Contradicting options are refused."""

import copy
from dataclasses import fields
from typing import TYPE_CHECKING

import transformers

from .checkpoint_guard import refuse_old_versions
from .model_options import ModelOptions, list_of_options, refuse_illegal_values, shortly
from .prompt_tree import (
    RECOMPILE,
    PromptTree,
    adaptive_token_names,
    add_adaptive_tokens,
    compile_prompt_tree,
    default_templates,
    refuse_other_texts,
)
from .sentence_files import save_sentence_files
from .shipped_code import saved_as_shipped

if TYPE_CHECKING:
    # Never runs. transformers copies the modules that are imported here, and tells the code of two checkpoints apart by a hash
    # of them. Were a module missing, two folders of one name that differ in it alone would share the class of the config, and
    # AutoModel would use the model class of the first for both.
    from .modeling_mpclip import MPCLIPModel  # noqa: F401
    from .pipelines_mpclip import MPCLIPZeroShotImageClassificationPipeline  # noqa: F401
    from .processing_mpclip import MPCLIPProcessor  # noqa: F401

# Our classes for pipelines of transformers: task -> class, and the auto class that loads the model.
PIPELINES = {
    "zero-shot-image-classification": {
        "impl": "pipelines_mpclip.MPCLIPZeroShotImageClassificationPipeline",
        "pt": ["AutoModelForZeroShotImageClassification"],
    },
    "image-feature-extraction": {"impl": "pipelines_mpclip.MPCLIPImageFeatureExtractionPipeline", "pt": ["AutoModel"]},
}

# LLMs whose first layers alone are not shown to equal those of the whole: they are scaled by their number, or depend on others.
UNCUT = {"gemma3n_text", "gemma4_text", "inkling2_text", "lfm3", "longcat_flash", "minicpm3"}

# Sizes that no model has. Some configs make lists of so many entries, and some products of sizes no longer fit 64 bits.
LARGEST = {"num_hidden_layers": 10**4, "hidden_size": 2**27, "intermediate_size": 2**27, "vocab_size": 2**27}

# Whoever loads a model imports this module first. The check runs before PreTrainedConfig is used, which old versions lack.
refuse_old_versions()


class MPCLIPConfig(transformers.PreTrainedConfig):
    __doc__ = f"""Configuration of an [`MPCLIPModel`].

    Args:
        text_config: config of a decoder LLM of a family in docs/towers.md, or its dict.
        vision_config: config of a vision encoder of a family in docs/towers.md, or its dict.
        text_only: whether the model has no image side. `vision_config` is then None.
        prompt_tree: the compiled templates as `PromptTree.to_dict()`; set by `compile_prompts`.
        adaptive_token_ids: token ids of [APT-1] to [APT-M]; set by `compile_prompts`.
{list_of_options(ModelOptions)}

    Raises:
        ValueError: an option is illegal or contradicts another one; the message names them and says what to set.
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
        if not isinstance(text_only, bool):
            raise ValueError(f"text_only={shortly(text_only)} is a {type(text_only).__name__}: expected true or false.")
        if text_only and vision_config is not None:
            raise ValueError("A model with text_only=True has no image side; leave vision_config out.")
        self.vision_config = None if text_only else _sub_config(vision_config, "vit", "vision_config")
        self.text_only = text_only
        self.prompt_tree = prompt_tree
        self.adaptive_token_ids = [] if adaptive_token_ids is None else adaptive_token_ids
        named = kwargs.pop("custom_pipelines", None) or {}
        if not isinstance(named, dict):
            raise ValueError(f"custom_pipelines={shortly(named)} is a {type(named).__name__}: expected a dict of pipelines.")
        for option in fields(ModelOptions):
            setattr(self, option.name, kwargs.pop(option.name, option.default))
        refuse_illegal_values(self, ModelOptions)
        for name in ("templates", "negated_templates"):
            _refuse_no_texts(name, getattr(self, name))
        if self.text_layers is not None:
            self.text_config = first_layers(self.text_config, self.text_layers)
        self._fill_in_defaults()
        self._refuse_illegal()
        self._refuse_foreign_prompts()
        self.custom_pipelines = self._pipelines_to_use(named)
        super().__init__(**kwargs)

    def __init_subclass__(cls, **kwargs):
        has_own = "__init__" in cls.__dict__
        super().__init_subclass__(**kwargs)
        if not has_own:  # transformers has given it an `__init__` that knows none of our options
            del cls.__init__

    def _fill_in_defaults(self) -> None:
        """Set the options that are None and whose default depends on other options."""
        own_templates = self.templates is not None
        prompted = self.text_pooling == "prompts"
        if self.templates is None:
            self.templates = default_templates(self.num_prompts) if prompted else []
        if self.negated_templates is None:
            # The default negated templates belong to the default templates. Custom templates get none.
            twins = prompted and not own_templates
            self.negated_templates = default_templates(self.num_prompts, negated=True) if twins else []
        if self.frame_position is None:
            attends = self.clip_pooling == "tokens" and self.image_pooling.startswith("attention")
            self.frame_position = "sinusoid" if attends else "none"
        if self.adaptive_tokens == "boundary" and self.boundary_layer is None:
            self.boundary_layer = self.text_config.num_hidden_layers - 1
        if self.logit_scale_init_value is None:
            self.logit_scale_init_value = 2.302585 if self.loss == "sigmoid" else 2.659260

    def _refuse_illegal(self) -> None:
        K, D = self.num_prompts, self.projection_dim
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
        if self.negation_weight and not self.negated_templates:
            raise ValueError(
                f"negation_weight={self.negation_weight} needs negated prompts, and negated_templates is empty. "
                "Give one negated template per prompt, or set negation_weight=0."
            )
        if self.diversity_weight and K == 1:
            raise ValueError(
                f"diversity_weight={self.diversity_weight} compares prompts and there is one (num_prompts=1). "
                "Set diversity_weight=0, or num_prompts to 2 or more."
            )
        if self.elastic_prompts and K == 1:
            raise ValueError(
                "elastic_prompts=True drops some of the prompts, and there is one (num_prompts=1). "
                "Set elastic_prompts=False, or num_prompts to 2 or more."
            )
        self._refuse_partial_use_of_joint()
        layers = self.text_config.num_hidden_layers
        if self.adaptive_tokens == "boundary" and not 0 <= self.boundary_layer <= layers:
            raise ValueError(
                f"boundary_layer={self.boundary_layer} is outside 0..{layers}: the text model has {layers} layers."
            )
        if self.adaptive_tokens == "input" and self.boundary_layer is not None:
            raise ValueError(
                f"boundary_layer={self.boundary_layer} belongs to adaptive_tokens='boundary'; adaptive_tokens='input' learns "
                "input embeddings, below all layers. Leave boundary_layer out, or set adaptive_tokens='boundary'."
            )
        if self.text_attention == "bidirectional":
            self._refuse_looking_both_ways_in_vain(layers)
        if self.num_pooling_queries < 1 or D % self.num_pooling_queries:
            raise ValueError(
                f"pooling_queries={self.pooling_queries} does not divide projection_dim={D}: every pooling query gives the "
                "same number of dimensions. Set pooling_queries to a divisor of projection_dim."
            )
        if self.num_pooling_queries > 1 and not self.image_pooling.startswith("attention"):
            raise ValueError(
                f"pooling_queries={self.pooling_queries}: pooling queries belong to the attention pooling, not to "
                f"image_pooling={self.image_pooling!r}. Leave pooling_queries out, or set image_pooling='attention'."
            )
        if self.image_pooling == "cls" and self.image_tokens == "patches":
            raise ValueError(
                "image_pooling='cls' pools the class token, which image_tokens='patches' leaves out. Set image_tokens='all' or "
                "another image_pooling."
            )
        for option, value in (("clip_pooling", self.clip_pooling), ("image_pooling", self.image_pooling)):
            if self.frame_position != "none" and value in ("mean", "cls"):
                raise ValueError(
                    f"frame_position={self.frame_position!r} tells the frames of a clip apart, and {option}={value!r} takes a "
                    "mean over them, in which their order is lost. Set frame_position='none', or use the attention pooling "
                    "with clip_pooling='tokens'."
                )
        attends = self.image_pooling.startswith("attention") or self.text_pooling == "attention"
        if attends and self.pooling_width % self.pooling_heads:
            raise ValueError(f"pooling_width={self.pooling_width} is not a multiple of pooling_heads={self.pooling_heads}.")

    def _refuse_looking_both_ways_in_vain(self, layers: int) -> None:
        """Raise a ValueError if text_attention='bidirectional' has no layer in which it changes what is read.

        A prompt, and the last token, read the text as it enters a layer. What the last layer makes of the other tokens is read
        by the poolings over all tokens alone.
        """
        highest = layers - 1 if self.text_pooling in ("mean", "attention") else layers - 2
        if self.boundary_layer is None or self.boundary_layer > highest:
            raise ValueError(
                f"text_attention='bidirectional' with adaptive_tokens={self.adaptive_tokens!r} and boundary_layer="
                f"{self.boundary_layer} changes no embedding: it begins at the boundary layer, and text_pooling="
                f"{self.text_pooling!r} needs one of at most {highest}, as the text model has {layers} layers. Set "
                "adaptive_tokens='boundary' and a lower boundary_layer (train more layers: trained_layers, lora_layers), or "
                "leave text_attention out."
            )

    def _refuse_partial_use_of_joint(self) -> None:
        """Raise a ValueError if joint_projection is combined with what needs a segment per prompt."""
        if not self.joint_projection:
            return
        given = {name: getattr(self, name) for name in ("shared_projection", "elastic_prompts", "diversity_weight")}
        if self.num_prompts == 1:
            raise ValueError(
                "joint_projection=True lets every segment read all prompts, and there is one (num_prompts=1). "
                "Set joint_projection=False, or num_prompts to 2 or more."
            )
        if wrong := [f"{name}={value}" for name, value in given.items() if value]:
            raise ValueError(
                f"{wrong[0]} needs segments that read one prompt each, and with joint_projection=True every segment reads all "
                "prompts. Leave one of the two out."
            )

    def _refuse_foreign_prompts(self) -> None:
        """Raise a ValueError if the compiled prompts are damaged, or are those of other templates or of another LLM."""
        own, vocabulary = self.adaptive_token_ids, getattr(self.text_config, "vocab_size", None)
        if not isinstance(own, (list, tuple)) or any(type(one) is not int or one < 0 for one in own):
            raise ValueError(f"adaptive_token_ids={shortly(own)}: expected a list of token ids.")
        if self.prompt_tree is None:
            return
        tree, M, K = PromptTree.from_dict(self.prompt_tree), self.num_adaptive_tokens, self.num_prompts
        prompts = K if self.text_pooling == "prompts" else 0
        if len(own) != M or len(tree.readouts) != prompts:
            raise ValueError(
                f"prompt_tree has {len(tree.readouts)} prompts and adaptive_token_ids has {len(own)} ids, but the templates "
                f"have {prompts} and {M}. {RECOMPILE}"
            )
        highest = max(set(tree.token_ids) - set(own), default=0)
        if vocabulary is not None and highest >= vocabulary:
            raise ValueError(
                f"prompt_tree names the token {highest}, and the LLM of text_config has vocab_size={vocabulary}. {RECOMPILE}"
            )

    def compile_prompts(self, tokenizer) -> PromptTree:
        """Compile the templates with a tokenizer and store the tree and the ids of the adaptive tokens in this config.

        Args:
            tokenizer: of the LLM. The adaptive tokens [APT-i] are added to it in place.

        Returns:
            The compiled [`PromptTree`].
        """
        self.adaptive_token_ids = add_adaptive_tokens(tokenizer, self.all_templates)
        tree = compile_prompt_tree(tokenizer, self.templates, self.negated_templates)
        self.prompt_tree = tree.to_dict()
        self.pad_token_id = tokenizer.pad_token_id  # by which padding is noticed that comes without a mask
        return tree

    def _pipelines_to_use(self, named: dict[str, dict]) -> dict[str, dict]:
        """Those of the pipelines named in config.json for which `transformers.pipeline` takes our classes.

        `pipeline` asks for trust_remote_code=True before it does. Where this file is the installed package's, a model needs no
        such trust. It then keeps transformers' own pipelines, but for one whose scores would be wrong: that of softmax scores
        for a model of the sigmoid loss.
        """
        if self.text_only:
            return {}
        from_checkpoint = __name__.startswith("transformers_modules.")
        wrong = ["zero-shot-image-classification"] if self.loss == "sigmoid" else []
        return {task: entry for task, entry in named.items() if from_checkpoint or task in wrong}

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "MPCLIPConfig":
        """As of the base class. A saved config without `frame_position` is of a model whose frames had none."""
        return super().from_dict({"frame_position": "none"} | config_dict, **kwargs)

    def to_dict(self) -> dict:
        """As of the base class, with `custom_pipelines` for every model that takes pictures."""
        return super().to_dict() | ({} if self.text_only else {"custom_pipelines": copy.deepcopy(PIPELINES)})

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Save the config, and beside it the three files from which sentence-transformers learns how to load the folder.

        `MPCLIPModel.save_pretrained` calls this before it uploads anything, so a push includes the three files.
        """
        with saved_as_shipped(self):
            super().save_pretrained(save_directory, **kwargs)
        save_sentence_files(save_directory)

    @property
    def num_pooling_queries(self) -> int:
        """Q, the number of pooling queries. The image poolings without queries give one vector and count as 1."""
        if self.pooling_queries is not None:
            return self.pooling_queries
        return self.num_prompts if self.image_pooling == "attention_per_prompt" else 1

    @property
    def text_width(self) -> int:
        """Channels that a segment of a text is made of: of one prompt or of all (joint_projection), and of the words."""
        H = self.text_config.hidden_size
        states = (self.num_prompts if self.joint_projection else 1) * H
        return (self.pooling_width if self.text_pooling == "attention" else states) + self.words * H

    @property
    def num_text_vectors(self) -> int:
        """How many vectors of a text are projected, each by a matrix of its own: one per prompt, or per pooling query."""
        return self.num_pooling_queries if self.text_pooling == "attention" else self.num_prompts

    @property
    def all_templates(self) -> list[str]:
        """The K templates, followed by their negated twins."""
        return [*self.templates, *self.negated_templates]

    @property
    def num_adaptive_tokens(self) -> int:
        """M, the number of adaptive tokens that the templates name."""
        return len(adaptive_token_names(self.all_templates))


def _refuse_no_texts(name: str, templates: list[str] | None) -> None:
    """Raise a ValueError unless templates are a list of texts, or None for the default ones."""
    if templates is None:
        return
    if not isinstance(templates, (list, tuple)):
        raise ValueError(f"{name}={shortly(templates)} is a {type(templates).__name__}: expected a list of texts.")
    refuse_other_texts(name, list(templates))
    if "" in [template.strip() for template in templates]:
        raise ValueError(f"{name} holds an empty text: a prompt needs at least one token.")


def _sub_config(
    config: transformers.PreTrainedConfig | dict | None, default_type: str, name: str
) -> transformers.PreTrainedConfig:
    """The config object of one tower, from a config, its dict, or None for the defaults of `default_type`."""
    if config is None:
        config = {}
    if isinstance(config, dict):
        config = dict(config)
        for size, most in LARGEST.items():
            if isinstance(config.get(size), (int, float)) and not 1 <= config[size] <= most:
                raise ValueError(f"{name}: {size}={shortly(config[size])} is out of range: expected 1 to {most}.")
        try:
            config = transformers.AutoConfig.for_model(config.pop("model_type", default_type), **config)
        except Exception as error:  # of a dozen types: each config of transformers checks its values in its own way
            raise ValueError(f"{name} is no config of a model ({type(error).__name__}: {error}).") from error
    if not isinstance(config, transformers.PreTrainedConfig):
        raise ValueError(f"{name} is a {type(config).__name__}; give a transformers config or its dict.")
    return config


def first_layers(config: transformers.PreTrainedConfig, layers: int) -> transformers.PreTrainedConfig:
    """The config of an LLM cut after some layers; lists with an entry per layer are cut too (ours).

    Args:
        config: of an LLM. It is not changed.
        layers: d, how many layers stay.

    Raises:
        ValueError: the LLM has fewer layers, or what a layer computes depends on the layers above.
    """
    L = config.num_hidden_layers
    if layers > L:
        raise ValueError(f"text_layers={layers}, but the LLM has {L} layers. Set text_layers to at most {L}, or leave it out.")
    if layers < L and (config.model_type in UNCUT or getattr(config, "num_kv_shared_layers", 0)):
        raise ValueError(
            f"text_layers={layers}: a {config.model_type} cannot be cut, because what its layers compute depends on how many "
            f"there are or on one another. Leave text_layers out, or set it to {L}."
        )
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = layers
    for name, value in vars(cut).items():
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == L:
            setattr(cut, name, value[:layers])
    return cut


MPCLIPConfig.register_for_auto_class()  # so that `save_pretrained` writes the code beside the weights
