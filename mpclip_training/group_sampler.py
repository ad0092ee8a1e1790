"""Batches of related rows: a few rows of a group are neighbours in the epoch's order, so that they meet as negatives."""

import random
from collections.abc import Callable, Iterator

from torch.utils.data import Sampler


class GroupSampler(Sampler[int]):
    """Every row once per epoch, in random order but for chunks of `size` rows of the same group.

    A contrastive batch of unrelated pictures is told apart by its objects alone; a near-twin in the batch makes the model learn
    what the two differ in. Whole groups would leave few different objects in a batch, which is why the chunks are small.

    Args:
        groups: of each row.
        size: rows of a group that stay together; drawn anew every epoch.
        seed: of the draw.
        epoch: called when an epoch begins.
    """

    def __init__(self, groups: list, size: int, seed: int, epoch: Callable[[], int]):
        if size < 1:
            raise ValueError(f"group_size={size}; at least one row of a group stays together.")
        self.groups: dict = {}
        for row, group in enumerate(groups):
            self.groups.setdefault(group, []).append(row)
        self.count, self.size, self.seed, self.epoch = len(groups), size, seed, epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self.seed} {self.epoch()}")
        chunks = []
        for rows in self.groups.values():
            rows = draw.sample(rows, len(rows))
            chunks += [rows[i : i + self.size] for i in range(0, len(rows), self.size)]
        draw.shuffle(chunks)
        return (row for chunk in chunks for row in chunk)
