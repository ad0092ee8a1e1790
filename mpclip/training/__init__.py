"""Training: its options, a run from options to a saved model, the Trainer, and cached states of frozen towers.

In Python, use [`MPCLIPTrainer`] with your own `datasets.Dataset`. On the command line, use `train_hf.py`, which calls run.py. A
name below is imported on first use, so that `--help` does not load torch.
"""

import importlib

MODULES = {
    "ImageTextDataset": "mpclip.data.image_text",
    "MPCLIPCollator": "mpclip.training.collator",
    "MPCLIPTrainer": "mpclip.training.trainer",
    "MPCLIPTrainingArguments": "mpclip.training.arguments",
    "ModelArguments": "mpclip.training.options",
    "build_trainer": "mpclip.training.run",
    "parse_options": "mpclip.training.command_line",
    "prepare_tuning": "mpclip.training.tuning",
    "train": "mpclip.training.run",
}
__all__ = list(MODULES)


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES[name]), name)
