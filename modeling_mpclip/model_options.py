"""The options of a model, each declared once: name, default, legal values, help.

They are the attributes of [`MPCLIPConfig`], the options and recipe keys of `train_hf.py`, and a table of docs/options.md. This
module imports neither torch nor transformers, so that a command shows its help at once.
"""

import math
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

NUM_FRAMES = 8  # frames that are taken of a video file
MAX_PROMPTS = 256  # a config from elsewhere may ask for any number, and memory would be taken for it
MAX_TEXT_LENGTH = 128  # tokens a text is cut to, prompts not counted; LLM tokenizers come with the LLM's context length


@dataclass(frozen=True)
class Range:
    """The legal values of a number. All of them are finite.

    Attributes:
        least, most: the smallest and the largest legal value.
        above, below: limits that are not legal themselves.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: object) -> bool:
        """Whether `value` is a number of this range."""
        return (
            isinstance(value, Real)
            and math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {limit:.10g}" for word, limit in words.items() if limit is not None) or "a finite number"


Count = Annotated[int, Range(least=1)]
Prompts = Annotated[int, Range(least=1, most=MAX_PROMPTS)]
Width = Annotated[int, Range(least=1, most=2**20)]
Index = Annotated[int, Range(least=0)]
Finite = Annotated[float, Range()]
NonNegative = Annotated[float, Range(least=0)]
Cosine = Annotated[float, Range(least=-1, most=1)]


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and a help text.

    The type says what is legal: `Literal["a", "b"]` for a few values, an annotated type such as `Count` for a number.
    `refuse_illegal_values` checks it.

    Args:
        default: immutable, such as a number, a string or None.
        help: one or two sentences, shown by `--help` and in docs/options.md.
    """
    return field(default=default, metadata={"help": help})


@dataclass
class ModelOptions:
    """The options of a model. Where a default is None, the help says which value is used."""

    num_prompts: Prompts = option(6, "K, the number of prompts per text. Each gives projection_dim / K dimensions.")
    projection_dim: Width = option(768, "D, the dimensions of an embedding; a multiple of num_prompts.")
    shared_projection: bool = option(False, "Project all prompts with one matrix instead of one matrix per prompt.")
    joint_projection: bool = option(
        False,
        "Let every segment read all prompts, in place of its own alone (ours). The first prompts can then not be used without "
        "the others.",
    )
    words: bool = option(
        False,
        "Also read the mean of the input embeddings of the text's tokens, beside what the prompts or the pooling read (ours). "
        "It tells which words were said, at next to no cost.",
    )
    templates: list[str] | None = option(
        None,
        "K prompt templates that name their adaptive tokens [APT-1], ... Default: 'The [APT-i] of this image means:'.",
    )
    negated_templates: list[str] | None = option(
        None,
        "The K negated twins of the templates; an empty list for a model without negation. "
        "Default: 'The [APT-i] of this image does NOT mean:' for the default templates, none for your own.",
    )
    adaptive_tokens: Literal["boundary", "input"] = option(
        "boundary",
        "Where the adaptive tokens are learned. 'input' (the paper): as input embeddings. 'boundary' (ours): as a vector per "
        "token, added where the trained layers begin; the layers below then run once and are cached (cache_states).",
    )
    boundary_layer: Index | None = option(
        None,
        "Index of the layer before which adaptive_tokens='boundary' adds its vectors, 0 to the number of layers. "
        "Default: the first trained layer when training, else the last layer.",
    )
    text_layers: Count | None = option(
        None,
        "d, use only the first d layers of the LLM; the weights above are neither loaded nor saved (ours). "
        "Default: all layers.",
    )
    text_attention: Literal["causal", "bidirectional"] = option(
        "causal",
        "Whether the text's tokens attend to earlier tokens alone, or from the boundary layer on to all of the text (ours). "
        "The layers below stay causal, as they were pretrained, and their states can be cached all the same. Prompts need two "
        "trained layers or more: they read the text as it enters a layer.",
    )
    text_pooling: Literal["prompts", "mean", "last_token", "attention"] = option(
        "prompts",
        "How a text becomes a vector. 'prompts': the last token of each prompt. The baselines 'mean', 'last_token' and "
        "'attention' (ours: learned pooling queries over the text, as many as the image has) read the text itself and need "
        "num_prompts=1.",
    )
    image_pooling: Literal["attention_per_prompt", "attention", "mean", "cls"] = option(
        "attention_per_prompt",
        "How vision tokens become a vector. 'attention_per_prompt': one learned pooling query per prompt (ours). 'attention': "
        "one pooling query for all prompts (the paper). 'mean': the mean of the tokens. 'cls': the class token.",
    )
    image_tokens: Literal["all", "patches"] = option(
        "all",
        "Which vision tokens are pooled. 'all' that the encoder returns. 'patches': without class tokens and registers, which "
        "belong to no place of the picture.",
    )
    pooling_queries: Count | None = option(
        None,
        "Number of pooling queries; each gives D / Q dimensions. With text_pooling='attention' the text has as many. "
        "Default: K for 'attention_per_prompt', 1 for 'attention'.",
    )
    pooling_width: Width = option(512, "Channels inside the attention pooling.")
    pooling_heads: Count = option(8, "Heads of the attention pooling; a divisor of pooling_width.")
    clip_pooling: Literal["tokens", "mean"] = option(
        "tokens",
        "How a clip becomes a vector. 'tokens': the image pooling over the tokens of all frames (the paper). 'mean': the mean "
        "of the frames' embeddings, which ignores their order.",
    )
    frame_position: Literal["none", "sinusoid"] | None = option(
        None,
        "What tells the frames of a clip apart. 'sinusoid': a fixed code of the time in the clip, added to the tokens of each "
        "frame (ours); it adds no weights and changes no picture. 'none': a clip and its reverse are the same. Default: "
        "'sinusoid' where the attention pooling sees all frames; 'none' for checkpoints from before this option.",
    )
    loss: Literal["softmax", "sigmoid"] = option(
        "softmax", "Contrastive loss. 'softmax': CLIP's. 'sigmoid': SigLIP's, with a learned bias."
    )
    logit_scale_init_value: Finite | None = option(
        None, "Logarithm of the initial logit scale. Default: log(1 / 0.07), or log(10) for loss='sigmoid'."
    )
    logit_bias_init_value: Finite = option(-10.0, "Initial logit bias of loss='sigmoid'.")
    diversity_weight: NonNegative = option(
        0.0, "Weight of the diversity loss, which pushes the prompts of a text apart. 0: off."
    )
    diversity_margin: Cosine = option(0.0, "Cosine of two prompts up to which the diversity loss is 0 (ours).")
    negation_weight: NonNegative = option(0.0, "Weight of the negation loss; needs negated_templates. 0: off.")
    negation_form: Literal["contrastive", "hinge"] = option(
        "contrastive",
        "'contrastive': the negated text is one more negative of its image. 'hinge': pushes a text and its negation apart.",
    )
    negation_margin: Cosine = option(0.0, "Cosine of text and negation up to which the loss of negation_form='hinge' is 0.")
    elastic_prompts: bool = option(
        False,
        "Also train the first m prompts alone, with m drawn anew in every step. The first m segments are then an embedding "
        "that works without the others (ours).",
    )
    initializer_range: NonNegative = option(0.02, "Standard deviation of newly initialised linear layers.")


