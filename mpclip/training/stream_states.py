"""Cached states of a stream: beside each shard a file with the states of its samples, which is streamed in place of the shard.

    <cache_dir>/stream-<hash>/key.json       what the states depend on in the model, and how they are stored
                              00000.arrow    a part: the states of the samples of one shard, in their order
                              00000.json     its size, its hash and the shard that it was made of; written after it
                              00000.lock     locked by the process that computes it
                              manifest.json  all parts, written when they are all there

Any number of processes and machines with a common file system fill a store together: each computes the parts that no other one
has locked. The part of a killed process has no JSON file, and is computed again. A part is written aside and renamed.

A part has the names and captions of its samples too. So where pictures are frozen, training reads neither tars nor pictures.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout

from modeling_mpclip.pictures import to_rgb
from mpclip.data.image_checks import picture_or_fault
from mpclip.data.picture_size import pixel_limit
from mpclip.data.streaming import Sample, ShardFault, TarShards
from mpclip.files import aside, read_json, stamp, write_json, write_text, xxh128_file
from mpclip.progress import progress

from .collator import MPCLIPCollator
from .options import DataArguments
from .state_cache import (
    padded_pictures,
    padded_texts,
    text_key,
    text_runner,
    tree_identity,
    vision_key,
    vision_runner,
)
from .state_store import FORMATS, complete_key

logger = logging.getLogger("train_hf")

ROWS = 32  # of a record batch, which is computed and read at a time
SCHEMA = pyarrow.schema(
    [
        ("name", pyarrow.string()),
        ("captions", pyarrow.list_(pyarrow.string())),
        ("image", pyarrow.large_binary()),  # null where pictures are trained
        ("texts", pyarrow.list_(pyarrow.large_binary())),  # a cell per text; null where texts are not cached
    ]
)


class StateShards:
    """The parts of a store, as shards that are read by memory map. What they lack comes from the shards that they were made of.

    Args:
        folder: of the store.
        source: the shards that its parts were made of, in the order of the parts.
        with_images: whether the parts have the states of pictures.

    Attributes:
        names: of the shards; `total`: number of samples.
    """

    def __init__(self, folder: Path, source: TarShards, with_images: bool):
        self.folder, self.source, self.with_images = folder, source, with_images
        self.names = source.names
        parts = read_json(folder / "manifest.json")["parts"]
        self.total = sum(parts[name]["samples"] for name in self.names)
        self._checked: set[int] = set()

    def samples(self, shard: int, start: int = 0) -> Iterator[Sample]:
        """The samples of a shard, without the first `start`, with their states.

        Raises:
            ValueError: the part is damaged.
        """
        part = part_of(self.folder, self.names[shard])
        if shard not in self._checked and xxh128_file(part) != read_json(part.with_suffix(".json")).get("xxh128"):
            raise ValueError(f"{part} is damaged. Delete it: the same command computes it again.")
        self._checked.add(shard)
        rows = islice(_rows(part), start, None)
        if self.with_images:
            yield from (_sample(row, None) for row in rows)
            return
        pictures = self.source.samples(shard)
        for row in rows:
            name = row["name"].as_py()
            found = next((sample for sample in pictures if sample.name == name), None)
            if found is None:
                raise ShardFault(f"{self.names[shard]} has no sample {name} any more")
            yield _sample(row, found.picture)


class StreamedStates(MPCLIPCollator):
    """A collator for samples with states.

    Args:
        processor: of the model.
        format: of the states.
        text: width, number of nodes in a row, and the nodes that the model has; None if texts come as such.
        image_width: channels of a token; None if pictures come as such.
        words: as for `MPCLIPCollator`.
    """

    def __init__(
        self, processor, format: str, text: tuple[int, int, list[int]] | None, image_width: int | None, words: bool = False
    ):
        super().__init__(processor, words=words)
        self.format, self.text, self.image_width = FORMATS[format], text, image_width

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """As in the base class, from `text_states` and `image_states` of the examples, bytes, where these are cached."""
        captions = [example["captions"][0] for example in examples]
        if self.text is None:
            texts = self.text_inputs(captions)
        else:
            width, stored_nodes, nodes = self.text
            states = [self.format.decode(example["text_states"], width) for example in examples]
            texts = self.with_words(padded_texts(states, stored_nodes, nodes), captions)
        if self.image_width is None:
            return texts | self.image_inputs([example["image"] for example in examples])
        return texts | padded_pictures([self.format.decode(e["image_states"], self.image_width) for e in examples])


def cache_stream_states(
    model, processor, shards: TarShards, data: DataArguments, *, images: bool, negated: bool, device, precision: str
) -> tuple[StateShards, StreamedStates]:
    """Compute and store the states of all samples of a stream, or find them. All processes of a job call this.

    Args:
        model: an [`MPCLIPModel`], frozen where its states are stored.
        processor: its processor.
        shards: local files.
        data: the format and folder of the states, whether texts are cached, and how captions are joined.
        images: whether the states of pictures are stored.
        negated: include the negated prompts.
        device, precision: what is computed on, and in.

    Returns:
        The shards to train on, and the collator for their samples.

    Raises:
        ValueError: the shards are no files; a tower is trained; or a picture cannot be read, with `bad_images="fail"`.
    """
    if not isinstance(shards, TarShards):
        raise ValueError("cache_states of a stream needs tars on this machine's disks: write them with mpclip.data.shards.")
    tower, tree = model.text_model, model.prompt_tree(negated)
    key = {"kind": "stream", "shards": str(shards.files[0].parent.resolve()), "tokenizer": _tokenizer_key(processor.tokenizer)}
    run_texts = run_images = None
    if data.cache_text_states:
        key["text"] = text_key(model) | {"tree": tree_identity(tree, tower)}
        if data.joined.most > 1:
            key["text"] |= {"joined": data.joined}
        run_texts = text_runner(model, tree, device, precision)
    if images:
        key["image"] = vision_key(model, processor.image_processor)
        run_images = vision_runner(model, processor.image_processor, device, precision)
    text = json.dumps(complete_key(key, 0, data.cache_format, precision), sort_keys=True)
    folder = Path(data.cache_dir) / f"stream-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    if not (folder / "key.json").exists():
        write_text(folder / "key.json", text)
    encode = FORMATS[data.cache_format].encode

    def compute(samples: list[tuple[Sample, object]]) -> list[dict]:
        """Samples with their pictures -> rows of a part."""
        rows = [{"name": s.name, "captions": s.captions, "image": None, "texts": None} for s, _ in samples]
        if run_images is not None:
            for row, tokens in zip(rows, run_images([picture for _, picture in samples]), strict=True):
                row["image"] = encode(tokens)
        if run_texts is not None:
            texts_of = [data.joined.every(row["captions"]) for row in rows]
            texts = sorted({text for of_row in texts_of for text in of_row}, key=len)
            states = run_texts(processor.tokenizer(texts, truncation=True)["input_ids"])
            of_text = {text: encode(found) for text, found in zip(texts, states, strict=True)}
            for row, of_row in zip(rows, texts_of, strict=True):
                row["texts"] = [of_text[text] for text in of_row]
        return rows

    fill_parts(folder, shards, compute, data)
    text_form = (tower.config.hidden_size, len(tree), list(range(len(tree)))) if data.cache_text_states else None
    image_width = model.image_token_dim if images else None
    collator = StreamedStates(processor, data.cache_format, text_form, image_width, model.config.words)
    return StateShards(folder, shards, images), collator


def part_of(folder: Path, shard: str) -> Path:
    """The file with the states of a shard."""
    return folder / f"{shard.partition('.')[0]}.arrow"


def fill_parts(folder: Path, shards: TarShards, compute: Callable[[list], list[dict]], data: DataArguments) -> None:
    """Compute the parts that are not there or whose shard has changed, and write the manifest.

    Args:
        folder: of the store.
        shards: what it is made of.
        compute: up to `ROWS` samples, each with its picture -> their rows.
        data: the limit of pixels, and what happens to samples that cannot be read.
    """
    state, count = PartialState(), len(shards.names)
    mine = state.process_index * count // state.num_processes
    waiting = [i for i in (*range(mine, count), *range(mine)) if not _is_there(folder, shards, i)]  # each begins elsewhere
    if waiting:
        with progress("States of the stream", count, "shard", count - len(waiting), not state.is_local_main_process) as shown:
            for patient in (False, True):  # first what no other process computes, then wait for the others
                for i in list(waiting):
                    if _fill(folder, shards, i, compute, data, patient):
                        waiting.remove(i)
                        shown.update(1)
    notes = {name: read_json(part_of(folder, name).with_suffix(".json")) for name in shards.names}
    left_out = {name: fault for note in notes.values() for name, fault in note["left_out"].items()}
    if state.is_main_process:
        parts = {name: {total: note[total] for total in ("samples", "captions", "bytes")} for name, note in notes.items()}
        write_json(folder / "manifest.json", {"parts": read_json(folder / "manifest.json").get("parts", {}) | parts})
        if left_out:
            first = ", ".join(f"{name} ({fault})" for name, fault in list(left_out.items())[:20])
            logger.warning("Left out of the stream: %d samples that cannot be read: %s", len(left_out), first)
    state.wait_for_everyone()


def _is_there(folder: Path, shards: TarShards, shard: int) -> bool:
    """Whether a part is whole and was made of the shard as it is."""
    part, file = part_of(folder, shards.names[shard]), shards.files[shard]
    note = read_json(part.with_suffix(".json"))
    if not note or not part.exists() or stamp(part)[0] != note["bytes"]:
        return False
    if note["source"]["stamp"] == stamp(file):
        return True
    return note["source"]["stamp"][0] == stamp(file)[0] and note["source"]["xxh128"] == xxh128_file(file)  # a copy


def _fill(folder: Path, shards: TarShards, shard: int, compute: Callable, data: DataArguments, patient: bool) -> bool:
    """Compute a part, unless another process has done so. False if it is locked and `patient` is not set."""
    part, file = part_of(folder, shards.names[shard]), shards.files[shard]
    try:
        with FileLock(part.with_suffix(".lock"), blocking=patient):
            if _is_there(folder, shards, shard):
                return True
            for unfinished in folder.glob(f".{part.name}.*.part"):
                unfinished.unlink()  # left by a killed process
            source = {"stamp": stamp(file), "xxh128": xxh128_file(file)}
            left_out: dict[str, str] = {}
            readable, counts = _readable(shards, shard, data, left_out), {"samples": 0, "captions": 0}
            with aside(part) as written:
                with pyarrow.OSFile(str(written), "wb") as sink, pyarrow.ipc.new_stream(sink, SCHEMA) as writer:
                    while samples := list(islice(readable, ROWS)):
                        rows = compute(samples)
                        writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, SCHEMA))
                        counts["samples"] += len(rows)
                        counts["captions"] += sum(len(row["captions"]) for row in rows)
                size, digest = stamp(written)[0], xxh128_file(written)
            note = counts | {"bytes": size, "xxh128": digest, "source": source, "left_out": left_out}
            write_json(part.with_suffix(".json"), note)
            return True
    except Timeout:
        return False


def _readable(shards: TarShards, shard: int, data: DataArguments, left_out: dict[str, str]) -> Iterable[tuple[Sample, object]]:
    """The samples of a shard that can be read, with their pictures. The others are added to `left_out`."""
    try:
        for sample in shards.samples(shard):
            with pixel_limit(data.max_megapixels):
                picture, fault = picture_or_fault(sample.picture, data.max_megapixels)
            fault = sample.fault or fault
            if fault is None:
                yield sample, to_rgb(picture)
            elif data.bad_images == "fail":
                raise ValueError(f"{sample.name} ({fault}). Repair or remove it, or set --bad_images skip")
            else:
                left_out[sample.name] = fault
    except ShardFault as fault:
        if data.bad_images == "fail":
            raise
        left_out[shards.names[shard]] = str(fault)


def _rows(part: Path) -> Iterator[dict]:
    """The rows of a part, whose bytes stay in the memory map."""
    with pyarrow.memory_map(str(part)) as mapped, pyarrow.ipc.open_stream(mapped) as batches:
        for batch in batches:
            for i in range(len(batch)):
                yield {name: batch[name][i] for name in SCHEMA.names}


def _sample(row: dict, picture: dict | None) -> Sample:
    texts = row["texts"].values
    return Sample(
        row["name"].as_py(),
        picture,
        row["captions"].as_py(),
        image_states=row["image"].as_buffer(),
        text_states=texts and [cell.as_buffer() for cell in texts],
    )


def _tokenizer_key(tokenizer) -> str:
    """A hash of what token ids depend on."""
    told = tokenizer.get_vocab()
    if tokenizer.is_fast:  # without what every call sets anew
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        told = {name: part for name, part in parts.items() if name not in ("truncation", "padding")}
    return hashlib.sha256(
        f"{json.dumps(told, sort_keys=True)} {tokenizer.model_max_length} {tokenizer.truncation_side}".encode()
    ).hexdigest()
