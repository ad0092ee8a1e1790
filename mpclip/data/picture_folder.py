"""The pictures in a folder: which files are pictures, which links are followed, and what is never opened."""

import os
import stat
from collections import deque
from pathlib import Path

import datasets
import huggingface_hub
import PIL.Image

from mpclip.data.links import Bounds

# Endings that say "picture". Such a file is one, even if Pillow cannot read it. What other files are, their content says.
PICTURE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
PICTURE_ENDINGS += (".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".tga", ".psd", ".ppm", ".pgm", ".pbm", ".pnm")
# First bytes that say the same, and where they stand: JPEG, PNG, GIF, WebP, AVIF, HEIC.
PICTURE_STARTS = ((0, b"\xff\xd8\xff"), (0, b"\x89PNG\r\n"), (0, b"GIF8"), (8, b"WEBP"), (4, b"ftypavif"), (4, b"ftypheic"))
# What Pillow identifies but does not decode (videos, weather data), or only by starting another program (PostScript).
NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
NOT_A_FILE = "a pipe, a socket or a device, not a file"


def find_pictures(folder: str | os.PathLike, follow_links: bool = False) -> tuple[list[str], dict[str, str]]:
    """All pictures below a folder.

    Names that begin with a dot are skipped. Each folder is visited once, so that loops of links end; a folder that is reached
    by a link and without one is visited without it.

    Args:
        folder: where to search, at any depth.
        follow_links: also follow links that lead out of the folder.

    Returns:
        The paths of the pictures, relative to the folder and with "/", in alphabetical order; and path -> reason for everything
        that looks like a picture, or may hold some, and is left out.
    """
    caches = [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]  # full of links into one another
    bounds = Bounds([folder, *caches], follow_links)
    pictures: list[str] = []
    refused: dict[str, str] = {}
    folders, links = deque([""]), deque()
    visited: set[str] = set()
    while folders or links:
        place = (folders or links).popleft()
        real = os.path.realpath(os.path.join(folder, place))
        if real in visited:
            continue
        visited.add(real)
        try:
            entries = list(os.scandir(os.path.join(folder, place)))
        except OSError as error:
            refused[place or "."] = f"cannot be listed: {error.strerror}"
            continue
        for entry in entries:
            name = f"{place}/{entry.name}" if place else entry.name
            if entry.name.startswith("."):
                continue
            fault = bounds.fault(entry.path) if entry.is_symlink() else None
            if entry.is_dir():
                if fault:
                    refused[name] = fault
                else:
                    (links if entry.is_symlink() else folders).append(name)
            elif fault or not entry.is_file():
                if named_as_picture(name):
                    refused[name] = "a link to nowhere" if not os.path.exists(entry.path) else fault or NOT_A_FILE
            elif is_picture(entry.path):
                pictures.append(name)
    return sorted(pictures), dict(sorted(refused.items()))


def named_as_picture(path: str | os.PathLike) -> bool:
    """Whether a file's ending says that it is a picture."""
    return Path(path).suffix.lower() in PICTURE_ENDINGS


def is_picture(path: str | os.PathLike) -> bool:
    """Whether a regular file is a picture, by its ending or else by its first bytes."""
    if named_as_picture(path):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            if any(start[at : at + len(sign)] == sign for at, sign in PICTURE_STARTS):
                return True
            PIL.Image.open(file, formats=_formats())  # reads the header
    except Exception:  # Pillow raises errors of a dozen types
        return False
    return True


def _formats() -> list[str]:
    """Names of the formats that Pillow decodes and knows by first bytes. It takes any bytes for the others, such as TGA."""
    PIL.Image.init()
    return [name for name, (_, knows) in PIL.Image.OPEN.items() if knows is not None and name not in NOT_DECODED]


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: it is a pipe, a socket or a device. Reading one could wait for ever.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(NOT_A_FILE)
    return Path(path).read_bytes()
