"""Embeds shards with Ray Data: reading, decoding and embedding are steps that Ray scales apart, on one machine or a cluster.

    embed_on_ray("runs/mine", open_shards("laion"), "runs/laion", workers=16, address="auto")

    read      a task per shard gives its samples
    decode    tasks turn files into the model's inputs, on as many CPUs as are free
    embed     `workers` actors keep the model loaded, each on a GPU of its own where the cluster has some
    write     files of embeddings in the form of shard_files.py

Ray holds the early steps back while the model is busy, and does the work of a lost process again. After a lost cluster the same
command goes on from Ray's checkpoint: rows in finished files are not embedded again, and unfinished files are removed. Ray
keeps the keys of all finished rows in memory for that. With billions of rows, `mpclip embed` without Ray needs less.

A row here is known by SHARD/KEY, which must be unique. Files hold rows as they came, of several shards.
"""

import functools
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import torch

from modeling_mpclip.picture_files import open_rgb
from mpclip.data.picture_size import pixel_limit
from mpclip.files import read_json, write_json

from .checkpoints import load_encoder, refuse_unfit
from .decoding import fault
from .encoder import ModelEncoder
from .shard_files import columns_of, read_note, refuse_other, write_noted, write_unreadable
from .shard_sources import Shard
from .shards import Done, EmbedOptions, depends_on, how_made, precision_of_output

ROWS_READ = 256  # rows of a shard that are handed on at a time
ROWS_WRITTEN = 10_000  # of a file, at least
FEWEST_CPUS = 4  # that Ray must think it has: with fewer, its steps wait for one another when it goes on from a checkpoint
DECODER_CPUS = 0.5  # of a decoding task. Steps that ask for the same as the next one are made one step with it by Ray
SOURCES, CHECKPOINT = ".ray_shards.json", ".ray_checkpoint"


def embed_on_ray(
    model: str,
    shards: list[Shard],
    out: str | Path,
    options: EmbedOptions | None = None,
    *,
    batch_size: int = 64,
    precision: str = "auto",
    workers: int = 1,
    address: str | None = None,
    rows_written: int = ROWS_WRITTEN,
) -> Done:
    """Embed shards on Ray.

    Args:
        model: folder or Hub id of an MP-CLIP checkpoint, which every machine of the cluster can open.
        shards: from `open_shards`; their files too.
        out: folder of the embeddings, on a file system that all machines share.
        options: what the files hold.
        batch_size: pictures per batch.
        precision: as in `mpclip.hardware.choose_precision`, on the device that embeds.
        workers: copies of the model.
        address: of a running cluster, such as "auto". None starts one on this machine, and ends it.
        rows_written: of a file, at least; and so the rows that a kill may cost each worker.

    Returns:
        The numbers of `rows` and `unreadable` of now. Ray knows no shards: the other numbers stay 0.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the checkpoint is no MP-CLIP model with pictures; the files in `out` are of another model, of other options
            or of shards as they no longer are; a shard cannot be read, or an embedding is not finite.
    """
    options, out = options or EmbedOptions(), Path(out).absolute()
    refuse_unfit(model)
    model = os.path.abspath(model) if os.path.isdir(model) else model
    ray = start_ray(address)
    try:
        gpu = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        about = ray.remote(**gpu)(_about).remote(model, precision, str(out), options)
        try:
            depends, facts = ray.get(about)
        except ray.exceptions.RayTaskError as error:
            raise ValueError(str(error.cause)) from error
        before = _files(out)
        for path in before:
            refuse_other(path, read_note(path), depends)
        _refuse_changed(shards, out)
        note = depends | facts | how_made(batch_size) | {"source": {"engine": "ray"}}
        _run(ray, model, depends["dtype"], shards, out, options, note, gpu, batch_size, workers, rows_written)
    finally:
        if address is None:
            ray.shutdown()
    notes = {path: read_note(path) for path in _files(out)}
    if unreadable := [pair for path in notes for pair in notes[path]["unreadable_named"].items()]:
        write_unreadable(out / "ray.unreadable.jsonl", unreadable)
    new = [notes[path] for path in notes.keys() - set(before)]
    return Done(rows=sum(one["rows"] for one in new), unreadable=sum(one["unreadable"] for one in new))


