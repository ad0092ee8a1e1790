"""Image-text data of any common form, as one table with the columns `image` and `captions`.

    rows = load_image_text("path/or/hub-id", "train")     # datasets.Dataset: image, captions, and what else was there
    examples = ImageTextDataset(rows, captions="random")  # torch Dataset: one caption per image, another each epoch

What a source may be:

* a folder of images with `metadata.jsonl` or `metadata.csv`, at its root (a `split` column then names the splits) or
  once in each split's folder (`train/metadata.jsonl`, ...);
* a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`;
* parquet: a file, a pattern such as `data/train-*.parquet`, or a folder of them;
* anything else that `datasets.load_dataset` opens: another folder, or the id of a data set on the Hub.

Every image is decoded once on loading, so that a picture which cannot be read is known, and named, before training.
"""

import contextlib
import glob
import json
import math
import os
import random
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import datasets
import huggingface_hub
import numpy as np
import pandas
import PIL.Image
import pyarrow.compute
import torch
from tqdm import tqdm

IMAGE_COLUMNS = ("image", "img", "jpg")
CAPTION_COLUMNS = ("captions", "caption", "text", "sentences", "raw")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
NAMES_SHOWN = 20  # bad rows named in a message; the rest is only counted

# What datasets itself reads out of the name of a data file.
PART_HINT = "A part of a split is one too: 'train[:90%]' to train on, 'train[90%:]' to evaluate on"
SPLIT_OF_WORD = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
SPLIT_OF_WORD |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}


