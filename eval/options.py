"""The options that all tasks of `python -m eval` share."""

import argparse

from mpclip.argument_types import count
from mpclip.data.reading import add_reading_options
from mpclip.hardware import add_precision, usable_device


def add_common_options(parser: argparse.ArgumentParser, takes: str) -> None:
    """Add the options for model, data, result and computation.

    Args:
        parser: of the task.
        takes: which data the task takes, in words; the help text of --data.
    """
    parser.add_argument(
        "--model",
        required=True,
        help="folder or Hub id of an MP-CLIP, CLIP, SigLIP or sentence-transformers model. Its Python files are run",
    )
    parser.add_argument("--data", required=True, help=takes)
    parser.add_argument("--split", required=True, help="name of the split, such as validation, test or 'train[:100]'")
    parser.add_argument("--json", required=True, metavar="OUT.json", help="where to write the result")
    parser.add_argument("--batch_size", type=count, default=64, help="pictures or texts at a time (default: %(default)s)")
    add_precision(parser)
    parser.add_argument(
        "--quantize", choices=("int8",), help="load the LLM's weights as int8, in whatever type they are saved (needs torchao)"
    )
    parser.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument("--limit", type=count, help="only the first LIMIT pictures, for a quick look")
    parser.add_argument(
        "--cache", metavar="FOLDER", help="keep embeddings there, so that a later run does not compute them again"
    )
    add_reading_options(parser)