OPTION_NAMES = tuple(option.name for option in fields(ModelOptions))


def choices(options: type, name: str) -> tuple[str, ...]:
    """The legal values of a field of the dataclass `options`; () if its type is neither `Literal` nor `Literal | None`."""
    kind = _types(options)[name]
    return next((get_args(part) for part in (kind, *get_args(kind)) if get_origin(part) is Literal), ())


def may_be_none(options: type, name: str) -> bool:
    """Whether the type of a field of the dataclass `options` allows None, which stands for a default."""
    return type(None) in get_args(_types(options)[name])


def range_of(options: type, name: str) -> Range | None:
    """The range of a field of the dataclass `options`; None if its type has none."""
    return _range_in(_types(options)[name])


@cache
def _types(options: type) -> dict[str, Any]:
    """Field -> its type; looked up once per class, since every config is checked by them."""
    return get_type_hints(options, include_extras=True)


def _range_in(kind: Any) -> Range | None:
    """The range in a type such as `Count` or `Count | None`."""
    if get_origin(kind) is Annotated:
        return next((one for one in kind.__metadata__ if isinstance(one, Range)), None)
    return next((found for part in get_args(kind) if (found := _range_in(part))), None)


def refuse_illegal_values(options: object, declared: type) -> None:
    """Check the options whose legal values are declared. None stands for a default and is not checked.

    Args:
        options: an object whose attributes are the options, such as a config.
        declared: the dataclass that declares them.

    Raises:
        ValueError: a value is not legal; the message says which ones are.
    """
    for declaration in fields(declared):
        name, value = declaration.name, getattr(options, declaration.name)
        legal = choices(declared, name)
        if legal and value not in legal and not (value is None and may_be_none(declared, name)):
            raise ValueError(f"{name}={shortly(value)} is unknown; use one of {', '.join(map(repr, legal))}.")
        _refuse_other_kind(declared, name, value)
        refuse_out_of_range(name, value, range_of(declared, name))


def refuse_out_of_range(name: str, value: object, legal: Range | None) -> None:
    """Raise a ValueError that names an option if its value is neither None nor in the range."""
    if legal is not None and value is not None and not legal.holds(value):
        raise ValueError(f"{name}={shortly(value)} is out of range: expected {legal}.")


def shortly(value: object) -> str:
    """Any value for a message, which stays readable when the value is a million characters long."""
    told = repr(value)
    return told if len(told) <= 100 else f"{told[:80]}... ({len(told):,} characters)"


def _refuse_other_kind(declared: type, name: str, value: object) -> None:
    """Raise a ValueError for a value that is no number or no truth value, if the type of an option says that it is one.

    "false" is a text, and as a condition it would count as true. 6.0 prompts would fail far from here.
    """
    kind = _types(declared)[name]
    kinds = {plain for part in (kind, *get_args(kind)) for plain in (part, *get_args(part))}
    expected = "true or false" if bool in kinds else "a whole number" if int in kinds else "a number" if float in kinds else ""
    if not expected or (value is None and may_be_none(declared, name)):
        return
    is_truth, is_whole = isinstance(value, bool), isinstance(value, Integral)
    fits = is_truth if bool in kinds else not is_truth and (is_whole or (float in kinds and isinstance(value, Real)))
    if not fits:
        raise ValueError(f"{name}={shortly(value)} is a {type(value).__name__}: expected {expected}.")


def list_of_options(declared: type) -> str:
    """The options of the dataclass `declared` as the lines of an `Args:` section: name, default, help."""
    return "\n".join(f"        {o.name} (default {o.default!r}): {o.metadata['help']}" for o in fields(declared))
