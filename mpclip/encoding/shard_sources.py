"""What many pictures lie in: webdataset tars, parquet files, or a folder of picture files; cut into shards.

    for shard in open_shards("laion/*.tar"):
        for sample in shard.samples():
            sample.key, sample.content, sample.captions

A shard is what one worker embeds at a time. Every worker that opens the same data sees the same shards in the same order.
Tars have img2dataset's layout (00000.tar with 000000000.jpg, .txt, .json) or any other of webdataset. The listing of failed
downloads that img2dataset puts beside each tar, 00000.parquet, is no shard.
"""

import glob
import json
import os
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mpclip.data.captions import caption_columns, captions_of_cell
from mpclip.data.forms.tars import captions_of_files, files_by_name, picture_ending
from mpclip.data.image_columns import IMAGE_COLUMNS
from mpclip.data.picture_folder import find_pictures, read_file
from mpclip.files import stamp, xxh128_file

KEY_COLUMNS = ("__key__", "key", "id", "image_id", "file_name")
URL_COLUMNS = ("url", "URL")
TAR_END = 1024  # zeros at the end of a tar
ROWS_READ = 256  # rows of a parquet file that are in memory at a time


@dataclass
class Sample:
    """A picture of a shard, as it lies there.

    Attributes:
        key: tells it apart in its shard: the common name of its files, the cell of a column `key` or the like, or a path.
        place: what its file is called within the shard, with its ending; "" in a table.
        url: where it was downloaded from; None if the shard does not say.
        content: the bytes of its file; None if there is no picture.
        captions: its captions; [] for none.
        fault: what is wrong with it, if that is known already.
    """

    key: str
    place: str = ""
    url: str | None = None
    content: bytes | None = None
    captions: list[str] = field(default_factory=list)
    fault: str | None = None


@dataclass
class Columns:
    """Names of columns, where they are not the usual ones; as in `mpclip.data.reading.ReadingOptions`."""

    image: str | None = None
    caption: str | None = None


@dataclass
class Shard:
    """A part of the data. `name` is that of its output, and `bytes` its size, for the time that is left."""

    name: str
    columns: Columns

    def samples(self) -> Iterator[Sample]:
        """Its samples, in the order in which they lie.

        Raises:
            ValueError, OSError: it cannot be read.
        """
        raise NotImplementedError

    def identity(self, known: dict) -> dict:
        """What tells it from another shard of its name, as JSON.

        Args:
            known: an earlier identity. The content is only hashed if size or date differ from those there.
        """
        raise NotImplementedError


@dataclass
class FileShard(Shard):
    """A shard that is one file, `path`."""

    path: Path

    @property
    def bytes(self) -> int:
        return os.path.getsize(self.path)

    def identity(self, known: dict) -> dict:
        now = stamp(self.path)
        if known.get("stamp") == now:
            return known
        return {"file": self.path.name, "stamp": now, "xxh3": xxh128_file(self.path)}


class TarShard(FileShard):
    """A tar of webdataset."""

    def samples(self) -> Iterator[Sample]:
        self._refuse_cut_off()
        try:
            for key, files in files_by_name(self.path):
                ending = picture_ending(files)
                name = _text(key)
                if ending is None:
                    yield Sample(name, fault=f"no picture among its files ({', '.join(sorted(files))})")
                    continue
                sample = Sample(name, _text(f"{key}.{ending}"), content=files[ending])
                try:
                    sample.captions = captions_of_files(files, self.columns.caption)
                    sample.url = _described(files).get("url")
                except ValueError as error:
                    sample.fault = f"its texts: {error}"
                yield sample
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{self.path} is no whole tar file ({error}): copy or download it again") from error

    def _refuse_cut_off(self) -> None:
        """A tar ends with blocks of zeros. Without them, `tarfile` takes one that was cut off between two files for whole."""
        with open(self.path, "rb") as file:
            file.seek(max(0, self.bytes - TAR_END))
            if file.read() != bytes(TAR_END):
                raise ValueError(f"{self.path} is no whole tar file (its end is missing): copy or download it again")


