"""The options of `train_hf.py`, each declared once: name, default, legal values, help.

`ModelArguments`: the options of a model (`ModelOptions`, shared with its config), its towers, and which weights are trained.
`DataArguments`: the training data, with the options of mpclip/data/reading.py. `TrainingDefaults`: what differs from
`transformers.TrainingArguments`; arguments.py combines the two. This module does not import torch, so that `--help` is fast.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from modeling_mpclip.model_options import (
    MAX_TEXT_LENGTH,
    NUM_FRAMES,
    Count,
    Index,
    ModelOptions,
    NonNegative,
    Range,
    option,
    refuse_illegal_values,
)
from mpclip.data.joined_captions import JoinedCaptions
from mpclip.data.reading import ReadingOptions
from mpclip.hardware import Precision

Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(above=0, most=1)]


@dataclass
class ModelArguments(ModelOptions):
    """Which towers, how they are joined, and which of their weights are trained."""

    text_model: str = option(
        "smollm2-135m", "Decoder LLM: Hub id, folder, or a packaged one (python -m mpclip.data.backbones lists them)."
    )
    text_from_scratch: str | None = option(
        None,
        "Config of a decoder (folder or JSON file). The text tower then has this shape, random weights and the tokenizer of "
        "text_model, as in vanilla CLIP. Default: the pretrained text_model.",
    )
    vision_model: str = option("efficientnet-lite0", "Vision encoder: Hub id, folder, or a packaged one.")
    checkpoint: str | None = option(
        None, "MP-CLIP checkpoint to train further, with its weights and config, instead of two towers."
    )
    adaptive_init: list[str] | None = option(
        None,
        "One word per adaptive token; the token starts as the embedding of its word. Surplus words are ignored. Default: "
        "random and distinct.",
    )
    text_tuning: Literal["frozen", "last", "lora", "full"] = option(
        "last",
        "Which weights of the LLM are trained. 'frozen': none. 'last': its last layers (trained_layers). 'lora': LoRA "
        "adapters. 'full': all.",
    )
    trained_layers: Count = option(1, "Number of last layers that text_tuning='last' trains.")
    lora_rank: Count = option(16, "Rank of the LoRA adapters of text_tuning='lora', on all projections of a layer.")
    lora_layers: Count | None = option(
        None, "Number of last layers with LoRA adapters. Hidden states below them can be cached. Default: all layers."
    )
    lora_alpha: Count = option(32, "LoRA alpha: adapters are scaled by alpha / rank.")
    projection_start: Literal["random", "closed_form"] = option(
        "random",
        "What the projections start from. 'closed_form': ridge regression on the states of the towers (ours), from 20,000 "
        "pictures at most. With num_train_epochs 0 it is the whole training.",
    )
    vision_tuning: Literal["frozen", "full"] = option(
        "frozen", "Which weights of the vision encoder are trained: none ('frozen') or all ('full')."
    )

    def __post_init__(self):
        refuse_illegal_values(self, type(self))
        self.templates = self._numbered(self.templates)
        self.negated_templates = self._numbered(self.negated_templates)

    def refuse_missing_sources(self) -> None:
        """Refuse towers and checkpoints that are folders which are not there, and misspelt packaged towers.

        Raises:
            FileNotFoundError, ValueError: as `refuse_misspelt`.
        """
        from mpclip.data.backbones import refuse_misspelt

        named = [self.checkpoint] if self.checkpoint else [self.text_model, self.vision_model, self.text_from_scratch]
        for source in filter(None, named):
            refuse_misspelt(source)

    def _numbered(self, templates: list[str] | None) -> list[str] | None:
        """["[APT-{i}]:"] -> ["[APT-1]:", ..., "[APT-K]:"]. Of other lists, the first K templates."""
        if templates is None or len(templates) != 1 or "{i}" not in templates[0]:
            return templates and templates[: self.num_prompts]
        return [templates[0].replace("{i}", str(i)) for i in range(1, self.num_prompts + 1)]


@dataclass
class DataArguments(ReadingOptions):
    """Where pictures and captions come from."""

    dataset: str | None = option(
        None,
        "Hub id, or folder or file: images with metadata.jsonl or .csv, captions.csv, COCO, Karpathy or Flickr annotations, "
        "webdataset, parquet, or a saved `datasets` folder.",
    )
    video_column: str | None = option(
        None,
        "Train on clips instead of pictures: the column of the videos' paths or names, such as video_id of MSR-VTT, or "
        "file_name of a metadata.jsonl. Needs the package av. Default: the data set has pictures.",
    )
    num_frames: Count = option(NUM_FRAMES, "Frames that are taken of each clip.")
    frame_sampling: Literal["uniform", "keyframes"] = option(
        "uniform",
        "Which frames are taken of a clip. 'uniform': at even distances. 'keyframes': of those that the file stores whole, "
        "which is faster for long clips.",
    )
    check_images: bool = option(
        False,
        "Decode all pictures of the training split before training begins, and leave out (or refuse) those that cannot be read."
        " Default: training begins at once, and a picture that cannot be read is treated as bad_images says when it is needed. "
        "The evaluation split is always checked.",
    )
    streaming: bool = option(
        False,
        "Read the training split shard by shard: webdataset tars, parquet files or a data set of the Hub. Nothing is copied or "
        "read before it is needed (docs/streaming.md).",
    )
    shuffle_buffer: Count = option(
        1000, "Samples, undecoded, that each reader of a stream holds in memory and draws from. 1: the order of the shards."
    )
    samples_per_epoch: Count | None = option(
        None, "Samples of all processes that make an epoch of a stream. Default: all, where their number is known."
    )
    group_column: str | None = option(
        None, "Column whose value names a row's group. Rows of a group share a batch, as hard negatives of one another."
    )
    group_size: Count = option(2, "Number of rows of a group (group_column) that share a batch.")
    train_split: str = option("train", "Split to train on, or a part of it such as 'train[:1000]'.")
    eval_split: str | None = option("validation", "Split to evaluate on. 'none': no evaluation.")
    smallest_crop: Share = option(
        1.0,
        "Smallest area of the random crops to train on, as a share of the image's area. Crops are not mirrored. 1: whole "
        "images. Less than 1 cannot be combined with cached image states.",
    )
    captions_joined: str = option(
        "1",
        "How many captions of a picture make one training text, such as 3, or 1-5 for a number that is drawn anew for each "
        "picture and epoch. Each caption becomes a sentence. Evaluation during training takes each caption alone.",
    )
    joined_draws: Count = option(
        2,
        "Texts that a picture has of each number of joined captions, of other captions or in another order. More texts vary "
        "more, and with cached states they take more space.",
    )
    without_weight: NonNegative = option(
        0.0,
        "Weight of the loss of texts that say what is absent, such as 'a dog without a ball' (ours). Each pair of a batch "
        "brings one that is true of its picture; of which others it is true is told by their captions "
        "(mpclip/data/exclusion_queries.py), or known of OpenMoji scenes. 0: none.",
    )
    max_text_length: Count = option(MAX_TEXT_LENGTH, "Tokens that a caption is cut to. Prompts are not counted.")
    cache_states: bool = option(
        False, "Run frozen towers once and train on their stored states. Texts need adaptive_tokens='boundary'."
    )
    cache_text_states: bool = option(
        True,
        "Whether cache_states also stores states of texts. Set it to false for adaptive_tokens='input', or if all layers of "
        "the LLM are trained.",
    )
    cache_format: Literal["float32", "float16", "bfloat16", "int8"] = option(
        "bfloat16",
        "Dtype of the stored states; precision decides in which they are computed. With 'float32' for both, training equals "
        "training without a cache up to rounding.",
    )
    cache_dir: str = option("runs/cache", "Folder of the stored states. Other runs on the same data reuse them.")

    def __post_init__(self):
        super().__post_init__()
        refuse_illegal_values(self, type(self))
        if self.eval_split == "none":
            self.eval_split = None
        _ = self.joined  # refuses what is no number of captions

    @property
    def joined(self) -> JoinedCaptions:
        """How captions are made into training texts."""
        return JoinedCaptions.of(self.captions_joined, self.joined_draws)


@dataclass
class TrainingDefaults:
    """A learning rate per parameter group, and other defaults than those of transformers' TrainingArguments."""

    output_dir: str = option("runs/mpclip", "Folder of the checkpoints and of the final model.")
    learning_rate: NonNegative = option(
        1e-3, "Learning rate of the newly initialised modules: projections, pooling, logit scale."
    )
    text_learning_rate: NonNegative = option(1e-4, "Learning rate of the LLM's trained layers or adapters.")
    vision_learning_rate: NonNegative = option(1e-5, "Learning rate of the vision encoder.")
    adaptive_learning_rate: NonNegative = option(1e-3, "Learning rate of the adaptive tokens.")
    per_device_train_batch_size: Count = option(
        128,
        "Image-text pairs per step and process. The pairs of all processes are contrasted with one another.",
    )
    forward_chunk: Count | None = option(
        None,
        "Pairs that are embedded at a time. A batch of any size then takes little more memory than one of this many pairs, at "
        "the cost of a second forward pass; the gradients stay the same. Default: the whole batch.",
    )
    forward_chunk_tokens: Count | None = option(
        None,
        "The same by the number of text-side tokens, padding and prompts included, in place of a number of pairs: short texts "
        "then make larger chunks, and long ones cannot overflow the memory.",
    )
    per_device_eval_batch_size: Count = option(64, "Images or texts per batch in evaluation.")
    num_train_epochs: NonNegative = option(
        10.0,
        "Passes over the images. Every pass draws a new caption for each image. 0: none, after projection_start='closed_form'.",
    )
    warmup_steps: NonNegative = option(0.1, "Steps of linear warm-up; below 1, a share of all steps.")
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rates, by its name in transformers.")
    precision: Precision = option(
        "auto",
        "Dtype to compute in; weights are kept in float32. 'auto': the one that this machine computes fastest in. "
        "`python -m mpclip.hardware` shows which one that is.",
    )
    bf16: bool | None = option(None, "The name in transformers: true is precision=bfloat16, false is precision=float32.")
    weight_decay: NonNegative = option(0.05, "Weight decay of matrices. Biases, norms and scales have none.")
    logging_steps: Positive = option(10, "Steps between two log lines; below 1, a share of all steps.")
    eval_strategy: str = option("epoch", "When to evaluate: 'no', 'steps' or 'epoch'.")
    save_strategy: str = option("epoch", "When to save a checkpoint: 'no', 'steps', 'epoch' or 'best'.")
    save_total_limit: Index | None = option(2, "Number of checkpoints to keep, including the best one.")
    load_best_model_at_end: bool = option(True, "End with the best checkpoint instead of the last one.")
    metric_for_best_model: str | None = option("mean_recall", "Metric that decides which checkpoint is the best.")
    greater_is_better: bool | None = option(True, "Whether a higher value of that metric is better.")
    remove_unused_columns: bool = option(False, "Leave it False: the collator needs all columns.")
    dataloader_drop_last: bool = option(True, "Leave out a last batch that is short: it has too few negatives.")
    # None stands first, as in the base class: HfArgumentParser does not understand the type in another order.
    report_to: None | str | list[str] = option("none", "Trackers, such as tensorboard or wandb.")  # noqa: RUF036
