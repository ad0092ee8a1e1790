"""Train an MP-CLIP model on image-text pairs.

    python train_hf.py configs/openmoji_smollm2.yaml
    python train_hf.py configs/flickr8k_smollm2.yaml --dataset path/to/flickr8k --num_train_epochs 5
    python train_hf.py configs/flickr8k_smollm2.yaml configs/systems/mean_pooling.yaml --dataset path/to/flickr8k
    python train_hf.py --text_model Qwen/Qwen3-0.6B --vision_model google/siglip-base-patch16-224 \\
        --dataset my_pictures --train_split "train[:90%]" --eval_split "train[90%:]" \\
        --adaptive_tokens input --text_tuning lora --vision_tuning full --output_dir runs/mine
    accelerate launch train_hf.py configs/flickr8k_smollm2.yaml

A recipe is a YAML mapping of the options below. Several recipes are laid over one another: a setting, then a system of
configs/systems. Options on the command line override them. Unknown options are refused.

What happens: the data set is opened and its images are checked. The two towers are joined, or `--checkpoint` is loaded. What
`--text_tuning` and `--vision_tuning` name is trained, the rest is frozen. With `--cache_states true` the frozen towers run once
and training works on their stored states. Every epoch draws a new caption for each image and ends with recall at 1, 5 and 10,
both ways, over the whole evaluation split.

`--output_dir` receives checkpoint-*/ while training runs, and at the end the best model with its code, processor, metrics
(`eval_results.json`), origin (`training.json`) and model card (`README.md`). With LoRA that is the merged model; a run that
continued a `--checkpoint` also leaves adapter/, which belongs on that checkpoint.

An interrupted run goes on from its last checkpoint when it is started again. `--resume_from_checkpoint false` starts anew and
moves the old checkpoints to `--output_dir`/_earlier-1/.

`--push_to_hub true --hub_model_id you/model` pushes the final model; `--hub_strategy` every_save, checkpoint or all_checkpoints
also pushes while training. A repository that cannot be written to is refused at the start. A push that fails later ends no
training: in between it is logged; at the end the model is saved, the command that repeats the push is shown, and the exit
status is 1.
"""

import sys

from mpclip.training.command_line import help_text, parse_options


def main(argv: list[str] | None = None, prog: str = "train_hf.py") -> dict[str, float]:
    """Train as the command line says.

    Args:
        argv: as on the command line, without the program's name.
        prog: that name, for errors.

    Returns:
        The final metrics.

    Raises:
        SystemExit: an option, a file or a repository is not what it should be; the message says which and what to do.
    """
    argv = sys.argv[1:] if argv is None else argv
    if asked := {"-h", "--help", "--help_all"} & set(argv):
        print(help_text(__doc__, every="--help_all" in asked))
        return {}

    import logging

    from model_card.card import write_card
    from mpclip.training.hub_push import PushFailed
    from mpclip.training.resume import OtherRun
    from mpclip.training.run import build_trainer, train

    try:
        options = parse_options(argv)
        logging.basicConfig(format="%(message)s")
        logging.getLogger("train_hf").setLevel(logging.INFO if options.training.should_log else logging.WARNING)
        trainer = build_trainer(options, write_card=write_card)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{prog}: {error}") from error
    try:
        return train(trainer, options=options, command=["python", "train_hf.py", *argv])
    except (OtherRun, PushFailed) as error:
        raise SystemExit(f"{prog}: {error}") from error


if __name__ == "__main__":
    main()
