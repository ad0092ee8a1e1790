"""Orders of an epoch: `GroupSampler` puts rows of a group into one batch, `LengthSampler` texts of about the same length."""

import random
from collections.abc import Callable, Iterator

from torch.utils.data import Sampler


class GroupSampler(Sampler[int]):
    """Every row once per epoch, in random order, with up to `size` rows of a group next to each other.

    The pictures of a random batch differ in their objects, which is easy to learn. Two similar pictures in a batch make the
    model learn finer differences. `size` is small, because a batch of whole groups would contain few different objects.

    Args:
        groups: the group of each row.
        size: rows of a group that stay next to each other. Every epoch draws them anew.
        seed: random seed.
        epoch: called at the start of an epoch; returns its number.

    Raises:
        ValueError: `size` is below 1.
    """

    def __init__(self, groups: list, size: int, seed: int, epoch: Callable[[], int]):
        if size < 1:
            raise ValueError(f"group_size={size} is illegal. Give 1 or more rows of a group that share a batch.")
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


class LengthSampler(Sampler[int]):
    """Every row once per epoch, in batches of about the same length, so that batches contain little padding.

    Rows are shuffled. Every 16 batches of rows are sorted by length and cut into batches, and all batches are shuffled. The
    negatives of a text then have about its length. Sorting 16 batches at a time keeps them varied.

    Args:
        lengths: called at the start of an epoch; returns the length of each row, in any unit.
        batch_size: rows per batch.
        seed: random seed.
        epoch: called at the start of an epoch; returns its number.
    """

    BATCHES = 16

    def __init__(self, lengths: Callable[[], list[int]], batch_size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch
        self.count = len(lengths())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        draw, lengths = random.Random(f"{self.seed} {self.epoch()}"), self.lengths()
        order = draw.sample(range(self.count), self.count)
        span = self.BATCHES * self.batch_size
        order = [row for i in range(0, self.count, span) for row in sorted(order[i : i + span], key=lengths.__getitem__)]
        batches = [order[i : i + self.batch_size] for i in range(0, self.count, self.batch_size)]
        # A short last batch stays last: anywhere else it would shift the rows of the batches behind it.
        whole = batches[: self.count // self.batch_size]
        draw.shuffle(whole)
        return (row for batch in [*whole, *batches[len(whole) :]] for row in batch)