def start_ray(address: str | None):
    """The module `ray`, connected to the cluster at `address`, or to a new one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a token in the home folder, which one machine does not need
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("--ray needs Ray Data: pip install 'mpclip[scale]'") from error
    if address is None:
        ray.init(num_cpus=max(FEWEST_CPUS, os.cpu_count()), include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=address)
    return ray


def _run(ray, model, dtype, shards, out, options, note, gpu, batch_size, workers, rows_written) -> None:
    """The steps, one behind the other."""
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    checkpoint = CheckpointConfig("key", str(out / CHECKPOINT), delete_checkpoint_on_success=False)
    before, context.checkpoint_config = context.checkpoint_config, checkpoint
    try:
        rows = ray.data.read_datasource(_source(shards), override_num_blocks=len(shards))
        decode = functools.partial(decode_rows, model=model, max_megapixels=options.max_megapixels)
        rows = rows.map_batches(decode, batch_size=batch_size, batch_format="pyarrow", num_cpus=DECODER_CPUS)
        rows = rows.map_batches(
            EmbedRows,
            batch_size=batch_size,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(model, dtype, options),
            **gpu,
        )
        rows.write_datasink(_sink(str(out), note, options, rows_written))
    except ray.exceptions.RayError as error:
        raise ValueError(f"Ray ended the work: {error}. What is in finished files stays: start again to go on") from error
    finally:
        context.checkpoint_config = before


def _source(shards: list[Shard]):
    """The shards as a source of Ray Data: a task for each."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Shards(Datasource):
        def get_read_tasks(self, parallelism: int, per_task_row_limit=None, data_context=None) -> list:
            metadata = [BlockMetadata(num_rows=None, size_bytes=shard.bytes, exec_stats=None) for shard in shards]
            tasks = [functools.partial(sample_blocks, shard) for shard in shards]
            return [ReadTask(*one, per_task_row_limit=per_task_row_limit) for one in zip(tasks, metadata, strict=True)]

        def estimate_inmemory_data_size(self) -> int:
            return sum(shard.bytes for shard in shards)

    return Shards()


def sample_blocks(shard: Shard) -> Iterator[pa.Table]:
    """The samples of a shard, some at a time: key, place, url, caption, content, fault."""
    schema = pa.schema({name: pa.string() for name in ("key", "place", "url", "caption", "fault")})
    schema = schema.append(pa.field("content", pa.large_binary()))
    rows: list[dict] = []
    for sample in shard.samples():
        place = f"{shard.name}/{sample.place}" if sample.place else None
        caption = next(iter(sample.captions), None)
        row = {"key": f"{shard.name}/{sample.key}", "place": place, "url": sample.url, "caption": caption}
        rows.append(row | {"fault": sample.fault, "content": sample.content or b""})
        if len(rows) == ROWS_READ:
            yield pa.Table.from_pylist(rows, schema)
            rows = []
    yield pa.Table.from_pylist(rows, schema)


@functools.cache
def _processor(model: str):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model, trust_remote_code=True)


def decode_rows(rows: pa.Table, model: str, max_megapixels: float) -> dict[str, np.ndarray]:
    """Samples -> inputs of the model. An unreadable one gets a blank picture, and `fault` says what is wrong with it."""
    texts = ("key", "place", "url", "caption", "fault")  # a column of them holds no None on the way
    decoded = {name: np.array([cell or "" for cell in rows[name].to_pylist()], dtype=object) for name in texts}
    contents = rows["content"].to_pylist()
    decoded["sha256"] = np.array([hashlib.sha256(content).hexdigest() for content in contents], dtype=object)
    pictures = []
    with pixel_limit(max_megapixels):
        for i, content in enumerate(contents):
            picture = PIL.Image.new("RGB", (32, 32))
            if not decoded["fault"][i]:
                try:
                    picture = open_rgb(io.BytesIO(content))
                except Exception as error:  # Pillow's decoders raise a dozen types
                    decoded["fault"][i] = fault(error, max_megapixels)
            pictures.append(picture)
    inputs = dict(_processor(model)(images=pictures))
    return decoded | {f"input {name}": tensor.numpy() for name, tensor in inputs.items()}  # (B, ...) each


