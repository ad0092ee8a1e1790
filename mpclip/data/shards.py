"""Write a data set of pictures and captions as shards, which training reads as a stream.

    python -m mpclip.data.shards --data photos --split train --out shards
    python -m mpclip.data.shards --data photos --split train --out shards --samples_per_shard 5000 --shuffle 0
    python -m mpclip.data.shards --data photos --split train --out shards --longest_side 512 --quality 90
    mpclip train --streaming true --dataset shards --eval_split none --max_steps 1000 --output_dir runs/streamed

Shards are webdataset tars in img2dataset's layout (00000.tar with 000000000.jpg, .txt and .json, beside it 00000_stats.json),
or parquet files. A picture with several captions has them in a file .captions too, as a JSON list. The files of pictures are
copied as they are; with --longest_side or --quality they are decoded and written as JPEG.

A shard is written aside and renamed when it is whole. The same command goes on after a kill, and writes nothing that is there
already. manifest.json says how many samples each shard has, and is written last.
"""

import argparse
from collections.abc import Sequence

from mpclip.argument_types import count
from mpclip.cli import manual
from mpclip.command import next_steps, start
from mpclip.data.reading import add_reading_options, reading_of


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: words of the command line; None takes those of the process.

    Raises:
        SystemExit: code 2 for a wrong command line; code 1 and one line for an error that the user can fix.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.data.shards",
        description=manual("mpclip.data.shards"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="the data set, in any form that training reads")
    parser.add_argument("--split", default="train", help="split, or a part of one such as 'train[:90%%]' (default: train)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to write; other splits may go to the same folder")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shards", type=count, metavar="N", help="number of shards; best a multiple of the readers")
    size.add_argument(
        "--samples_per_shard", type=count, default=10_000, metavar="N", help="at most so many (default: %(default)s)"
    )
    parser.add_argument("--format", choices=("tar", "parquet"), default="tar", help="of the shards (default: tar)")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle the rows first; by default they keep their order")
    parser.add_argument(
        "--longest_side", type=count, metavar="PIXELS", help="scale larger pictures down to this, and write them as JPEG"
    )
    parser.add_argument("--quality", type=count, help="write the pictures as JPEG of this quality (with --longest_side: 90)")
    add_reading_options(parser)
    options = parser.parse_args(arguments)
    try:
        from mpclip.data.shard_writing import write_shards

        told = write_shards(
            options.data,
            options.split,
            options.out,
            shards=options.shards,
            samples_per_shard=options.samples_per_shard,
            format=options.format,
            shuffle=options.shuffle,
            longest_side=options.longest_side,
            quality=options.quality,
            **reading_of(options),
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    print("{samples:,} samples in {shards} shards; {written} shards were written, {left_out} pictures left out".format(**told))
    trained = ["mpclip", "train", "--streaming", "true", "--dataset", options.out, "--eval_split", "none"]
    print(next_steps([(trained, "train on the shards")]))


if __name__ == "__main__":
    start(main)