def load_image_text(
    source: str | Path,
    split: str,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    need_captions: bool = True,
    bad_images: Literal["skip", "fail"] = "skip",
    limit: int | None = None,
) -> datasets.Dataset:
    """Opens one split of an image-text data set, with every image known to decode and every row known to have captions.

    Args:
        source: what to open; the forms are listed at the top of this module.
        split: the split's name, or a part of it in the syntax of `datasets`: "validation[:50%]", "train[100:200]".
            Where the source is a single table with a `split` column, that column's values are the names.
        image_column: needed only where the column is not named image, img or jpg (in metadata: file_name).
        caption_column: needed only where the column is not named captions, caption, text, sentences or raw. A cell is
            one caption, a list of them, a JSON list in a string, or a list of `{"raw": caption}`. In a folder, metadata
            rows of the same file become one row with all their captions; other columns come from the first of them.
        need_captions: False keeps rows without a caption, and opens tables that have no column of them: `captions` is
            then empty.
        bad_images: "skip" leaves out images that cannot be decoded and rows without a caption, and warns with
            their number and names; "fail" raises instead.
        limit: look only at the first `limit` images of the split.

    Returns:
        A table with `image` (`datasets.Image`; read out as a PIL image in mode RGB, upright), `captions` (list of
        non-empty str) and all other columns of the source. Images become RGB in a transform on reading:
        call `.with_format(None)` first to save it.

    Raises:
        FileNotFoundError: nothing is at `source`.
        ValueError: unknown split, columns not found, a path that leaves the folder, no row left, or bad rows
            with `bad_images="fail"`.
    """
    if bad_images not in ("skip", "fail"):
        raise ValueError(f"bad_images={bad_images!r}: expected 'skip' or 'fail'")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1, or None for all images")

    name, _, part = split.partition("[")
    rows = _open_split(str(source), name, image_column, caption_column, need_captions)
    _refuse_paths_outside(rows, str(source))
    rows = _merge_same_file(rows)
    if part:
        span = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows)})[0]
        rows = rows.select(range(span.from_ or 0, len(rows) if span.to is None else span.to))
    rows = rows.select(range(min(limit or len(rows), len(rows))))

    faults = {"without a caption": _without_captions(rows)} if need_captions else {}
    faults["with an image that cannot be decoded"] = _undecodable(rows)
    for what, reasons in faults.items():
        if not reasons:
            continue
        message = f"{source}, split {split!r}: {len(reasons)} of {len(rows)} rows {what}: {_named(rows, reasons)}"
        if bad_images == "fail":
            raise ValueError(f"{message}. Repair or remove them, or pass bad_images='skip'")
        warnings.warn(f"{message}. They are skipped", stacklevel=2)
    good = [i for i in range(len(rows)) if not any(i in reasons for reasons in faults.values())]
    if not good:
        needed = "an image and a caption" if need_captions else "an image"
        raise ValueError(f"{source}, split {split!r}: none of its {len(rows)} rows has {needed}")
    if len(good) < len(rows):
        rows = rows.select(good)
    return rows.with_transform(_images_to_rgb)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image of any mode as RGB: transparency becomes white, 16-bit grey keeps its upper 8 bits."""
    if image.mode.startswith("I"):  # Pillow's own conversion would clip every value above 255 to white
        grey = np.clip(np.asarray(image), 0, 65535) >> 8  # (height, width)
        image = PIL.Image.fromarray(grey.astype(np.uint8))
    elif image.has_transparency_data:  # dropping alpha alone would show whatever colour lies under it
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


class ImageTextDataset(torch.utils.data.Dataset):
    """Items for training: an image with one caption drawn at random, or with all of them.

    The caption drawn depends on (seed, epoch, index) alone: it is the same in any worker, in any process, and after a
    resume. The epoch lies in shared memory, so `set_epoch` also reaches workers that are already running.

    Args:
        rows: a table with `image` and `captions`, as from `load_image_text`.
        captions: "random" for one caption per item, "all" for every caption.
        seed: of the draw.
        with_images: False leaves images unread and out of the items, for features that are already cached.
        smallest_crop: below 1, an image is a random crop of at least this share of its area, drawn like the caption. It is
            never mirrored: captions say left and right.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        captions: Literal["random", "all"] = "random",
        seed: int = 0,
        with_images: bool = True,
        smallest_crop: float = 1.0,
    ):
        needed = ["image", "captions"] if with_images else ["captions"]
        if missing := [name for name in needed if name not in rows.column_names]:
            raise ValueError(f"rows have no column {missing}, only {rows.column_names}: open them with load_image_text")
        if captions not in ("random", "all"):
            raise ValueError(f"captions={captions!r}: expected 'random' or 'all'")
        self.rows = rows.select_columns(needed)
        self.captions = captions
        self.seed = seed
        self.smallest_crop = smallest_crop
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Makes "random" draw the captions of this epoch. Trainer calls it where an epoch begins."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`index`, `image` (PIL, RGB; absent without images), `captions` (list[str]), `caption_indices` (list[int])."""
        row = self.rows[index]
        indices = list(range(len(row["captions"])))
        if self.captions == "random":
            indices = [self._drawn(index, len(indices))]
        item = {"index": index, "captions": [row["captions"][i] for i in indices], "caption_indices": indices}
        if "image" in row:
            item["image"] = self._cropped(to_rgb(row["image"]), index)
        return item

    def caption_lengths(self) -> list[int]:
        """Characters of the caption that each row gets in this epoch (of "random")."""
        captions = self.rows.with_format(None)["captions"]
        return [len(row[self._drawn(i, len(row))]) for i, row in enumerate(captions)]

    def _cropped(self, image: PIL.Image.Image, index: int) -> PIL.Image.Image:
        if self.smallest_crop == 1:
            return image
        draw = random.Random(f"crop {self.seed} {self.epoch} {index}")
        area = draw.uniform(self.smallest_crop, 1)
        widest = min(0.3, -math.log(area))  # sides from 3:4 to 4:3, none longer than the image's
        stretch = math.exp(draw.uniform(-widest, widest))
        width = max(1, round((area * stretch) ** 0.5 * image.width))
        height = max(1, round((area / stretch) ** 0.5 * image.height))
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))

    def _drawn(self, index: int, count: int) -> int:
        return random.Random(f"{self.seed} {self.epoch} {index}").choice(range(count))


