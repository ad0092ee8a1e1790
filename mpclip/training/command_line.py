"""Reads the command line of `train_hf.py`, `[recipe.yaml ...] [--key value ...]`, and writes its help."""

import difflib
from dataclasses import fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from .options import DataArguments, ModelArguments, TrainingDefaults

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
    known = [field.name for cls in classes for field in fields(cls)]
    merged: dict = {}
    while argv and argv[0].endswith((".yaml", ".yml")):
        merged |= read_recipe(Path(argv[0]), known)
        argv = argv[1:]
    parser = _Parser(classes, prog="train_hf.py")
    *parsed, unknown = parser.parse_args_into_dataclasses(_as_arguments(merged) + argv, return_remaining_strings=True)
    if unknown:
        raise ValueError(_unknown_key(unknown[0].removeprefix("--"), "the command line", known))
    return RunOptions(*parsed)


class _Parser(HfArgumentParser):
    def error(self, message: str):
        """Raise a ValueError, as for every other wrong option. argparse would first print the names of all options."""
        raise ValueError(message)


def read_recipe(file: Path, known: list[str]) -> dict:
    """Read a YAML recipe.

    Args:
        file: the recipe.
        known: the keys that it may have.

    Returns:
        key -> value.

    Raises:
        ValueError: the file does not exist or is not a mapping, or a key is unknown; the message names the nearest known one.
    """
    if not file.exists():
        raise ValueError(f"There is no recipe {file}. Give the path of a YAML file; configs/ has the recipes of the project.")
    recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if not isinstance(recipe, dict):
        raise ValueError(f"{file} must be a mapping of option to value, one `key: value` per line.")
    for key in recipe:
        if key not in known:
            raise ValueError(_unknown_key(key, str(file), known))
    return recipe


def help_text(manual: str, every: bool = False) -> str:
    """The help of `train_hf.py`: its manual, followed by its options.

    Args:
        manual: the docstring of `train_hf.py`.
        every: also list the options of transformers' TrainingArguments. This takes some seconds, because it imports torch.
    """
    classes = OWN_OPTIONS
    if every:
        from .arguments import MPCLIPTrainingArguments

        classes = (ModelArguments, DataArguments, MPCLIPTrainingArguments)
    listed = HfArgumentParser(classes, prog="train_hf.py", usage="train_hf.py [RECIPE.yaml ...] [--option VALUE ...]")
    more = "" if every else "\nThe options of transformers.TrainingArguments work too; --help_all lists them.\n"
    return f"{manual}\n{listed.format_help()}{more}"


def _as_arguments(recipe: dict) -> list[str]:
    """A recipe as command line arguments. A value of null removes the value of an earlier recipe."""
    given = {key: value for key, value in recipe.items() if value is not None}
    return [
        part for key, value in given.items() for part in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]


def _unknown_key(key: str, where: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return f"Unknown option {key!r} in {where}. {hint}`python train_hf.py --help_all` lists all options."
