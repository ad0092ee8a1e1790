"""The model card of a checkpoint: README.md, and beside it a picture of what each prompt looks at.

    python -m model_card runs/mine
    python -m eval retrieval --model runs/mine --data my_pictures --split test --json test.json
    python -m model_card runs/mine --eval test.json --repo_id you/mine

    python -m model_card runs/mine_text --source runs/mine

train_hf.py writes the card at the end of every run. Write it again to show what was measured since, or under another name.
Everything in it is read from the folder: config.json (prompts, embedding, loss), training.json (base models, data, options,
commit, command, machine), train_results.json (time), eval_results.json, and the --eval files, which must
measure this model. What is not recorded is said to be unknown.

With --source it is the short card of a text-only export or an int8 checkpoint: what was done to which checkpoint, whose recalls
are shown as the source's. They, the licence and the base model come from the card of the source, which must have one.

assets/attention.png is kept if it exists; delete it to have it drawn again.
"""

import argparse


def main(arguments: list[str] | None = None, prog: str = "python -m model_card") -> None:
    """The command. Exits with code 2 and a message where the folder or a file is not what it should be."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="RUN_FOLDER", help="a checkpoint: the --output_dir of train_hf.py")
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
        "--repo_id", metavar="you/name", help="what the snippets load (default: hub_model_id, or the folder's name)"
    )
    parser.add_argument("--source", metavar="CHECKPOINT", help="folder or Hub id of what RUN_FOLDER was made from")
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
    main()
