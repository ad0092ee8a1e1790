"""Clips with captions of any common form, as one table with the columns `video`, `file_name` and `captions`.

    rows = load_video_text("path", "test")                 # datasets.Dataset; video: path of the file
    examples = VideoTextDataset(rows, captions="random")   # torch Dataset: one caption per clip, drawn anew each epoch

A source is one of these:

* a folder of videos with `metadata.jsonl` or `metadata.csv`: {"file_name": "1.mp4", "captions": [...], "split": "test"};
* one table under any name: .jsonl, .json, .csv or .tsv;
* MSR-VTT and MSVD with their published files (mpclip/data/forms/video_listing.py).

Each clip becomes one row with all its captions. Loading decodes the first frame of every clip, so a file that is missing,
damaged or no video is found, and named, before a long work starts.
"""

import os
from pathlib import Path
from typing import Any, Literal

import datasets

from modeling_mpclip.model_options import NUM_FRAMES
from modeling_mpclip.video_files import spread
from mpclip.data.captions import captions_of_table
from mpclip.data.forms.listing import Listing
from mpclip.data.forms.video_listing import SENTENCE, VIDEO_COLUMNS, video_listing
from mpclip.data.image_checks import without_captions
from mpclip.data.image_text import ImageTextDataset
from mpclip.data.joined_captions import EACH_ALONE, JoinedCaptions
from mpclip.data.left_out import leave_out
from mpclip.data.links import Bounds
from mpclip.data.reading import ReadingOptions
from mpclip.data.splits import part_of_split, rows_of_split, split_of_file
from mpclip.data.video import Clips, Sampling, faults_of_videos

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".ts", ".3gp", ".gif"),
)


def load_video_text(
    source: str | Path, split: str, *, limit: int | None = None, video_column: str | None = None, **reading: Any
) -> datasets.Dataset:
    """Open one split of a data set of clips with captions.

    Args:
        source: what to open; the forms are listed at the top of this module.
        split: name of the split, or a part of it such as "train[:90%]". A table without a column `split` is the split that its
            file name tells, or "train".
        limit: number of clips to look at, from the start of the split; None for all.
        video_column: column of the video, a path or a name without its ending. Default: the first of `VIDEO_COLUMNS`.
        reading: the options of `mpclip.data.reading.ReadingOptions`, of which these apply to clips: `caption_column`,
            `caption_separator`, `image_folder` (where the videos lie), `follow_links`, and `bad_images` (what happens to videos
            that cannot be decoded).

    Returns:
        A table with `video` (path of the file), `file_name` (as the source calls it), `captions` (list of str), and the other
        columns of the source.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: unknown split, columns not found, no row left, or bad rows with `bad_images="fail"`.
        ImportError: PyAV is not installed.
    """
    how, path = ReadingOptions(**reading), Path(source)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1, or None for all clips")
    name = split.partition("[")[0]
    listing = video_listing(path, name, how)
    if how.caption_column is None and SENTENCE in listing.columns:
        how.caption_column = SENTENCE
    rows = _merged(_rows(listing, video_column, how))
    if "split" in rows.column_names:
        rows = rows.select(rows_of_split(rows, str(source), name))
    elif name != (told := split_of_file(listing.file)):
        raise ValueError(
            f"{source} has no split {name!r}: {listing.file.name} has no column `split`, and is {told!r} by its name"
        )
    rows = part_of_split(rows, str(source), split)
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    folder = path if path.is_dir() else path.parent
    rows = rows.add_column("video", _files(rows["file_name"][:], folder, how))
    faults = {
        "without a caption": without_captions(rows),
        "with a video that cannot be decoded": faults_of_videos(rows["video"][:]),
    }
    return leave_out(rows, faults, f"{source}, split {split!r}", how.bad_images)[0]


