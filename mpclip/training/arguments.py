"""What a training run is told: the options of its model, of its data, and of the training itself."""

from dataclasses import dataclass

from transformers import TrainingArguments

from .options import DataArguments, ModelArguments, TrainingDefaults


@dataclass
class MPCLIPTrainingArguments(TrainingDefaults, TrainingArguments):
    """`transformers.TrainingArguments` with a learning rate per group and defaults for contrastive training."""


@dataclass
class RunOptions:
    """All options of a run.

    Attributes:
        model: which towers, how they are joined, what is trained.
        data: pictures, captions, cached states.
        training: schedule, batches, saving, pushing.
    """

    model: ModelArguments
    data: DataArguments
    training: MPCLIPTrainingArguments
