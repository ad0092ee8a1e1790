"""Types of command-line options, for `type=` of argparse."""

import argparse


def count(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is none; argparse puts the name of the option before the message.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range: expected a whole number of at least 1")
    return int(text)
