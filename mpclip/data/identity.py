"""What tells pictures, and collections of them, apart, so that what was computed for one is used again for no other.

A picture is known by its content. Where it lies, and under which date, only spares reading it again.
"""

import hashlib
import os

import datasets

from mpclip.files import stamp


def picture_key(content: bytes) -> str:
    """A picture's identity: SHA-256 of the bytes of its file, in hexadecimal. The same file has the same key under any name."""
    return hashlib.sha256(content).hexdigest()


def place_stamp(path: str | os.PathLike) -> str:
    """Size, date and full path of a picture's file. While a stamp stays the same, so does the key of the picture.

    "unreadable" and the path if there is no such file; reading it will say so.
    """
    try:
        size_and_date = " ".join(map(str, stamp(path)))
    except OSError:
        size_and_date = "unreadable"
    return f"{size_and_date} {os.path.abspath(path)}"


def identity_of_images(rows: datasets.Dataset) -> str:
    """A hash that changes with the pictures in column `image`: of their bytes where they lie in the table.

    Where the table refers to files, it is made of their paths, sizes and dates, which takes no reading.
    """
    digest = hashlib.sha256()
    for cell in rows.with_format(None).cast_column("image", datasets.Image(decode=False))["image"]:
        if cell["bytes"] is not None:
            digest.update(cell["bytes"])
        else:
            status = os.stat(cell["path"])
            digest.update(f"{cell['path']} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
