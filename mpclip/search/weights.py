"""Aspect weights on the command line, and the names of aspects. This module imports no torch.

An aspect is one of the K prompts of a model, or the segment of an embedding that it gives. Its name is what its template does
not share with the others: of "The color of this image means:" and "The action of this image means:", color and action.
"""

import re
from collections.abc import Sequence
from itertools import takewhile

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def aspect_names(templates: Sequence[str], words: Sequence[str] | None = None) -> list[str]:
    """A name for each prompt of a model; its number where the templates give none.

    Args:
        templates: of the K prompts, with adaptive tokens [APT-1], ...
        words: those that the adaptive tokens were initialised from, if known. They stand for the tokens.
    """
    split = [template.split() for template in filled_templates(templates, words)]
    first = _shared(split)
    last = _shared([parts[first:][::-1] for parts in split])
    names = [" ".join(parts[first : len(parts) - last]).strip(" .,:;") for parts in split]
    if not all(names) or len({name.lower() for name in names}) < len(names):
        return [str(k) for k in range(1, len(templates) + 1)]
    return names


def filled_templates(templates: Sequence[str], words: Sequence[str] | None = None) -> list[str]:
    """Templates as people read them: [APT-1] becomes the word that it was initialised from, or APT-1 if that is not known."""

    def filled(token: re.Match) -> str:
        n = int(token[1])
        return words[n - 1] if words and n <= len(words) else f"APT-{n}"

    return [re.sub(r"\[APT-(\d+)\]", filled, template) for template in templates]


def _shared(split: list[list[str]]) -> int:
    """How many words several lists have in common at their beginning; 0 for a single list."""
    same = takewhile(lambda words: len(set(words)) == 1, zip(*split, strict=False))
    return sum(1 for _ in same) if len(split) > 1 else 0


def listed(names: Sequence[str]) -> str:
    """The aspects with their numbers: "1 color, 2 action"."""
    return ", ".join(f"{k} {name}" if name != str(k) else name for k, name in enumerate(names, start=1))


def split_off(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows --weights: the weights, and the queries after them.

    Weights are one word of numbers ("1,1,1.5"), some words NAME=NUMBER, or, as in earlier versions, a word per number.
    """
    number, named = re.compile(NUMBER), re.compile(rf"[^=]+={NUMBER}(,[^=]+={NUMBER})*")
    if re.fullmatch(rf"{NUMBER}(,{NUMBER})+,?", words[0]):
        count = 1
    else:
        form = named if "=" in words[0] else number
        count = len(list(takewhile(form.fullmatch, words)))
    return list(words[:count]), list(words[count:])


def read_weights(words: Sequence[str], names: Sequence[str]) -> list[float]:
    """The weights of all K aspects.

    Args:
        words: of the command line, as from `split_off`.
        names: of the aspects.

    Returns:
        K numbers. Aspects that are not named have the weight 1.

    Raises:
        ValueError: not K numbers, or no aspect of that name.
    """
    given = " ".join(words)
    parts = [part.strip() for word in words for part in word.split(",") if part.strip()]
    how = f"give a number for each aspect, such as {','.join(['1'] * len(names))}, or some by name, such as {names[0]}=1.5"
    if not any("=" in part for part in parts):
        if len(parts) != len(names):
            raise ValueError(
                f"--weights {given}: {len(parts)} numbers for {len(names)} aspects ({listed(names)}): {how}. If a query that "
                "follows is a number, join the weights by commas"
            )
        return [float(part) for part in parts]
    places = {name.lower(): k for k, name in enumerate(names)} | {str(k + 1): k for k in range(len(names))}
    weights = [1.0] * len(names)
    for part in parts:
        name, _, value = part.partition("=")
        if name.strip().lower() not in places:
            raise ValueError(f"--weights {given}: no aspect {name!r}; this model has {listed(names)}: {how}")
        weights[places[name.strip().lower()]] = float(value)
    return weights
