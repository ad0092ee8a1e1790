"""The order of an epoch: rows of a group meet as negatives (`GroupSampler`), or texts of a length do (`LengthSampler`)."""

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


class LengthSampler(Sampler[int]):
    """Every row once per epoch, in batches of about the same length, so that little of them is padding.

    Rows are shuffled, sorted by length within every sixteen batches and cut into batches, which are shuffled again. A batch's
    negatives are then texts of its length; sixteen batches keep the choice wide.

    Args:
        lengths: called when an epoch begins: the length of each row.
        batch_size: rows.
        seed: of the draw.
        epoch: called when an epoch begins.
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
        # A short last batch stays last: anywhere else it would shift what the others hold.
        whole = batches[: self.count // self.batch_size]
        draw.shuffle(whole)
        return (row for batch in [*whole, *batches[len(whole) :]] for row in batch)