class EmbedRows:
    """An actor with the model."""

    def __init__(self, model: str, dtype: str, options: EmbedOptions):
        self.options = options
        loaded = load_encoder(model, dtype)
        self.encoder = ModelEncoder(loaded.model, loaded.processor, model, image_inputs=_stacked)

    def __call__(self, rows: dict[str, np.ndarray]) -> pa.Table:
        good = np.array([not fault for fault in rows["fault"]], dtype=bool)  # (B,)
        inputs = {name.removeprefix("input "): rows[name] for name in rows if name.startswith("input ")}
        # The blank pictures go through the model too, so that a batch without a good one needs no way of its own.
        embeddings = self.encoder.embed_images([{name: cells[i] for name, cells in inputs.items()} for i in range(len(good))])
        kept = {"key": rows["key"], "place": rows["place"], "url": rows["url"], "caption": rows["caption"]}
        columns = {name: pa.array([cell or None for cell in cells], pa.string()) for name, cells in kept.items()}
        columns["sha256"] = pa.array([bytes.fromhex(digest) for digest in rows["sha256"]], pa.binary(32))
        columns["fault"] = pa.array([fault or None for fault in rows["fault"]], pa.string())
        columns["embedding"] = _lists(embeddings.float().numpy())
        if not np.isfinite(embeddings.float().numpy()[good]).all():
            raise ValueError(f"the embeddings of {', '.join(rows['key'][good][:20])} are not all finite")
        if self.options.captions:
            columns["caption_embedding"] = _lists(self.encoder.texts(list(rows["caption"]), quiet=True).numpy())
        return pa.table(columns)


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def _lists(embeddings: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(embeddings, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])


def _sink(out: str, note: dict, options: EmbedOptions, rows_written: int):
    """Files of embeddings as a sink of Ray Data. Ray notes which rows are in finished ones."""
    from ray.data.datasource import BlockBasedFileDatasink

    class Embeddings(BlockBasedFileDatasink):
        def write_block_to_file(self, block, file) -> None:
            write_rows(block.to_arrow(), file, note, options)

    return Embeddings(out, min_rows_per_file=rows_written, file_format="parquet")


def write_rows(rows: pa.Table, file, note: dict, options: EmbedOptions) -> None:
    """Write what `EmbedRows` gives as a file of embeddings.

    Args:
        rows: of any number of batches.
        file: a path, or a file that is open.
        note: of the file.
        options: what the file holds.
    """
    bad, rows = rows.filter(pc.is_valid(rows["fault"])), rows.filter(pc.is_null(rows["fault"]))
    cells = {name: rows[name].to_pylist() for name in ("key", "place", "url", "sha256", "caption")}
    captions = None
    if options.captions:
        there = np.array([caption is not None for caption in cells["caption"]], dtype=bool)  # (n,)
        captions = _matrix(rows["caption_embedding"])[there]
    table = columns_of(cells, options.stored, _matrix(rows["embedding"]), captions)
    named = list(zip(bad["key"].to_pylist(), bad["fault"].to_pylist(), strict=True))
    write_noted(file, table, note, named, len(named))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """(n, D) float32; n may be 0."""
    parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.zeros(0, np.float32), *parts]).reshape(-1, column.type.list_size)


def _about(model: str, precision: str, out: str, options: EmbedOptions) -> tuple[dict, dict]:
    """What embeddings depend on, and their shape; asked where the model will run."""
    encoder = load_encoder(model, precision_of_output(precision, out))
    if not isinstance(encoder, ModelEncoder):
        raise ValueError(f"{model} is no MP-CLIP checkpoint, whose inputs Ray prepares apart: use mpclip embed without --ray")
    width = encoder.images([PIL.Image.new("RGB", (32, 32))], quiet=True).shape[1]
    return depends_on(encoder, options), {"width": width, "segments": encoder.segments}


def _files(out: Path) -> list[Path]:
    return sorted(out.glob("*.parquet"))


def _refuse_changed(shards: list[Shard], out: Path) -> None:
    """Refuse a folder that was begun with other versions of these shards: Ray knows finished rows by keys alone."""
    before = read_json(out / SOURCES)
    if _files(out) and not before:
        raise ValueError(f"{out} has embeddings that were made without Ray: give another folder, or go on without Ray")
    now = {shard.name: shard.bytes for shard in shards}
    if changed := [name for name, size in now.items() if before.get(name, size) != size]:
        raise ValueError(f"{out} has embeddings of shards that have changed since: {', '.join(changed[:20])}. Embed them anew")
    write_json(out / SOURCES, before | now)
