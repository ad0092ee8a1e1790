"""The options that all tasks of `python -m eval` share, each declared once."""

import argparse

from mpclip.hardware import usable_device

PRECISIONS = ("float32", "bfloat16")


def add_common_options(parser: argparse.ArgumentParser, takes: str) -> None:
    """Add model, data and how to compute.

    Args:
        takes: which data the task takes, in words.
    """
    parser.add_argument(
        "--model",
        required=True,
        help="checkpoint, folder or Hub id: MP-CLIP, CLIP, SigLIP or a sentence-transformers model. Its Python files are run",
    )
    parser.add_argument("--data", required=True, help=takes)
    parser.add_argument("--split", required=True, help="name of the split, such as validation, test or 'train[:100]'")
    parser.add_argument("--json", required=True, metavar="OUT.json", help="where to write the result")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures or texts at a time (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        default="float32",
        help="of the weights; embeddings are normalised and compared in float32 in any case (default: %(default)s)",
    )
    parser.add_argument(
        "--quantize", choices=("int8",), help="load the LLM's weights as int8, whatever the checkpoint holds (needs torchao)"
    )
    parser.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument("--limit", type=int, help="only the first LIMIT pictures, for a quick look")
    parser.add_argument("--cache", metavar="FOLDER", help="keep embeddings there; a killed run goes on, a second one is quick")
