"""The files that Flickr8k and Flickr30k come with.

    Flickr8k.token.txt, results_20130124.token    1000268201_693b08cb0e.jpg#0<tab>A child in a pink dress .
    results.csv                                   1000092795.jpg| 0| Two young guys with shaggy hair look at their hands .

The splits of Flickr8k are in Flickr_8k.trainImages.txt, .devImages.txt and .testImages.txt beside it.
"""

import re
from pathlib import Path

from mpclip.data.forms.listing import Listing

TOKEN = re.compile(r"(?P<name>[^\t#|]+)#\d+\t(?P<caption>.*)")
# A row of Flickr30k lacks its second bar.
BARS = re.compile(r"(?P<name>[^|]+)\|\s*\d+\s*\|?\s*(?P<caption>.*)")
HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment\s*")
SPLITS = {"train": "train", "dev": "validation", "test": "test"}  # word in the names of Flickr8k's lists -> split


def is_flickr(text: str) -> bool:
    first = text.lstrip().split("\n", 1)[0].strip()
    return bool(TOKEN.fullmatch(first) or HEADER.fullmatch(first))


def read_flickr(file: Path, text: str) -> Listing:
    """A row per caption, with `split` where lists of Flickr8k's splits lie beside the file.

    Raises:
        ValueError: a line has another form.
    """
    lines = text.splitlines()
    form = BARS if HEADER.fullmatch(lines[0].strip()) else TOKEN
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (form is BARS and number == 1):
            continue
        found = form.fullmatch(line)
        if not found:
            raise ValueError(f"{file}, line {number}: found {line[:80]!r}, expected a picture, a number and a caption")
        records.append({"file_name": found["name"].strip(), "captions": [found["caption"].strip()]})
    splits = _splits(file.parent)
    if splits:
        for record in records:
            record["split"] = splits.get(record["file_name"])
    return Listing.of_records(file, records)


def _splits(folder: Path) -> dict[str, str]:
    """Picture -> split, of Flickr8k's lists in a folder."""
    return {
        name.strip(): split
        for word, split in SPLITS.items()
        for file in folder.glob(f"Flickr_8k.{word}Images.txt")
        for name in file.read_text(encoding="utf-8").splitlines()
        if name.strip()
    }
