"""Embeddings of a shard as one parquet file: columns, what is noted in it, and how a whole one is told from a damaged one.

    key                string                    tells a picture apart in its shard
    place              string                    its file in the shard, with its ending; null in a table
    url                string                    where it was downloaded from; null if the shard does not say
    sha256             fixed_size_binary[32]     of the bytes of its file: the same picture has the same under any name
    embedding          fixed_size_list[D]        float16 or float32, L2-normalised in float32
    caption            string                    its first caption; only where captions were wanted
    caption_embedding  fixed_size_list[D]        likewise; null without a caption

Beside NAME.parquet lies NAME.unreadable.jsonl, where a shard has pictures that could not be read. The note in the metadata
(key b"mpclip", JSON) says which model, options and shard the file is from. Every page has a checksum.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpclip.files import aside, write_text

NOTE = b"mpclip"
FORMAT = 1
GROUP = 1024  # rows of a row group: what must be read to get one row
NAMED = 100  # unreadable samples of a shard that its note names; the side file names all
STORED = ("float16", "float32")


class Damaged(ValueError):
    """A file of embeddings is not as it was written."""


class OtherEmbeddings(ValueError):
    """A file is of another model, was made with other options, or holds something else."""


def columns_of(rows: dict[str, list], stored: str, embeddings: np.ndarray, captions: np.ndarray | None = None) -> pa.Table:
    """The table of a shard.

    Args:
        rows: `key`, `place`, `url`, `sha256` (bytes), and `caption` with `captions`; one of each per picture.
        stored: dtype of the embeddings in the file, one of `STORED`.
        embeddings: (n, D) float32.
        captions: (c, D) float32 embeddings of the captions that are not None, in their order. None: captions are not kept.
    """
    width = embeddings.shape[1]
    columns = {name: pa.array(rows[name], pa.string()) for name in ("key", "place", "url")}
    columns["sha256"] = pa.array(rows["sha256"], pa.binary(32))
    columns["embedding"] = _lists(embeddings, stored)
    if captions is not None:
        there = np.array([caption is not None for caption in rows["caption"]], dtype=bool)  # (n,)
        spread = np.zeros((len(there), width), dtype=np.float32)
        spread[there] = captions
        columns["caption"] = pa.array(rows["caption"], pa.string())
        columns["caption_embedding"] = _lists(spread, stored, pa.array(~there))
    return pa.table(columns)


def write_embeddings(path: Path, table: pa.Table, note: dict, unreadable: list[tuple[str, str]]) -> None:
    """Write the file of a shard, whole or not at all.

    Args:
        path: NAME.parquet.
        table, note, unreadable: as for `write_noted`.
    """
    side = side_file(path)
    if unreadable:
        write_unreadable(side, unreadable)
    with aside(path) as written:
        write_noted(written, table, note, unreadable[:NAMED], len(unreadable))
    if not unreadable:
        side.unlink(missing_ok=True)  # of an earlier version of the shard


def write_noted(where, table: pa.Table, note: dict, named: list[tuple[str, str]], unreadable: int) -> None:
    """Write a table of embeddings with its note.

    Args:
        where: a path, or a file that is open.
        table: from `columns_of`.
        note: what the embeddings depend on, as JSON. The numbers of rows and of unreadable samples are added.
        named: keys of unreadable samples, each with what is wrong with it.
        unreadable: how many there are; more than the note names, perhaps.
    """
    counts = {"format": FORMAT, "rows": table.num_rows, "unreadable": unreadable, "unreadable_named": dict(named)}
    noted = table.replace_schema_metadata({NOTE: json.dumps(note | counts, ensure_ascii=False)})
    texts = [name for name in table.column_names if pa.types.is_string(table[name].type)]
    how = {"compression": _compression(table), "use_dictionary": texts, "write_page_checksum": True}
    pq.write_table(noted, where, row_group_size=GROUP, **how)


def write_unreadable(file: Path, unreadable: list[tuple[str, str]]) -> None:
    """Write the side file: a line of JSON for each unreadable sample."""
    lines = [json.dumps({"key": key, "fault": fault}, ensure_ascii=False) for key, fault in unreadable]
    write_text(file, "\n".join(lines) + "\n")


def side_file(path: Path) -> Path:
    """Where the unreadable samples of a file of embeddings are named."""
    return path.with_name(f"{path.stem}.unreadable.jsonl")


def read_note(path: Path, whole: bool = False) -> dict:
    """What is noted in a file of embeddings.

    Args:
        path: of the file.
        whole: read every page and compare its checksum, instead of the end of the file alone.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is cut off, or not as it was written.
        OtherEmbeddings: it is another parquet file, or of a later version.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=whole) as file:
            note, rows = file.schema_arrow.metadata or {}, file.metadata.num_rows
            if whole:
                for group in range(file.num_row_groups):
                    file.read_row_group(group)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error
    if NOTE not in note:
        raise OtherEmbeddings(f"{path} is a parquet file that mpclip embed has not written: give another folder")
    told = json.loads(note[NOTE])
    if told["format"] != FORMAT:
        raise OtherEmbeddings(f"{path} has format {told['format']}, and this version reads {FORMAT}: use the one that wrote it")
    if told["rows"] != rows:
        raise Damaged(f"{path} is damaged: it has {rows:,} rows, and notes {told['rows']:,}")
    return told


def read_embeddings(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file of embeddings, some at a time; every page is compared with its checksum.

    Args:
        path: of the file.
        columns: their names; None for all.

    Raises:
        Damaged: it is not as it was written.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from file.iter_batches(64 * GROUP, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error


def refuse_other(path: Path, note: dict, depends: dict) -> None:
    """Refuse a file of embeddings that is not of this model and these options.

    Args:
        path: the file, for the message.
        note: from `read_note`.
        depends: from `depends_on`.

    Raises:
        OtherEmbeddings: the message has what differs.
    """
    differs = [key for key in depends if key != "model" and note.get(key) != depends[key]]
    if not differs:
        return
    told = "; ".join(f"{key} {_short(note.get(key))}, not {_short(depends[key])}" for key in differs)
    of = f" (its model is {note.get('model')})" if "fingerprint" in differs else ""
    raise OtherEmbeddings(f"{path} has {told}{of}. Give another folder with --out, or the model and options of that file")


def matrix(column: pa.Array) -> np.ndarray:
    """(n, D) of a column of embeddings without nulls, in its own dtype."""
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def _lists(embeddings: np.ndarray, stored: str, null: pa.Array | None = None) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(embeddings, dtype=stored).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1], mask=null)


def _compression(table: pa.Table) -> dict[str, str]:
    """Embeddings are noise to a compressor; the other columns shrink."""
    names = [field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)]
    lists = [f"{field.name}.list.element" for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    return dict.fromkeys(names, "zstd") | dict.fromkeys(lists, "none")


def _short(value: object) -> str:
    return repr(value[:12] if isinstance(value, str) and len(value) == 64 else value)
