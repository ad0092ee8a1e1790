"""Training on a stream: `StreamedTrainer`, and where in the stream a checkpoint was saved.

A checkpoint holds `stream-<process>.json`: the position of each reader behind its last batch that was trained on, not behind
those that workers have prepared ahead. So a resumed run goes on with the next batch that the interrupted one would have had.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from mpclip.data.image_checks import NAMES_SHOWN, picture_or_fault
from mpclip.data.picture_size import pixel_limit
from mpclip.data.reading import ReadingOptions, reading_of
from mpclip.data.stream_order import START
from mpclip.data.stream_pairs import StreamedPairs
from mpclip.data.streaming import ShardFault, open_shards
from mpclip.files import read_json, write_json

from .arguments import RunOptions
from .batch_size import refuse_no_negatives
from .checkpoints import NUMBERED
from .collator import WithIds
from .finite import listed, with_caption
from .resume import OtherRun
from .stream_states import StreamedStates, cache_stream_states
from .trainer import MPCLIPTrainer

logger = logging.getLogger("train_hf")

PREFETCHED = 2  # batches that Trainer and accelerate may take before the step that they belong to


class StreamedTrainer(MPCLIPTrainer):
    """[`MPCLIPTrainer`] whose `train_dataset` is a `StreamedPairs`.

    transformers' Trainer would resume by reading and decoding all that was read before, and accelerate would read the stream in
    the first process for all of them (`dispatch_batches`). Here each process reads its own shards and resumes where they were.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.late_states = None  # the states of a stream come with its samples
        self.stream: Stream | None = None
        self._start: dict[str, Any] | None = None
        self.add_callback(CloseStream(self))

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As `Trainer.train`.

        Raises:
            OtherRun: the checkpoint was saved by a run that read the stream otherwise.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
        self._start = None
        if resume_from_checkpoint:
            self._start = read_start(Path(resume_from_checkpoint), self.train_dataset)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """The loader of the stream. Its workers run on from one epoch to the next."""
        refuse_no_negatives(self.args)
        self.stream = Stream(self.train_dataset, WithIds(self.data_collator), self.args, self._start)
        return DataLoader(self.stream, batch_size=None, collate_fn=_unchanged)

    def examples_told(self, rows: list[int]) -> str:
        """Examples of the latest step, as a part of a message: names in their shards, and captions."""
        return listed([with_caption(*self.stream.latest[row]) for row in rows], len(rows))

    def num_examples(self, dataloader: DataLoader) -> int:
        """Samples of an epoch."""
        return len(self.train_dataset)

    def save_model(self, output_dir=None, *args, **kwargs) -> None:
        """As in `MPCLIPTrainer`. With a checkpoint the position in the stream is saved, before what makes it complete."""
        super().save_model(output_dir, *args, **kwargs)
        if self.stream is not None and output_dir and NUMBERED.fullmatch(Path(output_dir).name):
            write_json(Path(output_dir, _file_name(self.train_dataset)), self.stream.position())


