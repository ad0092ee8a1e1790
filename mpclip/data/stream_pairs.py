"""`StreamedPairs`: the shards of a data set as batches of pairs of a picture and a caption, for workers of a data loader."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from mpclip.data.image_checks import picture_or_fault
from mpclip.data.image_text import UnreadablePicture, random_crop
from mpclip.data.joined_captions import EACH_ALONE, JoinedCaptions
from mpclip.data.picture_size import pixel_limit
from mpclip.data.reading import MAX_MEGAPIXELS
from mpclip.data.stream_order import START, drawn_samples
from mpclip.data.streaming import Sample, Shards


class StreamedPairs(torch.utils.data.IterableDataset):
    """Batches of pairs, without end: one pass over the shards after another. Nothing is the same in two passes but the samples.

    Every reader, a worker of one of the processes, has shards of its own in each pass and makes batches of them alone. What is
    left at the end of its pass and fills no batch is left out, so that no batch has a picture twice and each has all its
    negatives. The order and the captions depend on the seed, the pass and the number of readers alone.

    An epoch is a number of batches, `batches_per_epoch`. It is the same for all processes, whatever the lengths of their
    shards: a reader that is through with its pass begins the next one.

    Args:
        shards: from `open_shards`.
        batch_size: pairs per batch.
        seed: of the order, the captions and the crops.
        buffer: samples that a reader draws from; 1 for the order of the shards.
        workers: of the data loader in each process; 0 for none.
        process, processes: number of this process, and of all.
        samples_per_epoch: of all processes together. Default: those of the shards, if their number is known.
        smallest_crop, joined: as in `ImageTextDataset`.
        max_megapixels: larger pictures cannot be read.
        bad_images: "skip" leaves out samples that cannot be read and tells them with the batch; "fail" ends with an error.

    Raises:
        ValueError: there are fewer shards than readers, or the number of samples is unknown or fills no batch.
    """

    def __init__(
        self,
        shards: Shards,
        batch_size: int,
        seed: int = 0,
        *,
        buffer: int = 1000,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
        samples_per_epoch: int | None = None,
        smallest_crop: float = 1.0,
        max_megapixels: float = MAX_MEGAPIXELS,
        bad_images: Literal["skip", "fail"] = "skip",
        joined: JoinedCaptions = EACH_ALONE,
    ):
        self.shards, self.batch_size, self.seed, self.buffer = shards, batch_size, seed, buffer
        self.workers, self.process, self.processes = workers, process, processes
        self.smallest_crop, self.max_megapixels, self.bad_images = smallest_crop, max_megapixels, bad_images
        self.lanes = max(workers, 1)  # readers of this process
        self.joined = joined
        self.positions = [START] * self.lanes  # where each of them begins
        self.first = 0  # which of them gives the first batch
        self.readers = self.lanes * processes
        if len(shards.names) < self.readers:
            at_a_time = f"{processes} processes with {self.lanes} workers each" if workers else f"{processes} processes"
            raise ValueError(
                f"{at_a_time} read {self.readers} shards at a time, but there are {len(shards.names)} shards. Set "
                f"--dataloader_num_workers to {len(shards.names) // processes} or less, use fewer processes, or write more "
                "shards: python -m mpclip.data.shards --shards N"
            )
        self.given = samples_per_epoch
        self._settle()

    def of(self, shards: Shards) -> "StreamedPairs":
        """The same stream of other shards, which have states of the samples of these."""
        other = copy.copy(self)
        other.shards = shards
        other._settle()
        return other

    def _settle(self) -> None:
        """Compute the length of an epoch."""
        shards, batch_size = self.shards, self.batch_size
        self.samples_per_epoch = self.given or shards.total
        if self.samples_per_epoch is None:
            raise ValueError(
                "the number of samples is unknown, since nothing beside the shards tells it. Set --samples_per_epoch, or "
                "--max_steps for a run of one epoch"
            )
        self.batches_per_epoch = self.samples_per_epoch // self.readers // batch_size * self.lanes
        if not self.batches_per_epoch:
            raise ValueError(
                f"{self.samples_per_epoch} samples are {self.samples_per_epoch // self.readers} for each of {self.readers} "
                f"readers (processes times workers), fewer than a batch of {batch_size}. Lower --per_device_train_batch_size "
                "or --dataloader_num_workers"
            )

    def __len__(self) -> int:
        """Samples of an epoch, of all processes together."""
        return self.batches_per_epoch * self.batch_size * self.processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches of one reader: that of the worker that calls, or the only one.

        Yields:
            `examples`: `batch_size` dicts with `name`, `captions`, one str in a list, and `image` (PIL, RGB), or cached
            `image_states` and `text_states`; `lane`: which
            reader of this process; `position`: from which it goes on behind this batch; `faults`: what was left out since its
            last batch, as pairs of what it is and its name.

        Raises:
            UnreadablePicture: something cannot be read, with `bad_images="fail"`; or a pass fills no batch.
        """
        worker = torch.utils.data.get_worker_info()
        lane = (self.first + (worker.id if worker else 0)) % self.lanes
        reader = lane * self.processes + self.process
        faults: list[tuple[str, str]] = []
        examples: list[dict[str, Any]] = []
        batches = 0
        note = self._noting(faults)
        order = (self.shards, self.seed, reader, self.readers, self.buffer, self.positions[lane])
        started = self.positions[lane]["drawn"] == self.positions[lane]["block"] == 0  # at the start of a pass
        for sample, position in drawn_samples(*order, lambda name, fault: note("shards that are cut short", str(fault))):
            if sample is None:  # the end of a pass
                if started and not batches:
                    raise UnreadablePicture(
                        f"A pass over the shards of a reader has {len(examples)} samples that can be used, fewer than a batch "
                        f"of {self.batch_size}. {'; '.join(name for _, name in faults[:5])}"
                    )
                examples, batches, started = [], 0, True
                continue
            example = self._example(sample, position["pass"], note)
            if example is None:
                continue
            examples.append(example)
            if len(examples) == self.batch_size:
                yield {"examples": examples, "lane": lane, "position": position, "faults": list(faults)}
                examples, batches = [], batches + 1
                faults.clear()

    def _noting(self, faults: list[tuple[str, str]]) -> Callable[[str, str], None]:
        """What is called for each fault."""

        def note(what: str, name: str) -> None:
            if self.bad_images == "fail":
                raise UnreadablePicture(f"{what}: {name}. Repair or remove it, or set --bad_images skip")
            faults.append((what, name))

        return note

    def _example(self, sample: Sample, number: int, note: Callable[[str, str], None]) -> dict[str, Any] | None:
        """A sample as a pair, in the pass of this number; None if it cannot be used."""
        if sample.fault is not None:
            return note("samples without a caption", f"{sample.name} ({sample.fault})")
        chosen = self.joined.drawn(len(sample.captions), random.Random(f"{self.seed} {number} {sample.name}"))
        example = {"name": sample.name, "captions": [self.joined.every(sample.captions)[chosen]]}
        if sample.text_states is not None:
            example["text_states"] = sample.text_states[chosen]
        if sample.image_states is not None:
            return example | {"image_states": sample.image_states}
        with pixel_limit(self.max_megapixels):
            picture, fault = picture_or_fault(sample.picture, self.max_megapixels)
        if fault is not None:
            return note("pictures that cannot be decoded", f"{sample.name} ({fault})")
        cropped = random_crop(picture, self.smallest_crop, f"crop {self.seed} {number} {sample.name}")
        return example | {"image": cropped}
