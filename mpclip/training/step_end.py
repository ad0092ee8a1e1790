"""Ends a training that a signal has stopped: after a step, with a checkpoint from which it resumes exactly."""

import signal

from transformers import TrainerCallback

from mpclip.stop import StopSignals


class StopAtStepEnd(TrainerCallback):
    """Saves a checkpoint at the end of the step in which a signal was received, and ends the training.

    After the last step of an epoch, the evaluation and the checkpoint of that epoch come first. Otherwise the resumed run would
    lack that evaluation, and could choose another best checkpoint. All processes stop at the same step.

    Args:
        trainer: [`MPCLIPTrainer`].
        signals: what was received.

    Attributes:
        before_the_end: whether the training was ended, and steps are left.
    """

    def __init__(self, trainer, signals: StopSignals):
        self.trainer, self.signals = trainer, signals
        self.stops = self.saved = self.before_the_end = False

    @property
    def signal(self) -> int | None:
        """The signal that this process, or another one, has received; None if there was none."""
        return self.signals.received or (signal.SIGTERM if self.stops else None)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask all processes; save, unless the epoch ends here."""
        received = self.signals.received is not None
        if args.world_size > 1:
            if received:
                self.trainer.accelerator.set_trigger()
            received = self.trainer.accelerator.check_trigger()
        self.stops = self.stops or received
        if self.stops and not float(state.epoch).is_integer():
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """Evaluate and save only if the epoch has come to its end."""
        if self.saved:
            control.should_evaluate = control.should_save = False
        elif self.stops:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        """End the training after the checkpoint."""
        if self.stops:
            self.before_the_end = state.global_step < state.max_steps
            self.saved = control.should_training_stop = True
