"""Training: options, a run from them, the Trainer, cached states of frozen towers.

From Python, with your own `datasets.Dataset`: [`MPCLIPTrainer`]. From the command line: `train_hf.py`, over `run.py` here. The
names below are imported when they are first used, so that a command's help loads no torch.
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