class ParquetShard(FileShard):
    """A parquet file whose pictures lie in it, as bytes or as {bytes, path}."""

    def samples(self) -> Iterator[Sample]:
        try:
            with pq.ParquetFile(self.path) as file:
                yield from self._samples(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{self.path} is no whole parquet file ({error}): copy or download it again") from error

    def _samples(self, file: pq.ParquetFile) -> Iterator[Sample]:
        names = file.schema_arrow.names
        wanted = (self.columns.image,) if self.columns.image else IMAGE_COLUMNS
        image = next((name for name in wanted if name in names), None)
        if image is None:
            raise ValueError(f"{self.path} has no column {' or '.join(wanted)}; it has {names}. Give --image_column")
        kind = file.schema_arrow.field(image).type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)):
            raise ValueError(f"{self.path}: column {image!r} holds {kind}, expected the bytes of pictures")
        key, url = (next((name for name in usual if name in names), None) for usual in (KEY_COLUMNS, URL_COLUMNS))
        captions = caption_columns(names, self.columns.caption)
        columns = list(dict.fromkeys(name for name in (image, key, url, *captions) if name))
        row = 0
        for batch in file.iter_batches(ROWS_READ, columns=columns):
            for cells in batch.to_pylist():
                yield _of_row(cells, row, image, key, url, captions)
                row += 1


@dataclass
class FolderShard(Shard):
    """Some picture files of a folder, by their paths in it."""

    folder: Path
    names: list[str]

    @cached_property
    def bytes(self) -> int:
        return sum(size for size, _ in self._stamps.values())

    def samples(self) -> Iterator[Sample]:
        for name in self.names:
            try:
                yield Sample(_text(name), _text(name), content=read_file(self.folder / name))
            except (OSError, ValueError) as error:
                yield Sample(_text(name), _text(name), fault=getattr(error, "strerror", None) or str(error))

    def identity(self, known: dict) -> dict:
        listed = json.dumps([[_text(name), *stamp] for name, stamp in self._stamps.items()])
        return {"files": len(self.names), "xxh3": xxhash.xxh3_128_hexdigest(listed.encode())}

    @cached_property
    def _stamps(self) -> dict[str, list[int]]:
        return {name: stamp(self.folder / name) for name in self.names if (self.folder / name).exists()}


def open_shards(
    data: str | Path,
    shard_size: int = 10_000,
    image_column: str | None = None,
    caption_column: str | None = None,
    follow_links: bool = False,
) -> list[Shard]:
    """The shards of some data.

    Args:
        data: a tar or parquet file, a pattern such as "laion/*.tar", a folder of either, or a folder of picture files.
        shard_size: picture files of a folder that make a shard.
        image_column, caption_column, follow_links: as in `mpclip.data.reading.ReadingOptions`.

    Returns:
        The shards in the order of their names.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: two files of one name, or no picture.
    """
    data, columns = str(data), Columns(image_column, caption_column)
    paths = sorted(Path(path) for path in glob.glob(data, recursive=True))
    if not paths:
        raise FileNotFoundError(f"nothing at {data}: expected a tar or parquet file, a pattern of them, or a folder")
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        paths = sorted(folder.glob("*.tar")) or sorted(folder.glob("*.parquet"))
        if not paths:
            return _of_folder(folder, shard_size, columns, follow_links)
    shards: dict[str, Shard] = {}
    for path in paths:
        kind = {".tar": TarShard, ".parquet": ParquetShard}.get(path.suffix)
        if kind is None:
            raise ValueError(f"{path}: expected files that end in .tar or .parquet")
        if path.stem in shards:
            raise ValueError(f"two shards are called {path.stem}: {shards[path.stem].path} and {path}. Embed them apart")
        shards[path.stem] = kind(path.stem, columns, path)
    return list(shards.values())


def _of_folder(folder: Path, size: int, columns: Columns, follow_links: bool) -> list[Shard]:
    names, refused = find_pictures(folder, follow_links)
    if refused:
        named = ", ".join(f"{_text(name)} ({reason})" for name, reason in list(refused.items())[:20])
        warnings.warn(f"{len(refused)} files and folders in {folder} are left out: {named}", stacklevel=3)
    if not names:
        raise ValueError(f"no picture in {folder}: expected tar or parquet files, or files that Pillow reads")
    starts = range(0, len(names), size)
    return [FolderShard(f"pictures-{i:06d}", columns, folder, names[start : start + size]) for i, start in enumerate(starts)]


def _of_row(cells: dict, row: int, image: str, key: str | None, url: str | None, captions: list[str]) -> Sample:
    """The sample of a row of a parquet file."""
    content = cells[image]["bytes"] if isinstance(cells[image], dict) else cells[image]
    named = cells[key] if key else None
    sample = Sample(str(row if named is None else named), url=cells[url] if url else None, content=content)
    try:
        sample.captions = [caption for name in captions for caption in captions_of_cell(cells[name])]
    except ValueError as error:
        sample.fault = f"its captions: {error}"
    if not content:
        sample.fault = "no picture in its row"
    return sample


def _described(files: dict[str, bytes]) -> dict:
    described = json.loads(files["json"]) if "json" in files else {}
    return described if isinstance(described, dict) else {}


def _text(name: str) -> str:
    """A file's name as text: parquet takes no other, and a file's name may hold any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
