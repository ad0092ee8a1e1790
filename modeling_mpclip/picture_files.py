"""Strings that name pictures: paths, URLs and base64. And which strings are texts instead."""

import base64
import os
import re
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from transformers.utils import is_vision_available

from .pictures import to_rgb

if is_vision_available():  # transformers imports Pillow on this condition too; a text-only model runs without it
    import PIL.Image

LONGEST_PATH = 4096  # characters; a longer string is a text, and the disk is not asked
# "photo.jpg", "my photo (2).HEIC", "photos/a.tif": the ending belongs to a picture, and something stands before the dot.
LOOKS_LIKE_PICTURE = re.compile(
    r".*[^\s.]\.(jpe?g|jpe|jfif|jp2|j2k|jpf|jpx|jxl|png|apng|gif|bmp|dib|tiff?|webp|avifs?|hei[cf]|hif|ico|icns|p[bgpn]m|tga|dds|"
    r"psd|svg|exr|qoi|dng|cr2|nef|arw)",
    re.IGNORECASE,
)
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow identifies them and does not decode them by itself
LOOKS_LIKE_URL = re.compile(r"([a-z][a-z0-9+.-]*://|data:[a-z]+/)\S+", re.IGNORECASE)


def open_rgb(file: str | Path | BinaryIO) -> "PIL.Image.Image":
    """Read a picture file (path or opened) and convert it; see `to_rgb`. Raises whatever Pillow raises."""
    with PIL.Image.open(file) as image:
        image.load()
        return to_rgb(image)


def load_rgb(picture: Any, timeout: float | None = None) -> "PIL.Image.Image":
    """A picture as the pipelines of transformers take it: besides what `to_rgb` takes, a path, a URL or base64.

    Args:
        picture: the picture.
        timeout: seconds to wait for a URL; None waits as long as it takes.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ValueError: the string is none of these.
        OSError: the file cannot be read, or the URL not be fetched.
    """
    if not isinstance(picture, (str, Path)):
        return to_rgb(picture)
    if len(str(picture)) <= LONGEST_PATH and os.path.isfile(picture):
        return open_rgb(picture)
    if str(picture).startswith(("http://", "https://")):
        asked = urllib.request.Request(picture, headers={"User-Agent": "transformers"})  # some servers refuse Python's own name
        with urllib.request.urlopen(asked, timeout=timeout) as answer:
            return open_rgb(BytesIO(answer.read()))
    try:  # "data:image/png;base64,CONTENT", or CONTENT alone
        return open_rgb(BytesIO(base64.b64decode(str(picture).rpartition(",")[2])))
    except (ValueError, OSError):
        raise ValueError(f"{str(picture)[:80]!r} is no picture: expected the path of a file, a URL, or base64.") from None


def picture_named(text: str) -> "PIL.Image.Image | None":
    """The picture that a string names, where texts and pictures are both allowed.

    Args:
        text: a text, or the path of a picture file. What a file holds decides, not its ending; a file that holds no picture,
            such as README.md, does not make a picture of a text.

    Returns:
        A PIL image of mode RGB; None if the string is a text.

    Raises:
        FileNotFoundError: the string looks like the path of a picture, and there is no such file.
        ValueError: it is the path of a file that Pillow cannot read, or a URL.
    """
    if len(text) > LONGEST_PATH and not text.startswith("data:"):
        return None
    if LOOKS_LIKE_PICTURE.fullmatch(text) or LOOKS_LIKE_URL.fullmatch(text):
        return open_named(text)
    if not os.path.isfile(text):
        return None
    PIL.Image.init()  # fills the table of formats
    certain = [name for name, (_, accepts) in PIL.Image.OPEN.items() if accepts is not None and name not in NO_PICTURES]
    try:
        PIL.Image.open(text, formats=certain).close()  # reads the header
    except OSError:  # it holds no picture, or may not be read
        return None
    return open_named(text)


def open_named(path: str | Path) -> "PIL.Image.Image":
    """The picture in a file, as RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no picture that Pillow can read, or the path is a URL.
    """
    if LOOKS_LIKE_URL.fullmatch(str(path)):
        raise ValueError(
            f"Images are not fetched from URLs: {str(path)[:80]!r} is one. Download it and pass the path of the file. "
            f"{_way_out(str(path))}"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no image file {str(path)!r}. {_way_out(str(path))}")
    try:
        return open_rgb(path)
    except PIL.Image.DecompressionBombError:
        raise
    except Exception as error:  # Pillow raises errors of a dozen types, most of which do not name the file
        what = f"{str(path)!r} is not a picture that Pillow can read ({error})"
        raise ValueError(f"{what}. Repair it, or convert it to PNG or JPEG. {_way_out(str(path))}") from error


def _way_out(text: str) -> str:
    return f"If this is a text, pass {{'text': {text[:80]!r}}}."
