"""`RunOptions`: all options of a training run, those of transformers' `TrainingArguments` included."""

from dataclasses import dataclass

import torch
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_torch_xla_available

from modeling_mpclip.model_options import Range, refuse_illegal_values, refuse_out_of_range
from mpclip.hardware import best_device, choose_precision

from .options import DataArguments, ModelArguments, TrainingDefaults

# The legal values of those numbers of TrainingArguments that `TrainingDefaults` does not declare.
INHERITED_RANGES = {
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "dataloader_prefetch_factor"), Range(least=1)),
    **dict.fromkeys(("eval_steps", "eval_delay", "max_grad_norm", "adam_epsilon", "dataloader_num_workers"), Range(least=0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Range(least=0, below=1)),
    **dict.fromkeys(("seed", "data_seed"), Range(least=0, most=2**32 - 1)),
    "save_steps": Range(above=0),
    "max_steps": Range(least=-1),  # -1: num_train_epochs decides
}
# Tracker -> what pip installs, where the names differ by more than "_".
PACKAGES = {"azure_ml": "azureml-core", "dagshub": "dagshub mlflow", "flyte": "flytekit flytekitplugins-deck-standard"}


@dataclass
class MPCLIPTrainingArguments(TrainingDefaults, TrainingArguments):
    """`transformers.TrainingArguments` with a learning rate per parameter group and defaults for contrastive training.

    Attributes:
        precision_asked: `precision` as it was given, "auto" or a dtype; `precision` itself is the dtype that is computed in.

    Raises:
        ValueError: a number is out of its range, or a tracker is not installed; the message names it.
    """

    def __post_init__(self):
        refuse_illegal_values(self, TrainingDefaults)
        for name, legal in INHERITED_RANGES.items():
            refuse_out_of_range(name, getattr(self, name), legal)
        # transformers takes the best device by itself, but refuses bf16 on a machine without any unless use_cpu is set.
        self.use_cpu = self.use_cpu or not (torch.accelerator.is_available() or is_torch_xla_available())
        self._set_precision()
        super().__post_init__()
        for tracker in self.report_to:
            _refuse_missing(tracker)

    @property
    def without_steps(self) -> bool:
        """Whether no step is made, because projection_start="closed_form" is the whole training."""
        return self.num_train_epochs == 0 and self.max_steps < 1

    def _set_precision(self) -> None:
        """Settle `precision`, and the options that transformers has in its place."""
        given = {"bfloat16": self.bf16, "float16": self.fp16, "float32": self.bf16 is False and not self.fp16}
        named = next((dtype for dtype, is_given in given.items() if is_given), "auto")
        if self.precision != "auto" and named not in ("auto", self.precision):
            raise ValueError(f"precision={self.precision!r} contradicts bf16={self.bf16}, fp16={self.fp16}: give one of them.")
        self.precision_asked = named if named != "auto" else self.precision
        self.compute_in(choose_precision(self.precision_asked, "cpu" if self.use_cpu else best_device()))

    def compute_in(self, dtype: str) -> None:
        """Set the dtype that is computed in, by all names that it has in transformers.

        Args:
            dtype: "float32", "bfloat16" or "float16".
        """
        self.precision = dtype
        self.bf16, self.fp16 = dtype == "bfloat16", dtype == "float16"
        self.mixed_precision = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "no")


def _refuse_missing(tracker: str) -> None:
    """Raise a ValueError if a tracker is unknown or not installed. Trainer would do so after the data are prepared."""
    try:
        (callback,) = get_reporting_integration_callbacks([tracker])
        callback()
    except ValueError as error:  # unknown
        raise ValueError(f"--report_to: {error}") from error
    except (ImportError, RuntimeError) as error:
        package = PACKAGES.get(tracker, tracker.replace("_", "-"))
        raise ValueError(f"--report_to {tracker}: not installed. Run `pip install {package}`, or leave it out.") from error


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
