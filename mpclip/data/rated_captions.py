"""Captions that people rated: Flickr8k-Expert and Flickr8k-CF, in the files as published.

    ExpertAnnotations.txt         picture, caption id, three scores from 1 (unrelated) to 4 (describes it)
    CrowdFlowerAnnotations.txt    picture, caption id, share of yes, number of yes, number of no
    Flickr8k.token.txt            caption id, caption

Cells are separated by tabs. A caption id is a picture and a number: 1056338697_4f7d7ce270.jpg#2. The pictures lie in the same
folder or in one below it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np

from mpclip.data.forms.listing import Listing, given_folder, table_of
from mpclip.data.forms.text_files import read_text
from mpclip.data.image_checks import undecodable
from mpclip.data.left_out import leave_out
from mpclip.data.links import Bounds
from mpclip.data.picture_size import read_pictures_of
from mpclip.data.reading import ReadingOptions

FILES = {"expert": "ExpertAnnotations.txt", "crowdflower": "CrowdFlowerAnnotations.txt"}
TOKENS = "Flickr8k.token.txt"
MOST_OFF = 0.01  # of a share of yes from the numbers of yes and no


@dataclass
class RatedCaptions:
    """P pairs of a picture and a caption, with what people said of each.

    Attributes:
        rows: I pictures, with `image` and `file_name`.
        image: (P,) int64, the picture of each pair.
        captions: P captions.
        ratings: (P, R) float64, R ratings of each pair; nan where one is missing.
        left_out: what -> how many pairs are not among the P.
    """

    rows: datasets.Dataset
    image: np.ndarray
    captions: list[str]
    ratings: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)


def load_rated(source: str | Path, kind: str, limit: int | None = None, **reading) -> RatedCaptions:
    """Open one of the two sets, prepared as in the published script of CLIPScore (Hessel et al. 2021, appendix A).

    Of the expert set, pairs whose caption is one of the picture's own are left out. Of the crowd set they are kept.

    Args:
        source: the folder with the files, or the file of annotations.
        kind: "expert" or "crowdflower".
        limit: take the first `limit` pictures only.
        reading: the options of `ReadingOptions`; `image_folder` says where the pictures lie.

    Returns:
        The pairs. Those of pictures that cannot be decoded are left out with a warning, or an error with `bad_images="fail"`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line has another form, a caption id is unknown, or all ratings are equal.
    """
    if kind not in FILES:
        raise ValueError(f"split {kind!r}: the rated captions of Flickr8k are {' and '.join(map(repr, FILES))}")
    how, given = ReadingOptions(**reading), Path(source)
    folder = given.parent if given.is_file() else given
    file, tokens = (given if given.is_file() else folder / FILES[kind]), folder / TOKENS
    for needed in (file, tokens):
        if not needed.is_file():
            raise FileNotFoundError(
                f"no file {needed}: expected {FILES[kind]} and {TOKENS} in one folder, as they are published"
            )
    own, caption_of = _captions(tokens)
    pairs = _annotations(file, kind)
    if unknown := [caption for _, caption, _ in pairs if caption not in caption_of]:
        raise ValueError(f"{file}: {len(unknown)} caption ids are not in {tokens}, such as {unknown[0]!r}")
    left_out = {}
    if kind == "expert":
        kept = [pair for pair in pairs if caption_of[pair[1]] not in own.get(_stem(pair[0]), ())]
        left_out["own_captions_left_out"], pairs = len(pairs) - len(kept), kept
    names = list(dict.fromkeys(name for name, _, _ in pairs))[:limit]
    rows, good = _pictures(file, names, how)
    number = {names[i]: row for row, i in enumerate(good)}  # picture -> its row
    left_out["pairs_left_out"] = sum(name in set(names) - set(number) for name, _, _ in pairs)
    pairs = [pair for pair in pairs if pair[0] in number]
    ratings = np.array([ratings for _, _, ratings in pairs], dtype=np.float64)  # (P, R)
    said = np.unique(ratings[~np.isnan(ratings)])
    if len(said) < 2:
        raise ValueError(
            f"{file}: all ratings of these {len(pairs)} pairs are equal ({said.tolist()}), so nothing can agree with them"
        )
    image = np.array([number[name] for name, _, _ in pairs], dtype=np.int64)
    return RatedCaptions(rows, image, [caption_of[caption] for _, caption, _ in pairs], ratings, left_out)


def _captions(file: Path) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Picture without ending -> its captions, and caption id -> caption; with single spaces."""
    own: dict[str, set[str]] = {}
    caption_of: dict[str, str] = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        if not tab or "#" not in name or not caption.strip():
            raise ValueError(f"{file}, line {number}: found {line[:80]!r}, expected a caption id, a tab and a caption")
        caption_of[name.strip()] = " ".join(caption.split())
        own.setdefault(_stem(name.split("#")[0]), set()).add(caption_of[name.strip()])
    return own, caption_of


def _annotations(file: Path, kind: str) -> list[tuple[str, str, list[float]]]:
    """The lines of a file: picture, caption id, ratings."""
    expected = {
        "expert": "a picture, a caption id and three scores from 1 to 4",
        "crowdflower": "a picture, a caption id, the share of yes, and the numbers of yes and of no",
    }[kind]
    pairs = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        try:
            name, caption, *numbers = cells
            first, second, third = map(float, numbers)
        except ValueError:
            first = second = third = -1.0
        if kind == "expert":
            right = all(score in (1, 2, 3, 4) or np.isnan(score) for score in (first, second, third))
            ratings = [first, second, third]
        else:
            asked = second + third
            right = np.isnan(first) or (asked > 0 and abs(first - second / asked) <= MOST_OFF)
            ratings = [first]
        if not right:
            raise ValueError(f"{file}, line {number}: found {line[:80]!r}, expected {expected}, with tabs between")
        pairs.append((name, caption, ratings))
    if not pairs:
        raise ValueError(f"{file} is empty: expected lines of {expected}")
    return pairs


def _pictures(file: Path, names: list[str], how: ReadingOptions) -> tuple[datasets.Dataset, list[int]]:
    """The pictures that decode, and their numbers in `names`."""
    within = file.parent if how.image_folder is None else given_folder(file.parent, how.image_folder)
    rows = table_of(Listing(file, {"file_name": names}), Bounds([within], how.follow_links), how, need_captions=False)
    rows = rows.select_columns(["image", "file_name"])
    faults = {"with an image that cannot be decoded": undecodable(rows, how.max_megapixels)}
    read_pictures_of(how.max_megapixels)
    return leave_out(rows, faults, str(file), how.bad_images)


def _stem(name: str) -> str:
    return name.split(".")[0]