class Stream(torch.utils.data.IterableDataset):
    """The batches of a process, epoch after epoch, from one data loader that runs on.

    Args:
        pairs: what is streamed.
        collator: examples -> a batch.
        arguments: of the training.
        start: from `read_start`; None for the beginning.
    """

    def __init__(self, pairs: StreamedPairs, collator: Callable, arguments, start: dict[str, Any] | None = None):
        self.pairs, self.collator, self.arguments = pairs, collator, arguments
        start = start or {"batches": 0, "in_epoch": 0, "positions": [START] * pairs.lanes}
        self.batches, self.in_epoch, self.positions = start["batches"], start["in_epoch"], list(start["positions"])
        self.skips = not arguments.ignore_data_skip
        self.left_out: Counter[str] = Counter()
        self.latest: dict[int, tuple[str, str]] = {}  # number -> name and caption, of the samples that a message may name
        self._named: set[tuple[str, str]] = set()
        self._running: Iterator | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.pairs.batches_per_epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of an epoch. In one that a resumed run begins within, Trainer skips as many as were trained on: nothing
        is read for those."""
        before = self.in_epoch % len(self)
        self.in_epoch = before
        if self.skips:
            yield from ({} for _ in range(before))
        self.skips = True
        if self._running is None:
            self._running = iter(self._loader())
        for _ in range(before, len(self)):
            item = next(self._running)
            self.positions[item["lane"]] = item["position"]
            self.batches, self.in_epoch = self.batches + 1, self.in_epoch + 1
            self._tell(item["faults"])
            yield item["batch"] | {"row": self._numbered(item["named"])}

    def _numbered(self, named: list[tuple[str, str]]) -> torch.Tensor:
        """(B,) numbers by which `latest` knows the samples of a batch; those of steps that are over are forgotten."""
        first = self.batches * len(named)
        numbers = range(first, first + len(named))
        self.latest |= zip(numbers, named, strict=True)
        ahead = self.arguments.gradient_accumulation_steps + PREFETCHED
        for number in list(self.latest)[: -ahead * len(named)]:
            del self.latest[number]
        return torch.tensor(numbers)

    def position(self) -> dict[str, Any]:
        """Where the stream is behind the last batch that was given, as JSON values."""
        of_run = {"readers": self.pairs.readers, "shards": self.pairs.shards.names}
        return {"batches": self.batches, "in_epoch": self.in_epoch, "positions": self.positions} | of_run

    def close(self) -> None:
        """End the workers, and say what was left out."""
        self._running = None
        if self.left_out:
            told = ", ".join(f"{count} {what}" for what, count in self.left_out.items())
            logger.warning("Left out of this process's stream: %s.", told)

    def _loader(self) -> DataLoader:
        pairs, arguments = self.pairs, self.arguments
        pairs.positions, pairs.first = self.positions, self.batches % pairs.lanes
        several = {"prefetch_factor": arguments.dataloader_prefetch_factor} if pairs.workers else {}
        return DataLoader(
            pairs,
            batch_size=None,
            collate_fn=_Collate(self.collator),
            num_workers=pairs.workers,
            pin_memory=arguments.dataloader_pin_memory,
            multiprocessing_context=arguments.dataloader_multiprocessing_context,
            generator=torch.Generator(),  # otherwise a resumed run would draw another number from the model's generator
            **several,
        )

    def _tell(self, faults: list[tuple[str, str]]) -> None:
        """Count what was left out, and name it once."""
        for what, name in faults:
            if (what, name) in self._named:
                continue
            self._named.add((what, name))
            self.left_out[what] += 1
            if len(self._named) <= NAMES_SHOWN:
                logger.warning("Left out: %s. %s", what, name)
            elif len(self._named) == NAMES_SHOWN + 1:
                logger.warning("More is left out; from here on it is only counted.")


class CloseStream(TrainerCallback):
    """Ends the workers of a stream with the training.

    Args:
        trainer: [`StreamedTrainer`].
    """

    def __init__(self, trainer: StreamedTrainer):
        self.trainer = trainer

    def on_train_end(self, args, state, control, **kwargs):
        """Called by Trainer."""
        self.trainer.stream.close()


@dataclasses.dataclass
class _Collate:
    """In a worker: the examples of a batch become tensors. What goes with them stays."""

    collator: Callable[[list[dict]], dict[str, torch.Tensor]]

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        examples = item.pop("examples")
        named = [(example["name"], example["captions"][0]) for example in examples]
        return item | {"batch": self.collator(examples), "named": named}


def _unchanged(batch):
    return batch


def _file_name(pairs: StreamedPairs) -> str:
    return f"stream-{pairs.process:05d}.json"


def read_start(checkpoint: Path, pairs: StreamedPairs) -> dict[str, Any]:
    """Where a checkpoint's run was in the stream.

    Args:
        checkpoint: its folder.
        pairs: the stream that is to go on.

    Raises:
        OtherRun: it does not say, or that run read other shards or had another number of readers.
    """
    start = read_json(checkpoint / _file_name(pairs))
    if not start:
        raise OtherRun(
            f"{checkpoint} lacks {_file_name(pairs)}, so where its run was in the stream is unknown: it was trained without "
            "--streaming, or by fewer processes. Give another --output_dir, or --resume_from_checkpoint false."
        )
    if start["readers"] != pairs.readers:
        raise OtherRun(
            f"{checkpoint} was saved by a run with {start['readers']} readers of the stream (processes times workers), and now "
            f"there are {pairs.readers}. A stream goes on with the same number: set --dataloader_num_workers and the number of "
            "processes as they were, or --resume_from_checkpoint false for a new run."
        )
    if start["shards"] != pairs.shards.names:
        count = len(set(start["shards"]) ^ set(pairs.shards.names))
        raise OtherRun(
            f"{checkpoint} was saved by a run on other shards: {count} are new or gone. Restore them, or give "
            "--resume_from_checkpoint false for a new run."
        )
    return start


def streamed_pairs(options: RunOptions) -> StreamedPairs:
    """The training split of a run as a stream, with a line in the log that says what an epoch is.

    Raises:
        ValueError, OSError: as `open_shards`, `StreamedPairs` and `refuse_unstreamable`.
    """
    refuse_unstreamable(options)
    data, training = options.data, options.training
    shards = open_shards(data.dataset, data.train_split, ReadingOptions(**reading_of(data)))
    samples = data.samples_per_epoch
    if samples is None and shards.total is None and training.max_steps > 0:  # one epoch
        batches = training.max_steps * training.gradient_accumulation_steps * max(training.dataloader_num_workers, 1)
        samples = batches * training.per_device_train_batch_size * training.world_size
    pairs = StreamedPairs(
        shards,
        training.per_device_train_batch_size,
        training.seed,
        buffer=data.shuffle_buffer,
        workers=training.dataloader_num_workers,
        process=training.process_index,
        processes=training.world_size,
        samples_per_epoch=samples,
        smallest_crop=data.smallest_crop,
        max_megapixels=data.max_megapixels,
        bad_images=data.bad_images,
        joined=data.joined,
    )
    logger.info("%s", told(pairs))
    return pairs


def with_states(
    pairs: StreamedPairs, options: RunOptions, model, processor, negated: bool
) -> tuple[StreamedPairs, StreamedStates]:
    """Compute the cached states of a stream, or find them.

    Args:
        pairs: the stream.
        options: of the run.
        model: frozen where its states are stored.
        processor: its processor.
        negated: include the negated prompts.

    Returns:
        The stream of the states, and the collator for it.

    Raises:
        ValueError: as `cache_stream_states`.
    """
    images, training = options.model.vision_tuning == "frozen", options.training
    how = {"images": images, "negated": negated, "device": training.device, "precision": training.precision}
    shards, collator = cache_stream_states(model, processor, pairs.shards, options.data, **how)
    return pairs.of(shards), collator


def first_pictures(pairs: StreamedPairs, count: int) -> list[dict[str, Any]]:
    """The first pictures of a stream, as rows for the model card."""
    shards = getattr(pairs.shards, "source", pairs.shards)  # of cached states
    with pixel_limit(pairs.max_megapixels), suppress(ShardFault):
        decoded = (picture_or_fault(sample.picture, pairs.max_megapixels)[0] for sample in shards.samples(0))
        return [{"image": picture} for picture in islice(filter(None, decoded), count)]
    return []


def refuse_unstreamable(options: RunOptions) -> None:
    """Refuse options that a stream cannot follow.

    Raises:
        ValueError: the option, why, and what to set.
    """
    data, training = options.data, options.training
    dispatches = training.accelerator_config.dispatch_batches or training.accelerator_config.split_batches
    faults = {
        "--video_column": (data.video_column, "clips are not read from shards"),
        "--group_column": (data.group_column, "rows of a group would have to be found in all shards"),
        "--train_sampling_strategy group_by_length": (
            training.train_sampling_strategy == "group_by_length",
            "lengths are known when the shards are read",
        ),
        "--check_images": (data.check_images, "it would read all shards before training"),
        "--projection_start closed_form": (
            options.model.projection_start == "closed_form",
            "it looks pictures up by their number. Solve on a data set that is no stream, and train on with --checkpoint",
        ),
        "--without_weight": (data.without_weight, "what stands beside what would have to be known of all shards"),
        "--dataloader_drop_last false": (
            not training.dataloader_drop_last,
            "the last batch of each reader would have too few negatives, and processes would have batches of several sizes",
        ),
        "dispatch_batches or split_batches in --accelerator_config": (
            dispatches,
            "the first process would read the stream for all; each reads its own shards",
        ),
    }
    for option, (given, why) in faults.items():
        if given:
            raise ValueError(f"{option} cannot be combined with --streaming: {why}. Leave one of them out.")


def told(pairs: StreamedPairs) -> str:
    """What an epoch of a stream is, in sentences."""
    shards, readers = len(pairs.shards.names), pairs.readers
    count = f"{pairs.shards.total:,} samples" if pairs.shards.total is not None else "an unknown number of samples"
    lines = (
        f"A stream of {count} in {shards} shards; {readers} readers (processes times workers) draw from {pairs.buffer} samples "
        f"each. An epoch has {len(pairs):,} samples in {pairs.batches_per_epoch:,} batches of {pairs.processes} x "
        f"{pairs.batch_size}."
    )
    if shards % readers:
        lines += (
            f" {shards} shards do not divide by {readers} readers: in a pass some read {shards // readers + 1} and some "
            f"{shards // readers}, and those with fewer begin their next pass earlier. So an epoch takes some samples twice "
            f"and others not at all; over several epochs this evens out. {shards - shards % readers} shards would divide."
        )
    return lines
