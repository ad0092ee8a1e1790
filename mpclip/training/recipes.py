"""Reads a recipe: a YAML file of options, one `key: value` per line. What YAML reads otherwise than it was meant is refused."""

import difflib
import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

TAG = "tag:yaml.org,2002:"
# Their words "true" and "false" are values, although their type is a text.
TAKE_TRUTH_AS_TEXT = ("resume_from_checkpoint",)


def read_recipe(file: Path, kinds: dict[str, Any], parser: ArgumentParser) -> dict[str, list[str] | None]:
    """Read a recipe.

    Args:
        file: the recipe.
        kinds: the options that it may set: name -> type.
        parser: converts the words of an option; its errors are ValueErrors.

    Returns:
        Option -> the words of a command line that set it; None for a value of null.

    Raises:
        ValueError: there is no such file, it is no recipe, or an option is unknown, given twice or has a value of another kind.
            The message names file and line.
    """
    words: dict[str, list[str] | None] = {}
    lines: dict[str, int] = {}
    loader, root = _parse(file)
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        where = f"{file}, line {line}"
        key = key_node.value
        if key_node.tag != TAG + "str":
            raise ValueError(f"{where}: got {_shown(key_node)}, expected the name of an option.")
        if key not in kinds:
            raise ValueError(unknown_option(key, where, list(kinds)))
        if key in words:
            raise ValueError(f"{where}: {key} is given a second time, the first is on line {lines[key]}. Keep one of them.")
        lines[key] = line
        try:
            words[key] = _words(key, value_node, kinds[key], loader)
            if words[key] is not None:
                parser.parse_known_args(words[key])
        except ValueError as error:
            raise ValueError(f"{where}: {key}: {str(error).removeprefix('argument --').partition(': ')[2] or error}") from error
    return words


def unknown_option(key: str, where: str, known: list[str]) -> str:
    """The message for an unknown option. It names the nearest known one.

    Args:
        key: the unknown name.
        where: where it stands, such as a file.
        known: the names of all options.
    """
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return f"Unknown option {key!r} in {where}. {hint}`python train_hf.py --help_all` lists all options."


def _parse(file: Path) -> tuple[yaml.SafeLoader, yaml.MappingNode]:
    """The loader and the top-level mapping of a YAML file."""
    if not file.is_file():
        raise ValueError(f"There is no recipe {file}. Give the path of a YAML file; configs/ has the recipes of the project.")
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        if "'\\t'" in str(error.problem):
            raise ValueError(f"{file}, line {line}: there is a tab. Use spaces instead.") from error
        raise ValueError(
            f"{file}, line {line}: this is not YAML ({error.problem}). Write one `key: value` per line, texts with a colon, "
            "a # or brackets in quotes."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}.") from error
    if root is None:
        raise ValueError(f"{file} is empty. Write one `key: value` per line, or leave it out.")
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{file} must be a mapping of option to value, one `key: value` per line; it is {_shown(root)}.")
    return loader, root


def _words(key: str, node: yaml.Node, kind: Any, loader: yaml.SafeLoader) -> list[str] | None:
    """The words of a command line that give an option the value of a node; None for null.

    Raises:
        ValueError: the value is of another kind than the option.
    """
    kinds = {kind, *get_args(kind)}  # of `list[str] | None`: the union itself, list[str], None
    if node.tag == TAG + "null":
        return None
    if isinstance(node, yaml.MappingNode):
        if dict not in kinds:
            raise ValueError(f"got {_shown(node)}, expected one value. If it is a text with a colon, put it in quotes.")
        return [f"--{key}={json.dumps(loader.construct_object(node, deep=True))}"]
    if isinstance(node, yaml.SequenceNode):
        if not any(list in (one, get_origin(one)) for one in kinds) or str in kinds:
            raise ValueError(f"got {_shown(node)}, expected one value. If it is a text with brackets, put it in quotes.")
        return [f"--{key}", *(_text(key, item, {str}, loader) for item in node.value)]
    return [f"--{key}={_text(key, node, kinds, loader)}"]


def _text(key: str, node: yaml.Node, kinds: set, loader: yaml.SafeLoader) -> str:
    """A scalar as it is written on a command line. Numbers are converted; texts stay as they stand in the file."""
    if not isinstance(node, yaml.ScalarNode) or node.tag == TAG + "null":
        raise ValueError(f"got {_shown(node)} in the list, expected a text.")
    if node.tag == TAG + "bool" and bool not in kinds and key not in TAKE_TRUTH_AS_TEXT:
        if {int, float} & kinds:
            raise ValueError(f"got {_shown(node)}, expected a number.")
        raise ValueError(f'got {_shown(node)}, expected a text. Write "{node.value}" in quotes.')
    if node.tag in (TAG + "bool", TAG + "int", TAG + "float") and str not in kinds:
        return str(loader.construct_object(node))
    return node.value


def _shown(node: yaml.Node) -> str:
    """What a node is, in words."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    kinds = {"bool": ", which YAML reads as true or false", "int": ", a number", "float": ", a number", "null": ", nothing"}
    return f"{node.value!r}{kinds.get(node.tag.removeprefix(TAG), '')}"
