"""Writes the shards of a data set: tars in img2dataset's layout, or parquet. `mpclip.data.shards` is the command."""

import hashlib
import io
import json
import logging
import math
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import PIL.Image

from mpclip.data.forms.tars import PICTURES
from mpclip.data.identity import identity_of_images
from mpclip.data.image_checks import NAMES_SHOWN, picture_or_fault
from mpclip.data.image_text import load_image_text
from mpclip.data.picture_size import pixel_limit
from mpclip.data.reading import ReadingOptions
from mpclip.data.splits import split_of_file
from mpclip.data.streaming import MANIFEST
from mpclip.files import aside, read_json, stamp, write_json
from mpclip.progress import progress

logger = logging.getLogger(__name__)
DEFAULT_QUALITY = 90  # of JPEG


def write_shards(
    source: str,
    split: str,
    out: str | Path,
    *,
    shards: int | None = None,
    samples_per_shard: int = 10_000,
    format: str = "tar",
    shuffle: int | None = None,
    longest_side: int | None = None,
    quality: int | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Write one split of a data set as shards of equal size, give or take one sample.

    Args:
        source, split, reading: as for `load_image_text`.
        out: folder of the shards. Those of the split "train" are named 00000, those of others validation-00000 and so on.
        shards: number of shards; by default as few as `samples_per_shard` allows.
        samples_per_shard: the most samples of a shard.
        format: "tar" or "parquet".
        shuffle: seed of the order; None keeps that of the data set.
        longest_side: larger pictures are scaled down to it, and all are written as JPEG. None: files are copied.
        quality: of the JPEG; None without `longest_side` copies files.

    Returns:
        What the manifest says of this split: `samples`, `left_out`, and `written`, the number of shards that were not there.

    Raises:
        ValueError: as `load_image_text`; there are fewer samples than shards; the folder holds other shards of this split; or a
            picture cannot be read, with `bad_images="fail"`.
    """
    how, out = ReadingOptions(**reading), Path(out)
    rows = load_image_text(source, split, check_images=False, **reading).with_format(None)
    rows = rows.cast_column("image", datasets.Image(decode=False))
    if shuffle is not None:
        rows = rows.select(random.Random(f"{shuffle}").sample(range(len(rows)), len(rows)))
    count = shards or math.ceil(len(rows) / samples_per_shard)
    if count > len(rows):
        raise ValueError(f"{len(rows)} samples do not fill {count} shards: set --shards to {len(rows)} or less")
    part = split.partition("[")[0]
    prefix = "" if part == "train" else f"{part}-"
    if split_of_file(f"{prefix}0") != ("train" if not prefix else part):
        raise ValueError(f"split {part!r}: shards tell their split by their names; expected train, validation or test")
    names = [f"{prefix}{number:05d}.{format}" for number in range(count)]
    _refuse_others(out, names, part)
    made, left_out, written = {}, {}, 0
    recoding = None if longest_side is None and quality is None else (longest_side, quality or DEFAULT_QUALITY)
    with progress("Writing shards", len(rows), "sample") as shown:
        for number, name in enumerate(names):
            numbers = range(number * len(rows) // count, (number + 1) * len(rows) // count)
            told, is_new = _write_shard(out / name, number, rows.select(numbers), recoding, how)
            made[name], left_out = told["successes"], left_out | told["left_out"]
            written += is_new
            shown.update(len(numbers))
    if left_out:
        listed = ", ".join(f"{name} ({fault})" for name, fault in list(left_out.items())[:NAMES_SHOWN])
        logger.warning("%s, split %r: %d of %d pictures are left out: %s", source, split, len(left_out), len(rows), listed)
    manifest = _beside(out / f"manifest.{format}", MANIFEST)
    others = {name: n for name, n in read_json(manifest).get("shards", {}).items() if split_of_file(name) != part}
    write_json(manifest, {"shards": others | made, "samples": sum({**others, **made}.values())})
    return {"shards": count, "samples": sum(made.values()), "left_out": len(left_out), "written": written}


def _refuse_others(out: Path, names: list[str], split: str) -> None:
    """Refuse a folder with shards of the same split that the plan does not have: they would be read with the new ones."""
    there = [file.name for file in sorted(out.glob("*")) if file.suffix in (".tar", ".parquet")]
    if others := [name for name in there if split_of_file(name) == split and name not in names]:
        raise ValueError(
            f"{out} holds other shards of the split {split!r}: {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}. "
            "Delete them, or give another --out"
        )


def _write_shard(
    shard: Path, number: int, rows: datasets.Dataset, recoding: tuple | None, how: ReadingOptions
) -> tuple[dict[str, Any], bool]:
    """Write a shard and what there is to say of it, unless both are there and made of the same rows.

    Args:
        shard: the file.
        number: of the shard, for the keys of its samples.
        rows: its rows.
        recoding: the longest side, or None, and the quality of JPEG; None copies files.
        how: the limit of pixels, and what happens to pictures that cannot be read.

    Returns:
        The content of its `*_stats.json`, and whether it was written.
    """
    note = _beside(shard, f"{shard.stem}_stats.json")
    missing = {row: "no such file" for row, cell in enumerate(rows["image"]) if not _there(cell)}
    there = rows.select([row for row in range(len(rows)) if row not in missing]) if missing else rows
    texts = json.dumps([there.remove_columns("image")[:], recoding, number], default=str)
    made_of = hashlib.sha256(f"{identity_of_images(there)} {texts}".encode()).hexdigest()
    told = read_json(note)
    if shard.exists() and told.get("made_of") == made_of and told.get("bytes") == stamp(shard)[0]:
        return told, False
    faults = {_name(rows[row], row): fault for row, fault in missing.items()}
    samples = _samples(there, number, recoding, how, faults)
    with aside(shard) as written:
        count = (_write_tar if shard.suffix == ".tar" else _write_parquet)(written, samples)
        size = stamp(written)[0]
    told = {"count": len(rows), "successes": count, "left_out": faults, "bytes": size, "made_of": made_of}
    write_json(note, told)
    return told, True


def _beside(shard: Path, name: str) -> Path:
    """A file beside a shard. Beside parquet it is hidden: `datasets` reads every other JSON file of such a folder as data."""
    return shard.with_name(f".{name}" if shard.suffix == ".parquet" else name)


def _samples(
    rows: datasets.Dataset, number: int, recoding: tuple | None, how: ReadingOptions, faults: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The samples of a shard: `key`, `ending`, `bytes`, `captions` and `more`, the other columns. Adds to `faults`."""
    digits = max(4, len(str(len(rows) - 1)))
    for i, row in enumerate(rows):
        content, fault = _content(row.pop("image"), recoding, how.max_megapixels)
        if fault is not None:
            faults[_name(row, i)] = fault
        if faults and how.bad_images == "fail":
            name, fault = next(iter(faults.items()))
            raise ValueError(f"{name} ({fault}). Repair or remove it, or set --bad_images skip")
        if fault is None:
            captions, key = row.pop("captions"), f"{number:05d}{i:0{digits}d}"
            yield {"key": key, "ending": _ending(content), "bytes": content, "captions": captions, "more": row}


def _there(cell: dict | None) -> bool:
    return cell is not None and (cell["bytes"] is not None or Path(cell["path"]).is_file())


def _name(row: dict[str, Any], number: int) -> str:
    return str(row.get("file_name") or f"row {number}")


def _content(cell: dict, recoding: tuple | None, max_megapixels: float) -> tuple[bytes | None, str | None]:
    """The bytes of a picture's file, and None; or None, and what is wrong with it."""
    if recoding is None:
        return (Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]), None
    with pixel_limit(max_megapixels):
        picture, fault = picture_or_fault(cell, max_megapixels)
    if picture is None:
        return None, fault
    longest_side, quality = recoding
    if longest_side is not None:
        picture.thumbnail((longest_side, longest_side), PIL.Image.Resampling.LANCZOS)
    picture.save(coded := io.BytesIO(), "JPEG", quality=quality)
    return coded.getvalue(), None


