"""The options that all tasks of `python -m eval` share."""

import argparse
from pathlib import Path

from modeling_mpclip.model_options import choices
from mpclip.argument_types import count
from mpclip.data.reading import ReadingOptions, add_reading_options
from mpclip.files import cache_folder
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
        nargs="+",
        help="folder or Hub id of an MP-CLIP, CLIP, SigLIP or sentence-transformers model, or several: one table for all, and "
        "the paired difference of each to the first. Their Python files are run",
    )
    parser.add_argument("--data", required=True, help=takes)
    parser.add_argument("--split", required=True, help="name of the split, such as validation, test or 'train[:100]'")
    parser.add_argument(
        "--json",
        required=True,
        metavar="OUT",
        help="where to write the result: OUT.json, with several models OUT.NAME.json for each; or a folder, in which each "
        "model has a file NAME.json",
    )
    add_embedding_options(parser)


def add_embedding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for how data are read and embedded. Of those above it needs `model` alone."""
    parser.add_argument("--batch_size", type=count, default=64, help="pictures or texts at a time (default: %(default)s)")
    add_precision(parser)
    parser.add_argument(
        "--quantize", choices=("int8",), help="load the LLM's weights as int8, in whatever type they are saved (needs torchao)"
    )
    parser.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument("--limit", type=count, help="only the first LIMIT pictures, for a quick look")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache",
        metavar="FOLDER",
        help="where embeddings are kept, so that a later run does not compute them again (default: embeddings in "
        "$MPCLIP_CACHE, or in ~/.cache/mpclip)",
    )
    cache.add_argument("--no_cache", action="store_true", help="neither read nor keep embeddings")
    add_reading_options(parser)
    parser.add_argument(
        "--bad",
        dest="bad_images",
        choices=choices(ReadingOptions, "bad_images"),
        help="short for --bad_images; the result says how many rows were left out",
    )


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m eval compare`."""
    parser.add_argument("first", metavar="A.json", help="result of `python -m eval TASK`")
    parser.add_argument("second", metavar="B.json", help="result of the same task on the same data")
    parser.add_argument("--plot", metavar="OUT.png", help="also draw the differences")


def embeddings_folder() -> Path:
    """Where embeddings are kept by default. It may be deleted at any time."""
    return cache_folder() / "embeddings"
