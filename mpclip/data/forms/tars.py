"""webdataset shards: tar files in which files of one name belong together.

    0001.jpg, 0001.txt                  a picture and its caption
    0002.jpg, 0002.json                 a picture and {"caption": "..."}

The files are read where they lie in the tar; nothing is ever unpacked to the disk but into the cache of `datasets`.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from mpclip.data.captions import caption_columns, captions_of_cell, refuse_joined
from mpclip.data.reading import ReadingOptions

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif", "avif", "jp2")
TEXTS = ("txt", "caption", "captions", "text")  # endings of a file with a caption
LARGEST_MEMBER = 2**29  # bytes
FEATURES = datasets.Features(
    {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string")), "file_name": datasets.Value("string")}
)


def rows_of_tars(tars: list[Path], reading: ReadingOptions, need_captions: bool) -> datasets.Dataset:
    """The pictures of shards with `captions` and `file_name` (shard/name). They are in the cache of `datasets` afterwards.

    Args:
        tars: the shards.
        reading: `caption_column` names the ending of the files with captions, or the key in the JSON files.

    Raises:
        ValueError: a member leads out of its tar, a caption is not what it should be, or there is no picture.
    """
    paths = [str(tar.absolute()) for tar in tars]
    stamps = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, paths)]
    _refuse_escaping(tars)
    try:
        rows = datasets.Dataset.from_generator(
            _rows, features=FEATURES, gen_kwargs={"paths": paths, "stamps": stamps, "caption_column": reading.caption_column}
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise ValueError(str(cause) if isinstance(cause, ValueError) else f"{tars[0]} and the like: {cause}") from error
    if need_captions:
        refuse_joined(rows["captions"][:], reading, ("\n",))  # a caption per line, as in CLIP_benchmark's shards
    return rows


def _refuse_escaping(tars: list[Path]) -> None:
    """Refuse members that lead out of the tar, links, and huge ones. Runs over the headers alone, at every opening."""
    for path in tars:
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    _refuse_member(path, member)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path} is no whole tar file ({error})") from error


def _refuse_member(path: str | os.PathLike, member: tarfile.TarInfo) -> None:
    """Raise a ValueError for a member that leads out of its tar, is a link, or would fill the memory when it is read."""
    name, is_link = PurePosixPath(member.name), member.issym() or member.islnk()
    faults = {
        "is a link": is_link,
        "leads out of the tar": name.is_absolute() or ".." in name.parts,
        # A sparse file of a few bytes, or a compressed one, may unpack to any size.
        f"has {member.size / 1e6:,.0f} MB, more than any picture or caption": member.issparse() or member.size > LARGEST_MEMBER,
    }
    for fault in (fault for fault, is_so in faults.items() if is_so):
        raise ValueError(f"{path}: refused the member {member.name!r}, which {fault}")


def _rows(paths: list[str], stamps: list[tuple], caption_column: str | None) -> Iterator[dict[str, Any]]:
    """The rows of shards. `stamps` makes `datasets` tell a changed shard from the one in its cache."""
    for path in paths:
        for key, files in files_by_name(path):
            yield from _row(path, key, files, caption_column)


def files_by_name(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The files of a tar that belong together, in its order: their common name, and ending in lower case -> content.

    Raises:
        tarfile.TarError, EOFError: it is no whole tar file.
        ValueError: a file leads out of the tar or is far too large.
    """
    with tarfile.open(path) as tar:
        key, files = None, {}
        for member in tar:
            name = PurePosixPath(member.name)
            if not member.isfile() or name.name.startswith("."):
                continue
            _refuse_member(path, member)
            base, _, ending = name.name.partition(".")
            if key not in (None, str(name.parent / base)):
                yield key, files
                files = {}
            key = str(name.parent / base)
            files[ending.lower()] = tar.extractfile(member).read()
        if key is not None:
            yield key, files


def picture_ending(files: dict[str, bytes]) -> str | None:
    """Which of the files of one name is the picture; None if none is."""
    return next((ending for ending in files if ending.rsplit(".", 1)[-1] in PICTURES), None)


def captions_of_files(files: dict[str, bytes], caption_column: str | None) -> list[str]:
    """The captions in the files of one name.

    Args:
        files: ending -> content.
        caption_column: as in `rows_of_tars`.

    Raises:
        ValueError: a text is not UTF-8, or a caption is not what it should be.
    """
    cells: dict[str, Any] = {ending: files[ending].decode() for ending in (*TEXTS, caption_column) if ending in files}
    if "json" in files and (not cells or caption_column not in (None, *cells)):
        described = json.loads(files["json"])
        cells |= described if isinstance(described, dict) else {}
    names = caption_columns(list(cells), None) if caption_column is None else [caption_column]
    return [caption for name in names for caption in captions_of_cell(cells.get(name))]


def _row(path: str, key: str, files: dict[str, bytes], caption_column: str | None) -> Iterator[dict[str, Any]]:
    """The row of the files of one name, if a picture is among them."""
    ending, place = picture_ending(files), f"{path}, {key}"
    if ending is None:
        return
    try:
        captions = captions_of_files(files, caption_column)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: a text is not UTF-8 ({error})") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    yield {
        "image": {"bytes": files[ending], "path": f"{key}.{ending}"},
        "captions": captions,
        "file_name": f"{Path(path).name}/{key}.{ending}",
    }