# Opening a source ------------------------------------------------------------------------------------------------


def _open_split(
    source: str, split: str, image_column: str | None, caption_column: str | None, need_captions: bool = True
) -> datasets.Dataset:
    """The rows of one split with their columns in canonical form, nothing in them checked."""
    parts = _parts(source, image_column)
    if len(parts) > 1 and split not in parts:
        raise ValueError(f"{source} has no split {split!r}; splits found: {sorted(parts)}. {PART_HINT}")
    name = split if split in parts else next(iter(parts))
    rows = _canonical_columns(parts[name](), source, image_column, caption_column, need_captions)
    if len(parts) == 1 and "split" in rows.column_names:
        split_of_row = np.array(rows["split"][:], dtype=str)  # (rows,)
        if split not in split_of_row:
            found = np.unique(split_of_row).tolist()
            raise ValueError(f"{source} has no split {split!r}; splits found in its column `split`: {found}. {PART_HINT}")
        return rows.select(np.flatnonzero(split_of_row == split))
    if name != split:
        raise ValueError(f"{source} has no split {split!r}; splits found: [{name!r}], and no column `split`. {PART_HINT}")
    return rows


def _parts(source: str, image_column: str | None) -> dict[str, Callable[[], datasets.Dataset]]:
    """What opens each part of a source, by the part's name. A table that nothing names is "train", as in datasets."""
    path = Path(source)
    if metadata := _metadata_file(path):
        return {"train": partial(_read_metadata, metadata, image_column)}
    if path.is_dir():
        split_files = {folder.name: _metadata_file(folder) for folder in path.iterdir()}
        if any(split_files.values()):
            return {name: partial(_read_metadata, file, image_column) for name, file in split_files.items() if file}
    if (path / "dataset_dict.json").is_file():
        names = json.loads((path / "dataset_dict.json").read_text())["splits"]
        return {name: partial(datasets.load_from_disk, str(path / name)) for name in names}
    if (path / "state.json").is_file():
        rows = datasets.load_from_disk(source)
        return {str(rows.split or "train"): lambda: rows}
    if source.endswith(".parquet"):
        return {
            name: partial(datasets.load_dataset, "parquet", data_files={name: files}, split=name)
            for name, files in _parquet_files(source).items()
        }
    # A Hub id has at most one slash and does not begin with a dot or a slash: anything else was meant as a path.
    if not path.exists() and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise FileNotFoundError(f"nothing at {source}: expected a folder, a parquet file, or the id of a Hub data set")
    try:
        names = datasets.get_dataset_split_names(source)
    except Exception as error:  # of many types: the network, the Hub, or a folder without data
        error.add_note(f"{source!r} was opened with datasets.load_dataset: it holds no metadata.jsonl or metadata.csv")
        raise
    return {name: partial(datasets.load_dataset, source, split=name) for name in names}


def _parquet_files(pattern: str) -> dict[str, list[str]]:
    """Parquet files by split, which a word in the name of each tells: `train-00000.parquet`, `flickr_val.parquet`."""
    files: dict[str, list[str]] = {}
    for file in sorted(glob.glob(pattern)):
        words = re.split(r"[^a-z]+", Path(file).stem.lower())
        split = next((SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD), "train")
        files.setdefault(split, []).append(file)
    if not files:
        raise FileNotFoundError(f"no parquet file at {pattern}")
    return files


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def _read_metadata(file: Path, image_column: str | None) -> datasets.Dataset:
    """The rows of metadata.jsonl or metadata.csv, with an image column beside (or in place of) the column of paths."""
    if file.suffix == ".csv":
        # Without keep_default_na=False the captions "none" and "NA" would become missing values.
        records = pandas.read_csv(file, keep_default_na=False).to_dict("records")
    else:
        records = []
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: not JSON ({error})") from error
    if not records:
        raise ValueError(f"{file} has no rows: expected one per image, with file_name and captions")

    path_column = image_column or "file_name"
    images = []
    for number, record in enumerate(records, start=1):
        name = record.get(path_column)
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"{file}, row {number}: {path_column} is {name!r}, expected an image's path within {file.parent} "
                f"(image_column names the column to read; here are {list(record)})"
            )
        path = PureWindowsPath(name)  # knows both kinds of slash, and drive letters
        if path.anchor or ".." in path.parts:
            raise ValueError(f"{file}, row {number}: refused {name!r}: images must lie within {file.parent}")
        images.append(str(file.parent.absolute() / name))
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names} | {image_column or "image": images}
    return datasets.Dataset.from_dict(columns).cast_column(image_column or "image", datasets.Image())


