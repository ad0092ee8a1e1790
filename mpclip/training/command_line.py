"""Reads the command line of `train_hf.py`, `[recipe.yaml ...] [--key value ...]`, and writes its help."""

from pathlib import Path
from typing import get_type_hints

from transformers import HfArgumentParser

from .options import DataArguments, ModelArguments, TrainingDefaults
from .recipes import read_recipe, unknown_option

OWN_OPTIONS = (ModelArguments, DataArguments, TrainingDefaults)


def parse_options(argv: list[str]):
    """Read the command line of `train_hf.py`. A later value overrides an earlier one.

    Args:
        argv: recipes first, then options. Several recipes are usually a setting (towers, data, schedule) and a system of
            configs/systems, which changes some of its values.

    Returns:
        [`RunOptions`].

    Raises:
        ValueError: a key is unknown, in a recipe or on the command line; the message names the nearest known one. Or a value is
            not legal.
    """
    from .arguments import MPCLIPTrainingArguments, RunOptions  # imports torch

    classes = (ModelArguments, DataArguments, MPCLIPTrainingArguments)
    kinds = {name: kind for cls in classes for name, kind in get_type_hints(cls).items() if not name.startswith("_")}
    parser = _Parser(classes, prog="train_hf.py")
    recipes: dict[str, list[str] | None] = {}
    while argv and argv[0].endswith((".yaml", ".yml")):
        recipes |= read_recipe(Path(argv[0]), kinds, parser)
        argv = argv[1:]
    given = [word for words in recipes.values() for word in words or ()]  # null removes the value of an earlier recipe
    *parsed, unknown = parser.parse_args_into_dataclasses([*given, *argv], return_remaining_strings=True)
    if unknown:
        if unknown[0].endswith((".yaml", ".yml")):
            raise ValueError(f"The recipe {unknown[0]} stands behind an option. Give recipes first, then options.")
        raise ValueError(unknown_option(unknown[0].removeprefix("--"), "the command line", list(kinds)))
    return RunOptions(*parsed)


class _Parser(HfArgumentParser):
    def add_argument(self, *names, **kwargs):
        """As the base class does, but a list may be empty."""
        return super().add_argument(*names, **(kwargs | ({"nargs": "*"} if kwargs.get("nargs") == "+" else {})))

    def error(self, message: str):
        """Raise a ValueError, as for every other wrong option. argparse would first print the names of all options."""
        raise ValueError(message)


def help_text(manual: str, prog: str, every: bool = False) -> str:
    """The help of `train_hf.py`: its manual, followed by its options.

    Args:
        manual: the docstring of `train_hf.py`.
        prog: name of the command.
        every: also list the options of transformers' TrainingArguments. This takes some seconds, because it imports torch.
    """
    classes = OWN_OPTIONS
    if every:
        from .arguments import MPCLIPTrainingArguments

        classes = (ModelArguments, DataArguments, MPCLIPTrainingArguments)
    listed = HfArgumentParser(classes, prog=prog, usage=f"{prog} [RECIPE.yaml ...] [--option VALUE ...]")
    more = "" if every else "\nThe options of transformers.TrainingArguments work too; --help_all lists them.\n"
    return f"{manual}\n{listed.format_help()}{more}"
