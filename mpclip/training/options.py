"""The options of `train_hf.py`, each declared once: name, default, legal values, help.

`ModelArguments` has those of a model (`ModelOptions`, shared with its config) and which towers it is made of; `DataArguments`,
what it is trained on; `TrainingDefaults`, where training differs from `transformers.TrainingArguments`. Nothing here imports
torch: arguments.py joins the last with transformers', command_line.py reads them.
"""

from dataclasses import dataclass
from typing import Literal

from modeling_mpclip.model_options import MAX_TEXT_LENGTH, ModelOptions, option, refuse_unknown_choices


@dataclass
class ModelArguments(ModelOptions):
    """Which towers, how they are joined, and what of them is trained."""

    text_model: str = option(
        "smollm2-135m", "Decoder LLM: Hub id, folder, or a packaged one (python -m mpclip.data.backbones lists them)."
    )
    text_from_scratch: str | None = option(
        None,
        "A decoder's config (folder or JSON): a text tower of that shape with random weights and text_model's tokenizer, as in "
        "vanilla CLIP.",
    )
    vision_model: str = option("efficientnet-lite0", "Vision encoder: Hub id, folder, or a packaged one.")
    checkpoint: str | None = option(
        None, "Continue from this MP-CLIP checkpoint, with its weights and config, instead of two towers."
    )
    adaptive_init: list[str] | None = option(
        None,
        "A word per adaptive token whose embedding it starts from; surplus words are ignored. Default: random and distinct.",
    )
    text_tuning: Literal["frozen", "last", "lora", "full"] = option(
        "last", "What of the LLM is trained: nothing, its last layers (trained_layers), LoRA adapters, or all."
    )
    trained_layers: int = option(1, "Number of last layers that text_tuning='last' trains.")
    lora_rank: int = option(16, "Rank of the LoRA adapters of text_tuning='lora', on all projections of a layer.")
    lora_layers: int | None = option(
        None, "Number of last layers with adapters; states below them can be cached. Default: all layers."
    )
    lora_alpha: int = option(32, "LoRA alpha: adapters are scaled by alpha / rank.")
    vision_tuning: Literal["frozen", "full"] = option("frozen", "What of the vision encoder is trained: nothing or all.")

    def __post_init__(self):
        refuse_unknown_choices(self, type(self))
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

    dataset: str | None = option(
        None, "Hub id, folder of images with metadata.jsonl or .csv, parquet, or a saved `datasets` folder."
    )
    group_column: str | None = option(
        None, "Rows with equal values in this column meet in a batch, as hard negatives of one another."
    )
    group_size: int = option(2, "Number of rows of such a group that meet in a batch.")
    train_split: str = option("train", "Split to train on; a part of one is written 'train[:1000]'.")
    eval_split: str | None = option("validation", "Split to evaluate on; 'none' for no evaluation.")
    image_column: str | None = option(None, "Column of the image. Default: image, img or jpg.")
    caption_column: str | None = option(
        None, "Column of the caption or captions. Default: captions, caption, text, sentences or raw."
    )
    bad_images: Literal["skip", "fail"] = option(
        "skip", "Corrupt or missing images are named and skipped ('skip'), or end the run ('fail')."
    )
    smallest_crop: float = option(
        1.0,
        "Train on random crops of at least this share of the image's area, never mirrored. 1: whole images. Needs "
        "vision_tuning='full'.",
    )
    max_text_length: int = option(MAX_TEXT_LENGTH, "Tokens a caption is cut to, prompts not counted.")
    cache_states: bool = option(
        False, "Run frozen towers once and train on their stored states; texts need adaptive_tokens='boundary'."
    )
    cache_text_states: bool = option(
        True,
        "False: cache_states stores those of images alone, for adaptive_tokens='input' or an LLM that is trained as a whole.",
    )
    cache_format: Literal["float32", "float16", "bfloat16", "int8"] = option(
        "bfloat16", "Precision of the stored states. With 'float32' training equals live training to rounding."
    )
    cache_dir: str = option("runs/cache", "Folder of the stored states; other runs on the same data use them again.")

    def __post_init__(self):
        refuse_unknown_choices(self, type(self))
        if self.eval_split == "none":
            self.eval_split = None
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop={self.smallest_crop} is outside (0, 1]: it is a share of the image's area.")


@dataclass
class TrainingDefaults:
    """A learning rate per group, and defaults for contrastive training; all else is as in transformers' TrainingArguments."""

    output_dir: str = option("runs/mpclip", "Folder of the checkpoints and of the final model.")
    learning_rate: float = option(1e-3, "Learning rate of the newly initialised modules: projections, pooling, logit scale.")
    text_learning_rate: float = option(1e-4, "Learning rate of the LLM's trained layers or adapters.")
    vision_learning_rate: float = option(1e-5, "Learning rate of the vision encoder.")
    adaptive_learning_rate: float = option(1e-3, "Learning rate of the adaptive tokens.")
    per_device_train_batch_size: int = option(
        128,
        "Image-text pairs per step and process. A process contrasts its own pairs alone, so this is also the number of texts "
        "that an image is contrasted with.",
    )
    per_device_eval_batch_size: int = option(64, "Images, and texts, at a time in evaluation.")
    num_train_epochs: float = option(10.0, "Passes over the images. Each pass draws a caption anew for every image.")
    warmup_steps: float = option(0.1, "Linear warm-up: number of steps, or a share of all steps if below 1.")
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rates.")
    weight_decay: float = option(0.05, "Weight decay of matrices. Biases, norms and scales have none.")
    logging_steps: float = option(10, "Log every so many steps.")
    eval_strategy: str = option("epoch", "When to evaluate: 'no', 'steps' or 'epoch'.")
    save_strategy: str = option("epoch", "When to save a checkpoint: 'no', 'steps', 'epoch' or 'best'.")
    save_total_limit: int | None = option(2, "Number of checkpoints that are kept, the best among them.")
    load_best_model_at_end: bool = option(True, "End with the best checkpoint instead of the last.")
    metric_for_best_model: str | None = option("mean_recall", "Metric that makes a checkpoint the best.")
    greater_is_better: bool | None = option(True, "Whether a higher value of that metric is better.")
    remove_unused_columns: bool = option(False, "The collator needs all columns; leave False.")
    dataloader_drop_last: bool = option(True, "Leave out a short last batch: it has too few negatives.")
    # None stands first as in the base class: HfArgumentParser cannot read the type the other way round.
    report_to: None | str | list[str] = option("none", "Trackers, such as tensorboard or wandb.")  # noqa: RUF036