def _ending(content: bytes) -> str:
    """The ending of a picture's file, by its content. Of a file that is no picture, jpg: reading will name it."""
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            ending = picture.format.lower()
    except Exception:  # Pillow's decoders raise a dozen types
        return "jpg"
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(ending, ending if ending in PICTURES else "jpg")


def _write_tar(file: Path, samples: Iterator[dict[str, Any]]) -> int:
    """Write a tar; returns its number of samples."""
    count = 0
    with tarfile.open(file, "w") as tar:
        for sample in samples:
            count += 1
            captions = sample["captions"]
            described = {"caption": captions[0], "key": sample["key"], "status": "success"} | sample["more"]
            files = {sample["ending"]: sample["bytes"], "txt": captions[0].encode()}
            if len(captions) > 1 or captions[0].lstrip()[:1] in ("[", "("):  # a text like this would be read as a list
                files["captions"] = json.dumps(captions, ensure_ascii=False).encode()
            files["json"] = json.dumps(described, ensure_ascii=False, default=str).encode()
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{sample['key']}.{ending}")  # dated 1970, so that the same rows give the same tar
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return count


def _write_parquet(file: Path, samples: Iterator[dict[str, Any]]) -> int:
    """Write a parquet file; returns its number of rows."""
    rows = [
        {"image": {"bytes": s["bytes"], "path": f"{s['key']}.{s['ending']}"}, "captions": s["captions"], **s["more"]}
        for s in samples
    ]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(file)
    return len(rows)
