"""The options of `train_hf.py`: YAML recipes, the later over the earlier, overridden by `--key value`."""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments


@dataclass
class ModelArguments:
    """Which towers, how they are joined, and what of them is trained."""

    text_model: str = field(
        default="smollm2-135m",
        metadata={"help": "Decoder LLM: Hub id, folder, or a packaged one (python -m mpclip.data.backbones lists them)."},
    )
    text_from_scratch: str | None = field(
        default=None,
        metadata={
            "help": "A decoder's config (folder or JSON): a text tower of that shape with random weights and text_model's "
            "tokenizer, as in vanilla CLIP."
        },
    )
    vision_model: str = field(
        default="efficientnet-lite0", metadata={"help": "Vision encoder: Hub id, folder, or a packaged one."}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "Go on from this MP-CLIP checkpoint (weights and config) instead of two towers."}
    )
    num_prompts: int = field(default=6, metadata={"help": "K, prompts per text."})
    projection_dim: int = field(default=768, metadata={"help": "D, embedding dimensions; a multiple of num_prompts."})
    shared_projection: bool = field(
        default=False, metadata={"help": "One text projection for all prompts instead of one for each."}
    )
    templates: list[str] | None = field(
        default=None,
        metadata={
            "help": "K prompt templates with [APT-1..] (of more, the first K), or one with {i} in it, which stands for 1 to K. "
            "Default: 'The [APT-{i}] of this image means:'."
        },
    )
    negated_templates: list[str] | None = field(default=None, metadata={"help": "Their K negated twins, given likewise."})
    adaptive_tokens: str = field(
        default="boundary",
        metadata={
            "help": "'input' learns the [APT-i] embeddings; 'boundary' a vector each where the trained layers begin, "
            "which lets the layers below be computed once (cache_states)."
        },
    )
    adaptive_init: list[str] | None = field(
        default=None,
        metadata={
            "help": "A word per [APT-i] whose embedding it starts from; those beyond the last are left over. "
            "Default: random and distinct."
        },
    )
    text_pooling: str = field(default="prompts", metadata={"help": "'prompts', or the baselines 'mean' and 'last_token'."})
    image_pooling: str = field(
        default="attention_per_prompt",
        metadata={"help": "'attention' (one query), 'attention_per_prompt', 'mean' or 'cls'."},
    )
    pooling_queries: int | None = field(
        default=None, metadata={"help": "Queries of the attention pooling, if not one per prompt ('attention': one in all)."}
    )
    pooling_width: int = field(default=512, metadata={"help": "Channels inside the attention pooling."})
    pooling_heads: int = field(default=8, metadata={"help": "Its heads."})
    loss: str = field(default="softmax", metadata={"help": "'softmax' (CLIP) or 'sigmoid' (SigLIP)."})
    logit_scale_init_value: float | None = field(
        default=None,
        metadata={"help": "Logarithm of the scale of similarities at the start; default log(1 / 0.07), log(10) for sigmoid."},
    )
    diversity_weight: float = field(default=0.0, metadata={"help": "lambda_div; prompts of a text repel each other."})
    negation_weight: float = field(default=0.0, metadata={"help": "lambda_neg; the negated prompts are negatives."})
    negation_form: str = field(default="contrastive", metadata={"help": "'contrastive' or 'hinge'."})
    elastic_prompts: bool = field(
        default=False, metadata={"help": "Also train the first m prompts alone, m drawn anew in every step."}
    )
    text_tuning: str = field(
        default="last", metadata={"help": "'frozen', 'last' (the last trained_layers layers), 'lora' or 'full'."}
    )
    trained_layers: int = field(default=1, metadata={"help": "Layers that text_tuning='last' trains."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of text_tuning='lora', on all projections of a layer."})
    lora_layers: int | None = field(
        default=None, metadata={"help": "Last layers that have adapters; those below can be cached. Default: every layer."}
    )
    lora_alpha: int = field(default=32, metadata={"help": "Its scale."})
    vision_tuning: str = field(default="frozen", metadata={"help": "'frozen' or 'full'."})

    def __post_init__(self):
        for name, allowed in (("text_tuning", ("frozen", "last", "lora", "full")), ("vision_tuning", ("frozen", "full"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, allowed))}.")
        self.templates = self._numbered(self.templates)
        self.negated_templates = self._numbered(self.negated_templates)

    def _numbered(self, templates: list[str] | None) -> list[str] | None:
        """["[APT-{i}]:"] -> ["[APT-1]:", ..., "[APT-K]:"]; of other lists the first K."""
        if templates is None or len(templates) != 1 or "{i}" not in templates[0]:
            return templates and templates[: self.num_prompts]
        return [templates[0].replace("{i}", str(i)) for i in range(1, self.num_prompts + 1)]


@dataclass
class DataArguments:
    """Where pictures and captions come from."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Hub id, folder of images with metadata.jsonl or .csv, parquet, or a saved `datasets` folder."},
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Rows with equal values of this column meet in a batch, as hard negatives of one another."},
    )
    group_size: int = field(default=2, metadata={"help": "How many rows of such a group meet."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default="validation", metadata={"help": "Split to evaluate on; 'none' for no evaluation."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the image; found by itself if usual."})
    caption_column: str | None = field(default=None, metadata={"help": "Column of the caption or captions; likewise."})
    bad_images: str = field(
        default="skip", metadata={"help": "Corrupt or missing images are named and skipped ('skip'), or end the run ('fail')."}
    )
    smallest_crop: float = field(
        default=1.0,
        metadata={
            "help": "Training images are random crops of at least this share of their area, never mirrored; 1: whole images. "
            "For vision_tuning='full'."
        },
    )
    max_text_length: int = field(default=128, metadata={"help": "Tokens a caption is cut to, prompts not counted."})
    cache_states: bool = field(
        default=False,
        metadata={"help": "Run frozen towers once and train on their stored states; needs adaptive_tokens='boundary'."},
    )
    cache_text_states: bool = field(
        default=True,
        metadata={
            "help": "False leaves cache_states to the images: for adaptive_tokens='input', or an LLM trained as a whole."
        },
    )
    cache_format: str = field(
        default="bfloat16",
        metadata={
            "help": "'float32' (training equals live training to rounding), 'float16', 'bfloat16' or 'int8': precision of "
            "the stored states."
        },
    )
    cache_dir: str = field(default="runs/cache", metadata={"help": "Where the stored states are kept for the next run."})

    def __post_init__(self):
        if self.eval_split == "none":
            self.eval_split = None
        if self.bad_images not in ("skip", "fail"):
            raise ValueError(f"bad_images={self.bad_images!r} is unknown; use 'skip' or 'fail'.")
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop={self.smallest_crop} is outside (0, 1]: it is a share of the image's area.")


@dataclass
class MPCLIPTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with a learning rate per group and defaults for contrastive training."""

    output_dir: str = field(default="runs/mpclip", metadata={"help": "Checkpoints and the final model go here."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of what is new: projections, pooling, logit scale."})
    text_learning_rate: float = field(default=1e-4, metadata={"help": "Of the LLM's trained layers or adapters."})
    vision_learning_rate: float = field(default=1e-5, metadata={"help": "Of the vision encoder."})
    adaptive_learning_rate: float = field(default=1e-3, metadata={"help": "Of the adaptive tokens."})
    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "Pairs per step and process; also the negatives: a process sees its own alone."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images per evaluation step."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the images, a random caption each time."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Linear warm-up: steps, or a share of all steps if below 1."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rates."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of matrices; biases, norms, scales have none."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best among them."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    metric_for_best_model: str | None = field(default="mean_recall", metadata={"help": "What 'best' means."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of it is better."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs all columns; leave False."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "A short last batch has too few negatives."})
    # None stands first as in the base class: HfArgumentParser cannot read the type the other way round.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Trackers, e.g. tensorboard or wandb."}
    )


ARGUMENT_CLASSES = (ModelArguments, DataArguments, MPCLIPTrainingArguments)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, MPCLIPTrainingArguments]:
    """`[recipe.yaml ...] [--key value ...]` -> the three argument objects; what comes later wins.

    Several recipes are a setting (towers, data, schedule) and what a system changes in it: configs/systems.

    Raises:
        ValueError: an unknown key, in the recipe or on the command line, with the nearest known one.
    """
    parser = HfArgumentParser(ARGUMENT_CLASSES, description="Train an MP-CLIP model.")
    merged: dict = {}
    while argv and argv[0].endswith((".yaml", ".yml")):
        merged |= read_recipe(Path(argv[0]))
        argv = argv[1:]
    *parsed, unknown = parser.parse_args_into_dataclasses(_as_arguments(merged) + argv, return_remaining_strings=True)
    if unknown:
        raise ValueError(_unknown_key(unknown[0].removeprefix("--"), "the command line"))
    return tuple(parsed)


def read_recipe(file: Path) -> dict:
    """The mapping of a YAML recipe.

    Raises:
        ValueError: no such file, no mapping, or an unknown key, with the nearest known one.
    """
    if not file.exists():
        raise ValueError(f"There is no recipe {file}; configs/ has those of the project.")
    recipe = yaml.safe_load(file.read_text()) or {}
    if not isinstance(recipe, dict):
        raise ValueError(f"{file} must be a mapping of option to value, one `key: value` per line.")
    known = {f.name for cls in ARGUMENT_CLASSES for f in fields(cls)}
    for key in recipe:
        if key not in known:
            raise ValueError(_unknown_key(key, str(file)))
    return recipe


def _as_arguments(recipe: dict) -> list[str]:
    """As command line arguments; null takes back what an earlier recipe said."""
    given = {key: value for key, value in recipe.items() if value is not None}
    return [
        part for key, value in given.items() for part in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]


def _unknown_key(key: str, where: str) -> str:
    known = [f.name for cls in ARGUMENT_CLASSES for f in fields(cls)]
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return f"Unknown option {key!r} in {where}. {hint}`python train_hf.py --help` lists them all."
