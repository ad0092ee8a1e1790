"""What [`MPCLIPTrainer`] does in every training, at steps and epochs."""

import math

import torch
from transformers import TrainerCallback

from modeling_mpclip.modeling_mpclip import LogitScale


class BoundLogitScale(TrainerCallback):
    """Keeps the logit scale just below its clamp. At the clamp its gradient is 0, and the scale could never decrease again."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        for module in model.modules():
            if isinstance(module, LogitScale):
                with torch.no_grad():
                    module.log_scale.clamp_(max=math.log(LogitScale.MAX_SCALE) - 1e-5)


class SetEpoch(TrainerCallback):
    """Tells the data set which epoch begins, so that it draws other captions.

    accelerate does so only in a job of one process, and not where a run resumes within an epoch.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))
