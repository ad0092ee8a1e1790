"""Image-text data of any common form, as one table with the columns `image` and `captions`.

    rows = load_image_text("path/or/hub-id", "train")     # datasets.Dataset: image, captions, and the other columns
    examples = ImageTextDataset(rows, captions="random")  # torch Dataset: one caption per image, drawn anew each epoch

A source is one of these:

* a folder of images with `metadata.jsonl` or `metadata.csv`. The file stands at the folder's root, where a column `split`
  may name the split of each row; or there is one in the folder of each split (`train/metadata.jsonl`, ...);
* a folder of images with `captions.csv` (.tsv, .txt, .jsonl, .json), COCO's `annotations/captions_*.json`, Karpathy's
  `dataset_*.json`, the lists of ALBEF and BLIP (`flickr30k_test.json`, `coco_karpathy_test.json`), Flickr30k's `results.csv`
  or `results_*.token`, or `Flickr8k.token.txt`;
* one such file, under any name;
* webdataset shards: a tar file, a pattern such as `data/train-*.tar`, a folder of them, or CLIP_benchmark's folders
  (`test/nshards.txt`, `test/0.tar`, ...; a caption per line, where `dataset_type.txt` says "retrieval");
* a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`;
* parquet: a file, a pattern such as `data/train-*.parquet`, or a folder of them;
* anything else that `datasets.load_dataset` opens: folders of images by class, or the id of a data set on the Hub.

Each picture becomes one row, however many rows or files the source has for it. Parts of a split thus share no picture.
Loading decodes every image once, unless `check_images` is False. A picture that cannot be read is then found, and named, when
training comes to it.
"""

import logging
import math
import random
import warnings
from pathlib import Path
from typing import Any, Literal

import datasets
import PIL.Image
import torch

from mpclip.data.absence_texts import AbsenceTexts
from mpclip.data.image_checks import NAMES_SHOWN, named, picture_or_fault, to_rgb, undecodable, without_captions
from mpclip.data.image_sources import open_table
from mpclip.data.joined_captions import EACH_ALONE, JoinedCaptions
from mpclip.data.picture_size import pixel_limit, read_pictures_of
from mpclip.data.reading import ReadingOptions
from mpclip.data.same_pictures import merge_same_pictures
from mpclip.data.skipped import tell_skipped
from mpclip.data.splits import part_of_split

__all__ = ["ImageTextDataset", "UnreadablePicture", "load_image_text", "random_crop", "to_rgb"]

logger = logging.getLogger("train_hf")
REPLACED = "the picture cannot be read, and the next one that can takes its place"


class UnreadablePicture(OSError):
    """A picture cannot be read in training. The message names it."""


