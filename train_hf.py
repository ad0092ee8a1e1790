"""Train an MP-CLIP model on image-text pairs.

    mpclip train --dataset my_photos --train_split "train[:90%]" --eval_split "train[90%:]" --output_dir runs/mine
    mpclip train configs/flickr8k_smollm2.yaml --dataset path/to/flickr8k --num_train_epochs 5
    mpclip train configs/flickr8k_smollm2.yaml configs/systems/mean_pooling.yaml --dataset path/to/flickr8k
    mpclip train --text_model Qwen/Qwen3-0.6B --vision_model google/siglip-base-patch16-224 \\
        --dataset my_photos --train_split "train[:90%]" --eval_split "train[90%:]" \\
        --adaptive_tokens input --text_tuning lora --vision_tuning full --output_dir runs/mine
    accelerate launch train_hf.py configs/flickr8k_smollm2.yaml     # `mpclip train` is train_hf.py

A recipe is a YAML file that maps options to values. A later recipe overrides an earlier one: give a setting first, then a
system of configs/systems. Options on the command line override all recipes. Unknown options are refused.

A run opens the data set; pictures are read when they are needed (`--check_images true`: all before training), and with
`--streaming true` the shards of the data set one after another (docs/streaming.md). It joins the two towers, or loads
`--checkpoint`. It trains the weights that `--text_tuning` and `--vision_tuning` select, and the new modules; all other weights
are frozen. With `--cache_states true` the frozen towers run once, and training works on their stored states. Every epoch draws
a new caption for each image. It ends with an evaluation: recall at 1, 5 and 10 over the whole evaluation split, from texts to
images and from images to texts.

`--output_dir` receives checkpoint-*/ during training. At the end it receives the best model with its code and processor, the
metrics (`eval_results.json`), the record of the run (`training.json`) and the model card (`README.md`). With LoRA the model is
the merged one. If such a run continued a `--checkpoint`, the adapter for that checkpoint is saved to adapter/.

To resume an interrupted run, start it again: it continues from its last complete checkpoint. `--resume_from_checkpoint false`
starts a new run instead and moves the old checkpoints to `--output_dir`/_earlier-1/. Ctrl-C and SIGTERM end a run after the
current step, with a checkpoint. A second run in the same folder is refused. A run that is finished is not run again.

A loss, a gradient or a weight that is NaN or infinite ends the run, and nothing of it is saved.

`--push_to_hub true --hub_model_id you/model` pushes the final model. `--hub_strategy` every_save, checkpoint or all_checkpoints
also pushes during training. A repository that cannot be written to is refused at the start. A push that fails later does not
end the training. During training the failure is logged. At the end the model is saved, the command that repeats the push is
shown, and the exit status is 1.
"""

import signal
import sys
from pathlib import Path

from mpclip.stop import StopSignals
from mpclip.training.command_line import help_text, parse_options


def main(argv: list[str] | None = None, prog: str = "train_hf.py") -> dict[str, float]:
    """Train with the options of a command line.

    Args:
        argv: as on the command line, without the name of the program.
        prog: that name, for errors.

    Returns:
        The final metrics by name; {} for `--help`.

    Raises:
        SystemExit: an option, a file or a repository cannot be used; the message names it and says what to do. Or a signal has
            ended the run.
    """
    argv = sys.argv[1:] if argv is None else argv
    if asked := {"-h", "--help", "--help_all"} & set(argv):
        print(help_text(__doc__, prog, every="--help_all" in asked))
        return {}
    with StopSignals() as signals:
        try:
            return _run(argv, prog, signals)
        except KeyboardInterrupt as stopped:  # before the options were read
            raise _exit(stopped, prog, "Stopped. The run had not begun.") from None


def _run(argv: list[str], prog: str, signals: StopSignals) -> dict[str, float]:
    import logging
    from contextlib import nullcontext

    from model_card.card import write_card
    from mpclip.training.finite import NotFinite
    from mpclip.training.folder_lock import locked
    from mpclip.training.hub_push import PushFailed
    from mpclip.training.resume import OtherRun, find_start, how_to_go_on, results_of_finished
    from mpclip.training.run import build_trainer, train

    options, expected = None, (ValueError, OSError)
    try:
        options = parse_options(argv)
        arguments, folder = options.training, Path(options.training.output_dir)
        logging.basicConfig(format="%(message)s")
        logging.getLogger("train_hf").setLevel(logging.INFO if arguments.should_log else logging.WARNING)
        with locked(folder) if arguments.process_index == 0 else nullcontext():
            start = find_start(options)
            if start.finished and not arguments.push_to_hub:
                return results_of_finished(folder)
            trainer = build_trainer(options, write_card=write_card)
            expected = (OtherRun, NotFinite, PushFailed, OSError)  # any other error is a fault of ours, and keeps its traceback
            return train(trainer, options=options, command=["python", "train_hf.py", *argv], start=start, signals=signals)
    except expected as error:
        raise SystemExit(f"{prog}: {error}") from error
    except KeyboardInterrupt as stopped:
        if options is None:
            raise
        raise _exit(stopped, prog, how_to_go_on(options, argv, prog)) from None


def _exit(stopped: KeyboardInterrupt, prog: str, told: str) -> SystemExit:
    """The exit status of a program that a signal has ended is 128 plus the signal's number, as in shells."""
    print(f"{prog}: {told}", file=sys.stderr)
    return SystemExit(128 + getattr(stopped, "number", signal.SIGINT))


if __name__ == "__main__":
    main()
