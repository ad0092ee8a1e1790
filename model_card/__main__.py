"""Write the model card of a checkpoint: README.md, and a picture of what each prompt sees.

    mpclip card runs/mine
    mpclip eval retrieval --model runs/mine --data my_pictures --split test --json test.json
    mpclip card runs/mine --eval test.json --repo_id you/mine
    mpclip card runs/mine_text --source runs/mine

train_hf.py writes the card at the end of every run. Write it again to add results or to change the model's name. The card is
made of these files of the folder; what they do not record, the card calls unknown:

    config.json         prompts, embedding, loss
    training.json       base models, data, options, commit, command, machine
    train_results.json  training time
    eval_results.json   the evaluation at the end of training
    --eval files        results of `python -m eval`, which must be of this model

With --source, the command writes the short card of a text-only export or an int8 checkpoint. It says which checkpoint was
changed and how. Licence, base model and recalls are read from the card of that checkpoint, which must have one.

The picture assets/maps.png is kept if it exists. Delete it to have it drawn again.
"""

import argparse

from mpclip.command import start


def main(arguments: list[str] | None = None, prog: str = "python -m model_card") -> None:
    """The command.

    Args:
        arguments: words of the command line; None takes those of the process.
        prog: name of the command in messages.

    Raises:
        SystemExit: code 2 and a message, if the folder or a file is not what the command takes.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="RUN_FOLDER", help="folder of a checkpoint, such as an --output_dir of train_hf.py")
    parser.add_argument(
        "--eval",
        nargs="+",
        action="extend",
        default=[],
        metavar="result.json",
        help="results of `python -m eval retrieval` and `differences`",
    )
    parser.add_argument("--out", metavar="README.md", help="the card's file (default: README.md in RUN_FOLDER)")
    parser.add_argument(
        "--repo_id", metavar="you/name", help="name that the snippets load (default: hub_model_id, or the folder's name)"
    )
    parser.add_argument("--source", metavar="CHECKPOINT", help="folder or Hub id of the checkpoint RUN_FOLDER was made from")
    options = parser.parse_args(arguments)
    given = {"evaluations": options.eval, "out": options.out, "repo_id": options.repo_id}

    from .card import write_card  # imports torch
    from .derived import write_derived_card

    try:
        if options.source:
            card = write_derived_card(options.folder, options.source, **given)
        else:
            card = write_card(options.folder, **given)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"written: {card}")


if __name__ == "__main__":
    start(main)