def load_image_text(
    source: str | Path,
    split: str,
    *,
    need_captions: bool = True,
    limit: int | None = None,
    check_images: bool = True,
    **reading: Any,
) -> datasets.Dataset:
    """Open one split of an image-text data set. Every image of it decodes and every row has a caption.

    Args:
        source: what to open; the forms are listed at the top of this module.
        split: name of the split, or a part of it as `datasets` writes it: "validation[:50%]", "train[100:200]". If the
            source is a single table with a column `split`, the names are the values of that column.
        need_captions: False also keeps rows without a caption, and opens tables without a column of captions. `captions` is
            then an empty list.
        limit: number of images to look at, from the start of the split; None for all.
        check_images: False decodes none of the images, so that the table may have some that cannot be read.
        reading: the options of `mpclip.data.reading.ReadingOptions`, all with defaults:

            * `image_column`, `caption_column`: names of columns, needed if they are not the usual ones. A cell is one caption,
              a list of them (of Python, or as JSON, Python and numpy write it), or `{"raw": caption}`. Rows of one picture
              become one row with all their captions; its other columns are those of the first of them;
            * `caption_separator`: what stands between the captions of a cell;
            * `class_caption`: a template such as "a photo of a {}", for data with classes instead of captions;
            * `image_folder`: where the pictures lie that a table names;
            * `follow_links`: whether symbolic links may lead out of the data set's folder;
            * `max_megapixels`: millions of pixels of the largest image; larger ones count as images that cannot be decoded;
            * `bad_images`: what happens to images that cannot be decoded and to rows without a caption. "skip" leaves them
              out, with a warning that has their number and names; "fail" raises an error with the same text.

    Returns:
        A table with `image` (`datasets.Image`; read as a PIL image, RGB, upright), `captions` (list of non-empty str) and
        all other columns of the source. Images become RGB by a transform on reading: call `.with_format(None)` on the
        table before you save it.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: unknown split, columns not found, an image path that leaves the folder, no row left, or bad rows
            with `bad_images="fail"`.
    """
    how = ReadingOptions(**reading)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1, or None for all images")

    rows, numbers = open_table(str(source), split.partition("[")[0], how, need_captions)
    rows = merge_same_pictures(rows, numbers, str(source))
    rows = part_of_split(rows, str(source), split)
    rows = rows.select(range(min(limit or len(rows), len(rows))))

    faults = {"without a caption": without_captions(rows)} if need_captions else {}
    if check_images:
        faults["with an image that cannot be decoded"] = undecodable(rows, how.max_megapixels)
    read_pictures_of(how.max_megapixels)
    for what, reasons in faults.items():
        if not reasons:
            continue
        message = f"{source}, split {split!r}: {len(reasons)} of {len(rows)} rows {what}: {named(rows, reasons)}"
        if how.bad_images == "fail":
            raise ValueError(f"{message}. Repair or remove them, or pass bad_images='skip'")
        warnings.warn(f"{message}. They are skipped", stacklevel=2)
        tell_skipped(f"rows {what}", len(reasons))
    good = [i for i in range(len(rows)) if not any(i in reasons for reasons in faults.values())]
    if not good:
        needed = "an image and a caption" if need_captions else "an image"
        raise ValueError(f"{source}, split {split!r}: none of its {len(rows)} rows has {needed}")
    if len(good) < len(rows):
        rows = rows.select(good)
    return rows.with_transform(_images_to_rgb)


