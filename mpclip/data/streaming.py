"""Data sets that are read as a stream, shard by shard: nothing is copied, and nothing is read before it is needed.

    shards = open_shards("data/*.tar", "train", ReadingOptions())
    shards.names                  # ["00000.tar", "00001.tar", ...]
    next(shards.samples(0))       # Sample(name="00000.tar/000000000.jpg", picture={"bytes": ...}, captions=[...])

A source is one of these:

* webdataset tars, such as img2dataset writes and `python -m mpclip.data.shards`: a folder, a file or a pattern;
* parquet files: a folder, a file or a pattern;
* the id of a data set on the Hub, or the address of tars (hf://, https://): `datasets` streams it. Several are named by numbers
  in braces, https://example.org/{000..127}.tar, as webdataset has it.

Each file is a shard. Columns and captions are found as for data sets that are opened whole (image_text.py). But rows of one
picture stay several samples, since a stream never sees all rows at once.
"""

import glob
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow.parquet

from mpclip.data.captions import CLASS_COLUMNS, caption_columns, captions_of_cell, refuse_joined
from mpclip.data.forms.tars import captions_of_files, files_by_name, picture_ending
from mpclip.data.image_columns import IMAGE_COLUMNS
from mpclip.data.image_sources import HUB_ID, TAR_SUFFIXES, tar_files
from mpclip.data.links import Bounds
from mpclip.data.reading import ReadingOptions
from mpclip.data.splits import files_by_split
from mpclip.files import read_json, stamp

MANIFEST = "manifest.json"  # what `mpclip.data.shards` writes beside its shards
PROBED = 64  # samples at which captions are looked at when a stream is opened
READ_AT_A_TIME = 16  # rows of a table
TAR_END = 1024  # bytes, all zero, that end a tar


class ShardFault(OSError):
    """A shard cannot be read, or not to its end."""


@dataclass
class Sample:
    """One sample of a shard. The picture is not decoded.

    Attributes:
        name: of the shard and of the sample in it; no two samples share one.
        picture: `bytes` and `path` as in `datasets.Image(decode=False)`; None if there is none.
        captions: not empty, unless there is a fault.
        fault: what is wrong with the captions, in a few words; None if nothing is.
        image_states, text_states: cached states of the picture and of each caption, as bytes; None where they are not cached.
    """

    name: str
    picture: dict[str, Any] | None
    captions: list[str]
    fault: str | None = None
    image_states: Any = None
    text_states: list | None = None


class TarShards:
    """webdataset tars.

    Args:
        files: the tars.
        reading: `caption_column` is the ending of the files with captions, or a key of the JSON files.

    Attributes:
        names: of the shards.
        total: number of samples, from the manifest beside the shards or from img2dataset's `*_stats.json`; None if unknown.
    """

    def __init__(self, files: list[Path], reading: ReadingOptions):
        self.files, self.reading = files, reading
        self.names = [file.name for file in files]
        counts = [_samples_in(file) for file in files]
        self.total = None if None in counts else sum(counts)

    def samples(self, shard: int, start: int = 0) -> Iterator[Sample]:
        """The samples of a shard, without the first `start`.

        Raises:
            ShardFault: the tar is cut short or damaged. The samples before the damage were given.
        """
        name = self.names[shard]
        groups = files_by_name(self.files[shard])
        pictures = ((key, files, ending) for key, files in groups if (ending := picture_ending(files)) is not None)
        try:
            for key, files, ending in islice(pictures, start, None):
                captions, fault = _captions(lambda files=files: captions_of_files(files, self.reading.caption_column))
                if self.reading.separator:
                    captions = captions_of_cell(captions, self.reading.separator)
                cell = {"bytes": files[ending], "path": f"{key}.{ending}"}
                yield Sample(f"{name}/{key}.{ending}", cell, captions, fault)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise ShardFault(f"{name} cannot be read to its end ({error})") from error
        if not _has_end(self.files[shard]):
            raise ShardFault(f"{name} cannot be read to its end (it is cut off between two files)")


