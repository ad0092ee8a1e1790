"""`RunOptions`: all options of a training run, those of transformers' `TrainingArguments` included."""

from dataclasses import dataclass

from transformers import TrainingArguments

from .options import DataArguments, ModelArguments, TrainingDefaults


@dataclass
class MPCLIPTrainingArguments(TrainingDefaults, TrainingArguments):
    """`transformers.TrainingArguments` with a learning rate per parameter group and defaults for contrastive training."""


@dataclass
class RunOptions:
    """All options of a run.

    Attributes:
        model: which towers, how they are joined, which of their weights are trained.
        data: pictures, captions, cached states.
        training: schedule, batches, saving, pushing to the Hub.
    """

    model: ModelArguments
    data: DataArguments
    training: MPCLIPTrainingArguments
