"""Embed many pictures: shards in, a parquet file of embeddings out for each, by any number of workers.

    mpclip embed --model runs/mine --data "laion/*.tar" --out runs/laion          # one machine
    torchrun --nproc_per_node 8 -m mpclip embed --model runs/mine --data laion --out runs/laion
    mpclip embed --model runs/mine --data laion --out runs/laion --part 3/8       # the third of eight machines
    mpclip embed --model runs/mine --data laion --out runs/laion --ray --address auto --workers 16
    mpclip search build --model runs/mine --embeddings runs/laion --index runs/laion_index

--data is a tar of webdataset or a parquet file, a pattern or folder of either, or a folder of picture files. Finished shards
are skipped, and a killed worker leaves nothing half done: start the same command again, as often as it takes. Workers of one
folder never do a shard twice. In a job of torchrun or Slurm each worker begins with its share, and then helps the others.

Pictures that cannot be read are named in NAME.unreadable.jsonl beside NAME.parquet. The exit status is 1 if a whole shard could
not be read. The Python files that come with the checkpoint are run (trust_remote_code=True).
"""

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING

from mpclip.argument_types import count
from mpclip.command import Stoppable
from mpclip.data.reading import MAX_MEGAPIXELS
from mpclip.hardware import add_precision, best_device, usable_device

if TYPE_CHECKING:
    from mpclip.encoding.shards import Done

STORED = ("float16", "float32")


def main(arguments: list[str] | None = None, prog: str = "python -m mpclip.embed") -> None:
    """The command. torch is loaded when it embeds, and not for `--help`.

    Args:
        arguments: words of the command line; by default those of this process.
        prog: name of the command in its help.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with Stoppable(prog, arguments) as stoppable:  # SIGTERM too, with which Slurm ends a job: locks are given back
        _run(arguments, prog, stoppable)


def _run(arguments: list[str], prog: str, stoppable: Stoppable) -> None:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id; its Python files are run")
    parser.add_argument("--data", required=True, help="tars, parquet files, or a folder of pictures")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the embeddings, shared by all workers")
    parser.add_argument("--part", metavar="I/N", help="only part I of N, such as 3/8; for workers that share no folder")
    parser.add_argument("--stored", choices=STORED, default="float16", help="dtype in the files (default: %(default)s)")
    parser.add_argument("--captions", action="store_true", help="embed the first caption of each picture too")
    parser.add_argument("--shard_size", type=count, default=10_000, help="files of a folder per shard (default: %(default)s)")
    parser.add_argument("--batch_size", type=count, default=64, help="pictures at a time (default: %(default)s)")
    add_precision(parser)
    parser.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: a GPU of this process's own)")
    parser.add_argument("--verify", action="store_true", help="read existing files and shards whole to find damaged ones")
    parser.add_argument("--image_column", help="column of the pictures in parquet files (default: image, jpg, png, ...)")
    parser.add_argument("--caption_column", help="column, JSON key or file ending of the captions (default: caption, txt, ...)")
    parser.add_argument("--follow_links", action="store_true", help="follow links that lead out of a folder of pictures")
    parser.add_argument(
        "--max_megapixels",
        type=float,
        default=MAX_MEGAPIXELS,
        help="larger pictures count as unreadable (default: %(default)g)",
    )
    ray = parser.add_argument_group("on Ray")
    ray.add_argument("--ray", action="store_true", help="embed with Ray Data: pip install 'mpclip[scale]'")
    ray.add_argument("--address", help="of a running cluster, such as auto (default: one is started on this machine)")
    ray.add_argument("--workers", type=count, default=1, help="copies of the model, kept loaded (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.ray and (options.part or options.device):
        parser.error("--ray shares out the work and the devices itself: leave out --part and --device")
    stoppable.kept = f"Finished shards are kept in {options.out}."
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        done = _on_ray(options) if options.ray else _here(options)
    except (ImportError, OSError, ValueError) as error:  # what the user can mend, on one line
        raise SystemExit(f"{parser.prog}: {' '.join(str(error).split())}") from error
    if options.ray:  # it knows rows, not shards
        print(f"{options.out}: {done.rows:,} pictures embedded now, {done.unreadable:,} unreadable")
        return
    print(told(done, options.out))
    if done.failed:
        sys.exit(1)


def told(done: "Done", out: str) -> str:
    """What was done, in words."""
    lines = [
        f"{out}: {done.embedded:,} shards embedded now ({done.rows:,} pictures, {done.unreadable:,} unreadable), "
        f"{done.whole:,} were there"
    ]
    if done.busy:
        lines.append(f"{done.busy:,} shards are in the hands of other workers; start again to see whether they have finished")
    lines += [f"failed: {name}: {reason}" for name, reason in done.failed.items()]
    return "\n".join(lines)


def _here(options: argparse.Namespace) -> "Done":
    from mpclip.encoding import load_encoder
    from mpclip.encoding.shard_shares import own_first, part_of, share_of_job
    from mpclip.encoding.shards import ShardWorker, precision_of_output

    shards = _shards(options)
    shards = part_of(shards, options.part) if options.part else own_first(shards, share_of_job())
    device = options.device or own_device(os.environ)
    encoder = load_encoder(options.model, precision_of_output(options.precision, options.out, device), device)
    worker = ShardWorker(encoder, options.out, _embed_options(options), options.batch_size, verify=options.verify)
    return worker.run(shards)


def _on_ray(options: argparse.Namespace) -> "Done":
    from mpclip.encoding.ray import embed_on_ray

    return embed_on_ray(
        options.model,
        _shards(options),
        options.out,
        _embed_options(options),
        batch_size=options.batch_size,
        precision=options.precision,
        workers=options.workers,
        address=options.address,
    )


def _shards(options: argparse.Namespace) -> list:
    from mpclip.encoding.shard_sources import open_shards

    return open_shards(options.data, options.shard_size, options.image_column, options.caption_column, options.follow_links)


def _embed_options(options: argparse.Namespace):
    from mpclip.encoding.shards import EmbedOptions

    names = ("stored", "captions", "max_megapixels", "image_column", "caption_column")
    return EmbedOptions(**{name: getattr(options, name) for name in names})


def own_device(environment: dict) -> str:
    """The device of this process: of several on a machine, each has its own GPU."""
    device = best_device()
    local = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID")
    if device != "cuda" or not local:
        return device
    import torch

    return f"cuda:{int(local) % torch.cuda.device_count()}"


if __name__ == "__main__":
    main()
