"""Which shards a worker embeds, and in which order: alone, by hand on several machines, or in a job of Slurm or torchrun."""

import os
import re
from collections.abc import Mapping, Sequence

from .shard_sources import Shard


def part_of(shards: Sequence[Shard], part: str) -> list[Shard]:
    """A part of the shards, for workers that share no folder.

    Args:
        shards: all of them.
        part: such as "3/8": the third of eight.

    Raises:
        ValueError: it is not written so, or there is no such part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"part {part!r}: expected such as 3/8, the third of eight parts")
    return list(shards[int(found[1]) - 1 :: int(found[2])])


def own_first(shards: Sequence[Shard], share: tuple[int, int]) -> list[Shard]:
    """All shards, in the order for one worker of several on one folder: its own share, then what the others have left.

    The shares of others are gone through from their ends, so that a helper seldom meets the worker whose share it is.

    Args:
        shards: all of them.
        share: number of the worker, from 0 on, and of all workers.
    """
    number, of = share
    others = [shard for i in range(1, of) for shard in reversed(shards[(number + i) % of :: of])]
    return [*shards[number::of], *others]


def share_of_job(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which worker of how many this process is, by the variables of a Slurm array, of srun and of torchrun; (0, 1) without.

    Within a task of an array there may be several processes: they are counted on.
    """

    def number(name: str, default: int) -> int:
        return int(environment.get(name) or default)

    task, tasks = 0, 1
    if environment.get("SLURM_ARRAY_TASK_ID"):
        tasks = number("SLURM_ARRAY_TASK_COUNT", 1)
        task = number("SLURM_ARRAY_TASK_ID", 0) - number("SLURM_ARRAY_TASK_MIN", 0)
        task = task // number("SLURM_ARRAY_TASK_STEP", 1) % tasks
    rank, ranks = number("SLURM_PROCID", 0), number("SLURM_NTASKS", 1)
    if environment.get("WORLD_SIZE"):
        rank, ranks = number("RANK", 0), number("WORLD_SIZE", 1)
    if rank >= ranks:  # srun has set one of the two alone
        rank, ranks = 0, 1
    return task * ranks + rank, tasks * ranks