def _rows(listing: Listing, video_column: str | None, how: ReadingOptions) -> datasets.Dataset:
    """The listing as a table with `file_name`, `captions` and its other columns."""
    column = video_column or next((name for name in VIDEO_COLUMNS if name in listing.columns), None)
    if column not in listing.columns:
        raise ValueError(
            f"{listing.file} has no column {column or ' or '.join(map(repr, VIDEO_COLUMNS))}; it has {list(listing.columns)}. "
            "Set video_column to the one with the videos"
        )
    names = listing.columns[column]
    for i, name in enumerate(names):
        if not isinstance(name, str | int) or not str(name).strip():
            raise ValueError(f"{listing.place(i)}: {column} is {name!r}, expected the path or the id of a video")
    try:
        found, captions = captions_of_table(listing.columns, how, need_captions=True, first=1)
    except ValueError as error:
        raise ValueError(f"{listing.file}: {error}") from error
    others = {
        name: cells for name, cells in listing.columns.items() if name not in {column, "file_name", "captions", "video", *found}
    }
    rows = datasets.Dataset.from_dict({"file_name": [str(name) for name in names], **others})
    return rows.add_column("captions", captions, feature=datasets.List(datasets.Value("string")))


def _merged(rows: datasets.Dataset) -> datasets.Dataset:
    """One row per video: the first of it, with the captions of all."""
    captions: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    for i, (name, told) in enumerate(zip(rows["file_name"][:], rows["captions"][:], strict=True)):
        first.setdefault(name, i)
        captions.setdefault(name, []).extend(told)
    if len(first) == len(rows):
        return rows
    rows = rows.select(list(first.values())).remove_columns("captions")
    return rows.add_column("captions", list(captions.values()), feature=datasets.List(datasets.Value("string")))


def _files(names: list[str], folder: Path, how: ReadingOptions) -> list[str]:
    """The file of each name: a path, or a name without its ending that a video anywhere below the folder has.

    A name without a file becomes the path where it was expected; the check of the videos reports it.
    """
    folder = folder / how.image_folder if how.image_folder and (folder / how.image_folder).is_dir() else folder
    folder = Path(how.image_folder) if how.image_folder and Path(how.image_folder).is_absolute() else folder
    bounds, found = Bounds([folder], how.follow_links), None
    files = []
    for name in names:
        path = bounds.path_of(name, folder)
        if not path.is_file():
            found = _videos_below(folder, how.follow_links) if found is None else found
            there = found.get(Path(name).name, [])
            if len(there) > 1:
                raise ValueError(f"{name!r} is in several places: {', '.join(there[:3])}. Set image_folder to one")
            path = Path(there[0]) if there else path
            if there and (fault := bounds.fault(path)):
                raise ValueError(f"refused {path}, {fault}")
        files.append(str(path))
    return files


def _videos_below(folder: Path, follow_links: bool) -> dict[str, list[str]]:
    """Name of a video file, with and without its ending -> its paths."""
    found: dict[str, list[str]] = {}
    for place, _, files in os.walk(folder, followlinks=follow_links):
        for file in sorted(files):
            if file.lower().endswith(VIDEO_SUFFIXES):
                for name in {file, Path(file).stem}:
                    found.setdefault(name, []).append(os.path.join(place, file))
    return found


def middle_frames(rows: datasets.Dataset, count: int) -> datasets.Dataset:
    """The middle frame of some clips, at even distances in the table, as a table with `image` and `captions`."""
    some = rows.select(spread(count, len(rows)))
    pictures = [clip[0] for clip in Clips(some["video"][:], num_frames=1)]
    return datasets.Dataset.from_dict({"image": pictures, "captions": some["captions"][:]})


class VideoTextDataset(ImageTextDataset):
    """Items for training as those of [`ImageTextDataset`], with a clip in place of each image.

    Args:
        rows: a table with `video` and `captions`, as from `load_video_text`.
        captions, seed: as for `ImageTextDataset`.
        with_clips: False neither decodes videos nor puts them into the items. For clips whose features are cached.
        num_frames, sampling: as for `mpclip.data.video.read_clip`.
        joined: as for `ImageTextDataset`.

    An item has `image`, a list of pictures: the frames of the clip.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        captions: Literal["random", "all"] = "random",
        seed: int = 0,
        with_clips: bool = True,
        num_frames: int = NUM_FRAMES,
        sampling: Sampling = "uniform",
        joined: JoinedCaptions = EACH_ALONE,
    ):
        super().__init__(rows, captions, seed, with_images=False, joined=joined)
        self.clips = Clips(rows["video"][:], num_frames, sampling) if with_clips else None

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        return item if self.clips is None else item | {"image": self.clips[index]}
