"""In which order a reader draws the samples of its shards: random, the same for the same seed, and exact after a resume.

Every pass over the data shuffles the shards and deals them out, so that each reader (a worker of a data loader, of a process)
has whole shards of its own. Within them it draws from a buffer, as follows. A block of `buffer` samples is read and drawn in
random order. Whenever one is drawn, the next sample of the shards is read into its place. When the block is drawn, those that
were read meanwhile are the next block.

So each block is a range of the shards. A position is the start of the block and how many of it were drawn: a resumed run reads
that block again, undecoded, and goes on with the sample behind the last one. A buffer that draws from all it holds, as in
`datasets` and webdataset, would lose what it holds instead.
"""

import random
from collections.abc import Callable, Iterator
from itertools import islice

from mpclip.data.streaming import Sample, ShardFault, Shards

START = {"pass": 0, "at": [0, 0], "block": 0, "drawn": 0}


def shards_of_reader(count: int, seed: int, number: int, reader: int, readers: int) -> list[int]:
    """The shards that a reader reads in a pass, in their order. Those of all readers are all shards, each once.

    Args:
        count: number of all shards.
        seed: of the draws.
        number: of the pass, from 0.
        reader: number of the reader, from 0.
        readers: number of all readers.
    """
    return random.Random(f"{seed} {number}").sample(range(count), count)[reader::readers]


def drawn_samples(
    shards: Shards,
    seed: int,
    reader: int,
    readers: int,
    buffer: int,
    position: dict,
    on_fault: Callable[[str, ShardFault], None],
) -> Iterator[tuple[Sample | None, dict]]:
    """The samples that a reader draws, pass after pass, without end.

    Args:
        shards: of the data set.
        seed, reader, readers: as for `shards_of_reader`.
        buffer: samples that are drawn from; 1 for the order of the shards.
        position: where to begin: `START`, or one that was given.
        on_fault: called with the name of a shard that cannot be read to its end, and the error. The pass goes on with the next.

    Yields:
        A sample, and the position behind it, which is a JSON value. At the end of each pass None, and where the next begins.
    """
    while True:
        number, at, block_number, drawn = (position[name] for name in ("pass", "at", "block", "drawn"))
        mine = shards_of_reader(len(shards.names), seed, number, reader, readers)
        samples = _in_order(shards, mine, at, on_fault)
        block = list(islice(samples, buffer))
        while block:
            at, following = block[0][0], []
            draw = random.Random(f"{seed} {number} {reader} {block_number}")
            for i, place in enumerate(draw.sample(range(len(block)), len(block))):
                (_, sample), block[place] = block[place], None
                following += islice(samples, 1)
                if i >= drawn:
                    yield sample, {"pass": number, "at": at, "block": block_number, "drawn": i + 1}
            block, block_number, drawn = following, block_number + 1, 0
        position = {**START, "pass": number + 1}
        yield None, position


def _in_order(
    shards: Shards, mine: list[int], at: list[int], on_fault: Callable[[str, ShardFault], None]
) -> Iterator[tuple[list[int], Sample]]:
    """The samples of some shards, each with its place: which of the shards, and which sample of it."""
    for place in range(at[0], len(mine)):
        start = at[1] if place == at[0] else 0
        try:
            for row, sample in enumerate(shards.samples(mine[place], start), start):
                yield [place, row], sample
        except ShardFault as fault:
            on_fault(shards.names[mine[place]], fault)