# Canonical columns -----------------------------------------------------------------------------------------------


def _canonical_columns(
    rows: datasets.Dataset, source: str, image_column: str | None, caption_column: str | None, need_captions: bool
) -> datasets.Dataset:
    """The table with its image and caption columns renamed `image` and `captions` and of the types promised."""
    image = _find_column(rows, source, "image_column", image_column, IMAGE_COLUMNS)
    caption = None
    if need_captions or caption_column or set(CAPTION_COLUMNS) & set(rows.column_names):
        caption = _find_column(rows, source, "caption_column", caption_column, CAPTION_COLUMNS)
    if rows.features[image] in (datasets.Value("string"), datasets.Value("large_string")):
        raise ValueError(
            f"{source}: column {image!r} holds text, expected pictures (datasets.Image). "
            "Paths are read only from the metadata.jsonl or metadata.csv of a folder of images"
        )
    captions = [_as_captions(cell) for cell in rows[caption][:]] if caption else [[] for _ in range(len(rows))]
    rows = rows.remove_columns({caption, "captions"} & set(rows.column_names))
    rows = rows.add_column("captions", captions, feature=datasets.List(datasets.Value("string")))
    if image != "image":
        rows = rows.remove_columns({"image"} & set(rows.column_names)).rename_column(image, "image")
    return rows.cast_column("image", datasets.Image())


def _find_column(rows: datasets.Dataset, source: str, option: str, given: str | None, usual: tuple[str, ...]) -> str:
    candidates = (given,) if given else usual
    for name in candidates:
        if name in rows.column_names:
            return name
    wanted = f"no column {given!r}" if given else f"no column is named {', '.join(usual)}"
    raise ValueError(f"{source}: {wanted}; it has {rows.column_names}. Set {option} to one of these, or rename one")


def _as_captions(cell: Any) -> list[str]:
    """The captions in one cell, of any form that `load_image_text` names, without the empty ones."""
    if isinstance(cell, str) and cell.startswith('["'):
        with contextlib.suppress(json.JSONDecodeError):  # else a plain caption that begins with a bracket
            cell = json.loads(cell)
    if isinstance(cell, dict) and "raw" in cell:
        cell = cell["raw"]
    if cell is None or isinstance(cell, str):
        cell = [cell]
    if not isinstance(cell, list):
        raise ValueError(f"a caption cell is {cell!r} ({type(cell).__name__}), expected a str or a list of them")
    captions = [caption["raw"] if isinstance(caption, dict) and "raw" in caption else caption for caption in cell]
    if wrong := [caption for caption in captions if not isinstance(caption, str | None)]:
        raise ValueError(f"a caption is {wrong[0]!r} ({type(wrong[0]).__name__}), expected a str")
    return [caption for caption in captions if caption and caption.strip()]