class TableShards:
    """Shards of rows that `datasets` streams: parquet, and data sets of the Hub.

    Args:
        rows: the stream.
        names: of its shards.
        total: number of its rows, or None.
        reading: names the columns.
        bounds: where pictures may lie that rows name by a path; None where `datasets` resolves them.

    Raises:
        ValueError: there is no column of pictures or of captions.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        names: list[str],
        total: int | None,
        reading: ReadingOptions,
        bounds: Bounds | None,
    ):
        self.names, self.total, self.reading, self.bounds = names, total, reading, bounds
        columns = rows.column_names or list(next(iter(rows)))
        features = rows.features or {}
        wanted = (reading.image_column,) if reading.image_column else IMAGE_COLUMNS
        self.image = next((name for name in wanted if name in columns), None)
        if self.image is None:
            raise ValueError(f"no column is named {', '.join(wanted)}; it has {columns}. Set image_column to one of these")
        self.captions = caption_columns(columns, reading.caption_column)
        self.label = next((name for name in CLASS_COLUMNS if name in columns), None)
        self.classes = features.get(self.label) if isinstance(features.get(self.label), datasets.ClassLabel) else None
        if self.captions and reading.class_caption is not None:
            raise ValueError(f"class_caption is for data without captions, but there are some in {', '.join(self.captions)}")
        if not self.captions and "json" not in columns and not (reading.class_caption and self.label):
            raise ValueError(f"no column has captions; it has {columns}. Set caption_column to one of these")
        if isinstance(features.get(self.image), datasets.Image):
            rows = rows.cast_column(self.image, datasets.Image(decode=False))
        self.rows = rows

    def samples(self, shard: int, start: int = 0) -> Iterator[Sample]:
        """As `TarShards.samples`.

        Raises:
            ShardFault: the shard cannot be read.
            ValueError: a row names a picture that lies elsewhere.
        """
        name, number = self.names[shard], start
        rows = self.rows.shard(len(self.names), shard).skip(start)
        batches = rows.iter(READ_AT_A_TIME)  # unlike iter(rows), it does not share the rows among the workers of a loader
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # of many types: the network, a damaged file
                raise ShardFault(f"{name} cannot be read to its end ({type(error).__name__}: {error})") from error
            if batch is None:
                return
            for cells in zip(*batch.values(), strict=True):
                yield self._sample(f"{name}, row {number}", dict(zip(batch, cells, strict=True)))
                number += 1

    def _sample(self, name: str, row: dict[str, Any]) -> Sample:
        cell = row[self.image]
        if isinstance(cell, bytes):
            cell = {"bytes": cell, "path": None}
        path = cell and cell["bytes"] is None and cell["path"]
        if path and self.bounds is not None and (fault := self.bounds.fault(path)):
            raise ValueError(f"{name}: refused the image path {path!r}, {fault}")
        captions, fault = _captions(lambda: self._captions_of(row))
        return Sample(name, cell, captions, fault)

    def _captions_of(self, row: dict[str, Any]) -> list[str]:
        names = self.captions
        if "__key__" in row:  # webdataset: a sample may lack a file that others have
            row = {name: cell for name, cell in row.items() if cell is not None}
            names = caption_columns(list(row), self.reading.caption_column) if names else names
        if not names and self.reading.class_caption is not None:
            label = row[self.label] if self.classes is None else self.classes.int2str(row[self.label])
            return [self.reading.class_caption.replace("{}", str(label).replace("_", " "))]
        if not names:  # webdataset: {"caption": ...} in a JSON file
            row = row["json"] or {}
            names = caption_columns(list(row), None)
        cells = (row[name] for name in names)  # bytes: a file with an ending that `datasets` does not know
        texts = (cell.decode() if isinstance(cell, bytes) else cell for cell in cells)
        return [caption for text in texts for caption in captions_of_cell(text, self.reading.separator)]


Shards = TarShards | TableShards


def open_shards(source: str, split: str, reading: ReadingOptions) -> Shards:
    """Open one split of a data set as a stream.

    Args:
        source: one of the forms at the top of this module.
        split: its name. Files are of the split that a word in their name or folder tells, otherwise of "train".
        reading: how it is read.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: there is no such split, no column of pictures or captions, or the source is no stream.
    """
    if "[" in split:
        raise ValueError(
            f"split {split!r}: a stream has no parts, since its length is not known before it was read. Name a whole split, "
            "and give the shards to train on by a pattern, such as data/0000*.tar"
        )
    try:
        shards = _open(source, split, reading)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    probed = list(islice(_safely(shards.samples(0)), PROBED))
    if probed and not any(sample.captions for sample in probed):
        faults = sorted({sample.fault for sample in probed if sample.fault})
        raise ValueError(f"{source}: none of the first {len(probed)} samples has a caption ({'; '.join(faults)[:300]})")
    refuse_joined([sample.captions for sample in probed if sample.captions], reading)
    return shards


def _open(source: str, split: str, reading: ReadingOptions) -> Shards:
    path = Path(source)
    if "://" in source:
        if not source.endswith(TAR_SUFFIXES):
            raise ValueError("expected the address of tars, a folder, a pattern of files, or the id of a data set on the Hub")
        rows = _load("webdataset", split="train", data_files={"train": numbered_addresses(source)})
        return TableShards(rows, _numbered(rows), None, reading, None)
    if tars := tar_files(source):
        return TarShards(_of_split(tars, split), reading)
    if found := [Path(file) for file in glob.glob(source if source.endswith(".parquet") else f"{source}/*.parquet")]:
        files = _of_split(files_by_split(found), split)
        rows = _load("parquet", split="train", data_files={"train": [str(file) for file in files]})
        total = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
        caches = [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
        bounds = Bounds([path if path.is_dir() else path.parent, *caches], reading.follow_links)
        return TableShards(rows, [file.name for file in files], total, reading, bounds)
    if path.exists() or not re.fullmatch(HUB_ID, source):
        what = "no tars and no parquet files" if path.exists() else "nothing"
        raise FileNotFoundError(
            f"{what} at {source}: a stream reads webdataset tars, parquet files or a data set of the Hub. Any other data set "
            "is made into tars by: python -m mpclip.data.shards --data DATA --split SPLIT --out FOLDER"
        )
    rows = _load(source, split=split)
    told = (rows.info.splits or {}).get(split)
    return TableShards(rows, _numbered(rows), told and told.num_examples, reading, None)


def numbered_addresses(address: str) -> list[str]:
    """The addresses that one with numbers in braces stands for: "{08..10}.tar" is 08.tar, 09.tar and 10.tar.

    Raises:
        ValueError: there are other braces.
    """
    before, *rest = re.split(r"\{(\d+)\.\.(\d+)\}", address)
    if "{" in before + "".join(rest[2::3]) or len(rest) > 3:
        raise ValueError("expected one range of numbers in braces, such as {000..127}")
    if not rest:
        return [address]
    first, last, behind = rest
    if int(first) > int(last):
        raise ValueError(f"{{{first}..{last}}} is no range: the first number must not be above the last")
    return [f"{before}{number:0{len(first)}d}{behind}" for number in range(int(first), int(last) + 1)]


def _load(*args, **kwargs) -> datasets.IterableDataset:
    try:
        return datasets.load_dataset(*args, streaming=True, **kwargs)
    except Exception as error:  # of many types: the network, the Hub, a wrong split
        raise ValueError(f"datasets.load_dataset could not open it ({type(error).__name__}: {error})") from error


def _numbered(rows: datasets.IterableDataset) -> list[str]:
    return [f"shard {number}" for number in range(rows.num_shards)]


def _of_split(files: dict[str, list[Path]], split: str) -> list[Path]:
    if split not in files:
        raise ValueError(f"there is no split {split!r}; splits found by the names of the files: {sorted(files)}")
    return files[split]


def _samples_in(tar: Path) -> int | None:
    """The number of samples in a tar, as the program that wrote it has noted beside it."""
    told = read_json(tar.with_name(MANIFEST)).get("shards", {}).get(tar.name)
    if told is None:  # img2dataset
        told = read_json(tar.with_name(f"{tar.name.partition('.')[0]}_stats.json")).get("successes")
    return told


def _has_end(tar: Path) -> bool:
    """Whether a tar ends with zeros, as it must. `tarfile` takes one that was cut off between two files for whole."""
    if tar.suffix != ".tar":
        return True  # a compressed one that is cut off cannot be unpacked
    with open(tar, "rb") as file:
        file.seek(max(0, stamp(tar)[0] - TAR_END))
        return file.read() == bytes(TAR_END)


def _captions(read) -> tuple[list[str], str | None]:
    """Captions, or what is wrong with them."""
    try:
        captions = read()
    except ValueError as error:
        return [], str(error)
    return captions, None if captions else "no caption"


def _safely(samples: Iterator[Sample]) -> Iterator[Sample]:
    """The samples up to a fault of their shard: training will meet and name it."""
    try:
        yield from samples
    except ShardFault:
        return
