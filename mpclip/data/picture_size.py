"""How large a picture may be. A small file can unpack to more pixels than there is memory for."""

import contextlib
import re
import warnings
from collections.abc import Iterator

import PIL.Image

from mpclip.data.reading import MAX_MEGAPIXELS


@contextlib.contextmanager
def pixel_limit(max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[None]:
    """Within the block, Pillow raises an error for every larger picture when its header is read, in all threads.

    By itself it only warns, up to twice its limit. `too_large` says the error in plain words.

    Args:
        max_megapixels: millions of pixels of a picture.
    """
    before = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = round(max_megapixels * 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = before


def read_pictures_of(max_megapixels: float) -> None:
    """From now on this process, and those that it forks, read pictures up to this size without a word from Pillow."""
    PIL.Image.MAX_IMAGE_PIXELS = max(PIL.Image.MAX_IMAGE_PIXELS or 0, round(max_megapixels * 1e6))


def too_large(error: Exception, max_megapixels: float) -> str | None:
    """What to say of a picture above the limit, and how to allow it; None if the error is about something else."""
    if not isinstance(error, PIL.Image.DecompressionBombWarning | PIL.Image.DecompressionBombError):
        return None
    pixels = re.search(r"(\d+) pixels", str(error))
    size = f"{int(pixels[1]) / 1e6:.4g} megapixels" if pixels else "too many pixels"
    return f"{size}, more than max_megapixels={max_megapixels:g} allows: set it higher to use the picture"