class ImageTextDataset(torch.utils.data.Dataset):
    """Items for training: each image with one caption, drawn at random, or with all its captions.

    The draw depends on (seed, epoch, index) alone. So it is the same in every worker and every process, and after a resume.
    The epoch is kept in shared memory, so `set_epoch` also reaches workers that are already running.

    Args:
        rows: a table with `image` and `captions`, as from `load_image_text`.
        captions: "random" for one text per item, "all" for every one.
        seed: of the draws.
        with_images: False neither reads images nor puts them into the items. For image features that are already cached.
        smallest_crop: below 1, each image is a random crop with at least this share of its area, drawn anew each epoch.
            Images are never mirrored, since captions say left and right.
        bad_images: what happens to a row whose picture cannot be read. "fail": an error. "skip": the item is that of the next
            row whose picture can be read, every time that the row is drawn; it is named in the log once.
        joined: which texts a picture has: each caption by default.
        absences: of `rows`; an item with one text then also has a text on what its picture does not show, as `without`.

    Raises:
        ValueError: `rows` lacks a column, or `captions` has another value.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        captions: Literal["random", "all"] = "random",
        seed: int = 0,
        with_images: bool = True,
        smallest_crop: float = 1.0,
        bad_images: Literal["fail", "skip"] = "fail",
        joined: JoinedCaptions = EACH_ALONE,
        absences: AbsenceTexts | None = None,
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
        self.bad_images = bad_images
        self.joined, self.absences = joined, absences
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._faulty = torch.zeros(len(rows), dtype=torch.bool).share_memory_()  # (rows,), set by all workers

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that captions and crops are drawn for. The Trainer calls it at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def unreadable(self) -> list[int]:
        """The rows whose pictures could not be read so far, by this process or its workers."""
        return self._faulty.nonzero()[:, 0].tolist()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`index` (int), `captions` (list[str]), `without` (a pair of `AbsenceTexts`, or None) where there are such texts, and,
        unless `with_images` is False, `image` (PIL, RGB).

        Raises:
            UnreadablePicture: the picture cannot be read, and `bad_images` is "fail"; or none of the rows can be read.
            FileNotFoundError: in the first of these cases, if there is no such file.
        """
        if self.bad_images == "skip" and "image" in self.rows.column_names:
            index, row = self._readable(index)
        else:
            row = self._row(index)
        captions = self.joined.every(row["captions"])
        if self.captions == "random":
            captions = [captions[self._drawn(index, len(row["captions"]))]]
        item = {"index": index, "captions": captions}
        if self.absences is not None:
            item["without"] = self.absences.draw(index, self.epoch)
        if "image" in row:
            image = to_rgb(row["image"])
            item["image"] = random_crop(image, self.smallest_crop, f"crop {self.seed} {self.epoch} {index}")
        return item

    def _row(self, index: int) -> dict[str, Any]:
        try:
            return self.rows[index]
        except FileNotFoundError:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen types
            name = named(self.rows, {index: str(error) or type(error).__name__})
            raise UnreadablePicture(f"{name}: the picture cannot be read. Repair it, or pass bad_images='skip'") from error

    def _readable(self, index: int) -> tuple[int, dict[str, Any]]:
        """The first row from `index` on, in a circle, whose picture can be read, and its number."""
        for step in range(len(self.rows)):
            place = (index + step) % len(self.rows)
            if self._faulty[place]:
                continue
            try:
                with pixel_limit(PIL.Image.MAX_IMAGE_PIXELS / 1e6):
                    return place, self.rows[place]
            except Exception as error:  # Pillow's decoders raise a dozen types
                self._faulty[place] = True
                if len(self.unreadable) <= NAMES_SHOWN:
                    logger.warning("%s: %s", named(self.rows, {place: self._fault(place, error)}), REPLACED)
        raise UnreadablePicture(f"None of the {len(self.rows)} pictures can be read.")

    def _fault(self, index: int, error: Exception) -> str:
        """What is wrong with a picture, in the words of the check at the start."""
        limit = PIL.Image.MAX_IMAGE_PIXELS / 1e6
        cell = self.rows.with_format(None).cast_column("image", datasets.Image(decode=False))[index]["image"]
        with pixel_limit(limit):
            return picture_or_fault(cell, limit)[1] or str(error)

    def caption_lengths(self) -> list[int]:
        """For each row the length, in characters, of the text that "random" draws in this epoch."""
        captions = self.rows.with_format(None)["captions"]
        return [len(self.joined.every(row)[self._drawn(i, len(row))]) for i, row in enumerate(captions)]

    def _drawn(self, index: int, count: int) -> int:
        """Which of its texts row `index`, which has `count` captions, gets in this epoch."""
        return self.joined.drawn(count, random.Random(f"{self.seed} {self.epoch} {index}"))


def random_crop(image: PIL.Image.Image, smallest: float, seed: str) -> PIL.Image.Image:
    """A random part of a picture.

    Args:
        image: the picture.
        smallest: share of its area that the crop has at least; 1 for the whole picture.
        seed: of the draw.
    """
    if smallest == 1:
        return image
    draw = random.Random(seed)
    area = draw.uniform(smallest, 1)
    widest = min(0.3, -math.log(area))  # sides from 3:4 to 4:3, none longer than the image's
    stretch = math.exp(draw.uniform(-widest, widest))
    width = max(1, round((area * stretch) ** 0.5 * image.width))
    height = max(1, round((area / stretch) ** 0.5 * image.height))
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def _images_to_rgb(batch: dict[str, list]) -> dict[str, list]:
    """The transform on reading. Cells that are not decoded, as after a cast to Image(decode=False), stay as they are."""
    if "image" in batch:
        batch["image"] = [to_rgb(cell) if isinstance(cell, PIL.Image.Image) else cell for cell in batch["image"]]
    return batch