def _merge_same_file(rows: datasets.Dataset) -> datasets.Dataset:
    """Rows that refer to one image file become its first row, with the captions of all."""
    place: dict[str | int, int] = {}  # of the image among those kept; an embedded image stands for itself
    kept: list[int] = []
    captions: list[list[str]] = []
    for i, (path, row_captions) in enumerate(zip(_paths_referred(rows), rows["captions"][:], strict=True)):
        at = place.setdefault(path or i, len(kept))
        if at == len(kept):
            kept.append(i)
            captions.append([])
        captions[at] += row_captions
    if len(kept) == len(rows):
        return rows
    feature = rows.features["captions"]
    return rows.select(kept).remove_columns("captions").add_column("captions", captions, feature=feature)


def _paths_referred(rows: datasets.Dataset) -> list[str | None]:
    """For each row the file its image lies in, or None where the table itself holds the image."""
    paths = []
    for table in rows.select_columns(["image"]).with_format("arrow").iter(batch_size=1000):
        embedded, path = (pyarrow.compute.struct_field(table["image"], name) for name in ("bytes", "path"))
        paths += pyarrow.compute.if_else(pyarrow.compute.is_valid(embedded), None, path).to_pylist()
    return paths


# Checking --------------------------------------------------------------------------------------------------------


def _refuse_paths_outside(rows: datasets.Dataset, source: str) -> None:
    """A table may refer to files of its own folder, or to those that datasets downloaded; any other is an escape."""
    roots = [source, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    roots = [os.path.abspath(root) + os.sep for root in roots]
    for i, path in enumerate(_paths_referred(rows)):
        if path and not any(os.path.abspath(path).startswith(root) for root in roots):
            raise ValueError(
                f"{source}, row {i}: refused the image path {path!r}, which lies outside this data set. "
                "Save the table with its images in it (Dataset.save_to_disk does so)"
            )


def _without_captions(rows: datasets.Dataset) -> dict[int, str]:
    """Row number -> what is wrong, for rows that have no caption."""
    return {i: "no caption" for i, captions in enumerate(rows["captions"][:]) if not captions}


def _undecodable(rows: datasets.Dataset) -> dict[int, str]:
    """Row number -> what is wrong, for images that do not decode to RGB. Decodes every image, on all cores."""
    decoder = datasets.Image()
    cells = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))

    def fault(i: int) -> str | None:
        cell = cells[i]["image"]
        if cell is None:
            return "no image"
        try:
            to_rgb(decoder.decode_example(cell))
        except FileNotFoundError:
            return "no such file"
        except PIL.UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # Pillow's decoders raise a dozen types, SyntaxError and struct.error among them
            return str(error) or type(error).__name__
        return None

    reasons = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # Pillow only warns of a decompression bomb until it is twice the limit.
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        with tqdm(total=len(rows), desc="Checking images", unit="image", disable=None) as progress:
            for start in range(0, len(rows), 1000):  # map takes all its input at once: a million would be held
                numbers = range(start, min(start + 1000, len(rows)))
                reasons |= {i: reason for i, reason in zip(numbers, pool.map(fault, numbers), strict=True) if reason}
                progress.update(len(numbers))
    return reasons


def _named(rows: datasets.Dataset, reasons: dict[int, str]) -> str:
    """The first few bad rows by name, with what is wrong with each."""
    shown = sorted(reasons)[:NAMES_SHOWN]
    if "file_name" in rows.column_names:
        names = rows.select(shown)["file_name"][:]
    else:
        cells = rows.select(shown).cast_column("image", datasets.Image(decode=False))["image"][:]
        names = [cell and cell["path"] and Path(cell["path"]).name for cell in cells]
    listed = [f"{name or f'row {i}'} ({reasons[i]})" for i, name in zip(shown, names, strict=True)]
    return ", ".join(listed) + (f" and {len(reasons) - len(shown)} more" if len(reasons) > len(shown) else "")


def _images_to_rgb(batch: dict[str, list]) -> dict[str, list]:
    """The transform on reading. Cells that are not decoded, as after a cast to Image(decode=False), pass through."""
    if "image" in batch:
        batch["image"] = [to_rgb(cell) if isinstance(cell, PIL.Image.Image) else cell for cell in batch["image"]]
    return batch
