"""Maps over pictures: the colouring of one, and a sheet of all maps of some pictures or clips."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from mpclip.contact_sheet import FAINT, ContactSheet, wrap

from .prompt_maps import PromptMaps

# Lengths in inches.
CELL = 1.45  # longer side of a picture
GAP = 0.12  # between pictures
LINE = 0.155  # height of a line of words


def draw_maps(found: PromptMaps | Sequence[PromptMaps], path: str | Path) -> None:
    """Draw the maps of a picture, or of each frame of a clip, into a PNG file; or those of several, one below the other.

    First comes the picture, then the sum of all maps, then the map of each prompt, with the prompt's part of the score above.
    What `colour_scale` says decides how strong colours are; all maps of a text but the sum share one scale.

    Args:
        found: as from `prompt_maps`; several are of one model.
        path: the file to write; its folder is created.
    """
    several = [found] if isinstance(found, PromptMaps) else list(found)
    _, K, H, W = several[0].maps.shape
    width, height = CELL * W / max(H, W), CELL * H / max(H, W)  # inches
    columns = K + 2 if K > 1 else 2
    heads = [_head(one, columns, named=one is several[0]) for one in several]
    rows = [len(one.maps) * (height + GAP) for one in several]
    sheet = ContactSheet(GAP + columns * (width + GAP), sum(head.height for head in heads) + sum(rows))
    bottom = 0.0  # of what is drawn
    for one, head, below in zip(several, heads, rows, strict=True):
        sheet.text("\n".join(head.lines), GAP, bottom + GAP, size=8.5)
        top = bottom + head.height
        for column, name in enumerate(head.names):
            style = {"size": 8} if column else {"size": 7.5, "color": FAINT}
            sheet.text(name, GAP + column * (width + GAP) + width / 2, top - 0.06, ha="center", va="bottom", **style)
        for frame, cells in enumerate(_cells(one)):
            for column, cell in enumerate(cells):
                box = (GAP + column * (width + GAP), top + frame * (height + GAP), width, height)
                sheet.picture(cell, *box)
                if column:
                    sheet.frame(*box)
        bottom = top + below
    sheet.save(path)


class _Head(NamedTuple):
    """What stands above the maps of one text: lines over all columns, and lines above each column; the height is in inches."""

    lines: list[str]
    names: list[str]
    height: float


def _head(found: PromptMaps, columns: int, named: bool) -> _Head:
    """`named`: whether columns have the prompts above them, beside their parts of the score."""
    lines = wrap(f"“{found.text}”, maps of {found.kind}; the numbers are parts of the cosine", 14 * columns, 3)
    names = [["as the model sees it"] if named else []]
    if len(found.prompts) > 1:
        names.append([*(["all prompts"] if named else []), f"{found.score:.3f}"])
    for name, share in zip(found.prompts, found.shares, strict=True):
        names.append([*(wrap(name, 19, 4) if named else []), f"{share:+.3f}"])
    height = GAP + LINE * (len(lines) + max(map(len, names))) + 0.12
    return _Head(lines, ["\n".join(name) for name in names], height)


def _cells(found: PromptMaps) -> Iterator[list[np.ndarray]]:
    """The row of each frame: the frame, the sum of all maps over it if there are several, and each map over it."""
    summed = found.maps.sum(axis=1)  # (T, H, W)
    of_sum, of_each = colour_scale(summed), colour_scale(found.maps)
    for frame, whole, maps in zip(found.pictures, summed, found.maps, strict=True):
        sums = [heat_over(frame, whole, *of_sum)] if len(maps) > 1 else []
        yield [frame, *sums, *(heat_over(frame, one, *of_each) for one in maps)]


def colour_scale(maps: np.ndarray) -> tuple[float, float]:
    """Where colour begins in maps that are drawn alike, and where it is full: at their mean, and at their maximum."""
    return float(maps.mean()), float(maps.max())


def heat_over(picture: np.ndarray, weights: np.ndarray, low: float, high: float) -> np.ndarray:
    """Lay a heat map over a picture.

    Args:
        picture: (H, W, 3) float in 0..1.
        weights: (h, w). They are enlarged to the picture's size by bilinear interpolation.
        low, high: the weights at which colour begins and at which it is full, as from `colour_scale`.

    Returns:
        (H, W, 3) float in 0..1: the picture in pale grey, coloured where the weights exceed `low`.
    """
    from matplotlib import colormaps

    H, W = picture.shape[:2]
    # 0 at `low`, 1 at full colour
    excess = (weights - low) / max(high - low, np.finfo(np.float32).tiny)
    heat = PIL.Image.fromarray(excess.astype(np.float32)).resize((W, H), PIL.Image.Resampling.BILINEAR)
    heat = np.clip(np.asarray(heat), 0, 1)  # (H, W)
    grey = 0.35 + 0.65 * (picture @ np.array([0.299, 0.587, 0.114]))[..., None]  # (H, W, 1)
    colour = colormaps["YlOrRd"](0.2 + 0.7 * heat)[..., :3]  # (H, W, 3)
    opacity = 0.75 * np.sqrt(heat)[..., None]  # (H, W, 1)
    return grey * (1 - opacity) + colour * opacity
