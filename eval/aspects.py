"""Aspect weights of a task, by name or number as in `mpclip search`."""

import argparse
from collections.abc import Sequence


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the option --weights."""
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="WEIGHT",
        help="aspect weights of the texts: a number for each prompt, such as 1,1,1.5, or some by name, such as color=1.5",
    )


def weights_of(encoder, words: Sequence[str] | None) -> list[float] | None:
    """The weights that --weights gives.

    Args:
        encoder: an `mpclip.encoding.Encoder`.
        words: of the command line, or None.

    Returns:
        A number for each of the K segments; None without --weights.

    Raises:
        ValueError: not K numbers, no aspect of that name, or K is 1.
    """
    if words is None:
        return None
    if encoder.segments == 1:
        raise ValueError(
            f"--weights: {encoder.name} has no segments that stand for a prompt each, which could be weighted: leave it out"
        )
    from mpclip.search.weights import read_weights

    return read_weights(words, names_of_aspects(encoder))


def names_of_aspects(encoder) -> list[str]:
    """A name for each of the K prompts of an encoder's model, as `mpclip search` names them.

    Args:
        encoder: an `mpclip.encoding.Encoder`.
    """
    from mpclip.search.queries import initial_words
    from mpclip.search.weights import aspect_names

    config = getattr(getattr(encoder, "model", None), "config", None)
    templates = getattr(config, "templates", None) or []
    if len(templates) != encoder.segments:  # a model without prompts
        templates = [f"[APT-{k}]" for k in range(1, encoder.segments + 1)]
    return aspect_names(templates, initial_words(encoder.name))
