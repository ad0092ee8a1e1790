"""Decodes pictures ahead of the model: in order, with a thread per core, within a bound of memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import PIL.Image

from mpclip.data.picture_size import MAX_MEGAPIXELS, pixel_limit, too_large

PHOTO = 12_000_000  # pixels of a photo
PIXELS_AHEAD = 400_000_000  # of pictures that are decoded and wait: about a GB of memory


def decoded(
    items: Iterable,
    decode: Callable[[Any], tuple],
    count: int,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Iterator[tuple[Any, tuple | None, str | None]]:
    """Decode pictures in threads.

    Args:
        items: what `decode` takes.
        decode: an item -> a tuple whose second part is a picture, or None where none is needed.
        count: items that are begun ahead; fewer where pictures are large.
        max_megapixels: larger pictures count as unreadable.

    Yields:
        For each item, in order: the item, what `decode` made of it, None; or the item, None, what is wrong with it.
    """
    with pixel_limit(max_megapixels), ThreadPoolExecutor(os.cpu_count()) as pool:
        for item, future in _ahead(pool, decode, items, count):
            try:
                made = future.result()
            except Exception as error:  # Pillow's decoders raise a dozen types
                yield item, None, fault(error, max_megapixels)
            else:
                yield item, made, None


def fault(error: Exception, max_megapixels: float) -> str:
    """What is wrong with a picture, in words, from the error that reading it raised."""
    if large := too_large(error, max_megapixels):
        return large
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not a picture that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which the name says
    return str(error) or type(error).__name__


def pixels_of(picture: PIL.Image.Image | None) -> int:
    """Width times height; 0 for None."""
    return picture.width * picture.height if picture else 0


def _ahead(pool: ThreadPoolExecutor, read: Callable, items: Iterable, count: int) -> Iterator[tuple[Any, Future]]:
    """Items in order with what `read` makes of them. Reading begins `count` items early, or fewer where pictures are large."""
    begun: deque[tuple[Any, Future]] = deque()
    guess = PHOTO  # the size of a picture that is not read yet: about that of those before

    def pixels(future: Future) -> float:
        return guess if not future.done() else 0 if future.exception() else pixels_of(future.result()[1])

    for item in items:
        begun.append((item, pool.submit(read, item)))
        while len(begun) > count or sum(pixels(future) for _, future in begun) > PIXELS_AHEAD:
            yield begun[0]
            guess = (guess + pixels(begun.popleft()[1])) / 2
    yield from begun
