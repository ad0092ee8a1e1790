"""Measure a trained model.

    mpclip eval retrieval --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json out.json --grid out.png
    mpclip eval retrieval --model openai/clip-vit-base-patch32 --data jxie/flickr8k --split test --json clip.json
    mpclip eval differences --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json differences.json
    mpclip eval retrieval --model runs/demo/single_prompt runs/demo/multi_prompt --data my_photos --split test --json results
    mpclip eval compare results/single_prompt.json results/multi_prompt.json --plot differences.png
    accelerate launch -m eval retrieval --model ...

The JSON file holds the metrics, their 95% bootstrap intervals, and how the run is repeated. The scores of single items are
written beside it, to OUT.items.npz. Several models give one table, with the paired difference of each to the first. Embeddings
are kept on disk, so a run that was stopped or killed goes on, and another task on the same data takes seconds. The Python files
of a checkpoint are run: measure only checkpoints that you trust.

`mpclip eval TASK --help` explains a task and its metrics.
"""

import argparse
import importlib
import sys

from eval.options import add_common_options, add_compare_options
from mpclip.cli import manual
from mpclip.command import Stoppable

# Task -> module and class. The first line of the module's docstring is the task's line in the help.
TASKS = {
    "retrieval": "eval.tasks.retrieval:Retrieval",
    "differences": "eval.tasks.differences:Differences",
    "exclusion": "eval.tasks.exclusion:Exclusion",
    "prompts": "eval.tasks.prompts:Prompts",
    "segments": "eval.tasks.segments:Segments",
    "sts": "eval.tasks.sts:SentencePairs",
    "zero_shot": "eval.tasks.zero_shot:ZeroShot",
    "human": "eval.tasks.human:Human",
    "composition": "eval.tasks.composition:Composition",
    "video": "eval.tasks.video:Video",
    "pointing": "eval.tasks.pointing:Pointing",
}


def task_class(name: str) -> type:
    """The class of a task of `TASKS`; imports its module."""
    module, _, cls = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def make_parser(prog: str = "python -m eval") -> argparse.ArgumentParser:
    """The parser of the command: a subcommand for each task.

    Args:
        prog: name of the command in messages.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(metavar="TASK", required=True, dest="task")
    for name in TASKS:
        cls = task_class(name)
        doc = sys.modules[cls.__module__].__doc__
        one = tasks.add_parser(
            name, help=doc.splitlines()[0], description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_common_options(one, cls.takes)
        cls.add_options(one)
    doc = manual("eval.compare")
    add_compare_options(
        tasks.add_parser(
            "compare", help=doc.splitlines()[0], description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
    )
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m eval") -> None:
    """The command.

    Args:
        arguments: words of the command line; None takes those of the process.
        prog: name of the command in messages.

    Raises:
        SystemExit: code 2 for a wrong command line; code 1 and one line for an error that the user can fix; 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with Stoppable(prog, arguments) as stoppable:
        _run(arguments, prog, stoppable)


def _run(arguments: list[str], prog: str, stoppable: Stoppable) -> None:
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    try:
        if options.task == "compare":
            from eval.compare import compare

            print(compare(options.first, options.second, task_class, options.plot))
            if options.plot:
                print(f"\nwritten: {options.plot}")
            return
        from eval.evaluate import cache_of, evaluate, finish_job, report

        if cache := cache_of(options):
            stoppable.kept = f"Embeddings are kept in {cache}, but for those of the last half minute."
        results = evaluate(options, task_class(options.task), ["python", "-m", "eval", *arguments])
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog} {options.task}: {' '.join(str(error).split())}") from error
    if finish_job():
        print(report(results, options, task_class(options.task)))


if __name__ == "__main__":
    main()
