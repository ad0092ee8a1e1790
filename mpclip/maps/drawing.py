"""Maps over pictures: the colouring of one, and a sheet of all maps of a picture or clip."""

from pathlib import Path

import numpy as np
import PIL.Image

from mpclip.contact_sheet import FAINT, ContactSheet, wrap

from .prompt_maps import PromptMaps

# Lengths in inches.
CELL = 1.45  # longer side of a picture
GAP = 0.12  # between pictures
LINE = 0.155  # height of a line of words


def draw_maps(found: PromptMaps, path: str | Path) -> None:
    """Draw the maps of a picture, or of each frame of a clip, into a PNG file.

    First comes the picture, then the sum of all maps, then the map of each prompt, with the prompt's part of the score above.
    What `colour_scale` says decides how strong colours are; all maps of the sheet but the sum share one scale.

    Args:
        found: as from `prompt_maps`.
        path: the file to write; its folder is created.
    """
    T, K, H, W = found.maps.shape
    width, height = CELL * W / max(H, W), CELL * H / max(H, W)  # inches
    names = [f"all prompts\n{found.score:.3f}"] if K > 1 else []
    names += ["\n".join([*wrap(name, 19, 4), f"{share:+.3f}"]) for name, share in zip(found.prompts, found.shares, strict=True)]
    columns = [found.maps.sum(axis=1)] if K > 1 else []
    columns += list(found.maps.swapaxes(0, 1))  # (T, H, W) each
    scales = ([colour_scale(columns[0])] if K > 1 else []) + [colour_scale(found.maps)] * K
    lines = wrap(f"“{found.text}”, maps of {found.kind}; the numbers are parts of the cosine", 14 * (K + 2), 3)
    head = GAP + LINE * (len(lines) + max(name.count("\n") + 1 for name in names)) + 0.12
    sheet = ContactSheet(GAP + (len(columns) + 1) * (width + GAP), head + T * (height + GAP))
    sheet.text("\n".join(lines), GAP, GAP, size=8.5)
    for column, name in enumerate(names, start=1):
        sheet.text(name, GAP + column * (width + GAP) + width / 2, head - 0.06, size=8, ha="center", va="bottom")
    for frame in range(T):
        top = head + frame * (height + GAP)
        sheet.picture(found.pictures[frame], GAP, top, width, height)
        for column, (maps, scale) in enumerate(zip(columns, scales, strict=True), start=1):
            heat = heat_over(found.pictures[frame], maps[frame], *scale)
            sheet.picture(heat, GAP + column * (width + GAP), top, width, height)
            sheet.frame(GAP + column * (width + GAP), top, width, height)
    sheet.text("as the model sees it", GAP + width / 2, head - 0.06, size=7.5, color=FAINT, ha="center", va="bottom")
    sheet.save(path)


def colour_scale(maps: np.ndarray) -> tuple[float, float]:
    """Where colour begins in maps that are drawn alike, and where it is full: at their mean, and at their maximum."""
    return float(maps.mean()), float(maps.max())


def heat_over(picture: np.ndarray, weights: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Lay a heat map over a picture.

    Args:
        picture: (H, W, 3) float in 0..1.
        weights: (h, w). They are enlarged to the picture's size by bilinear interpolation.
        low, high: the weights at which colour begins and at which it is full. By default it begins at the map's mean, and is
            full at its highest weight, or at 1.5 times the mean if that is more, so that a flat map of weights stays pale.

    Returns:
        (H, W, 3) float in 0..1: the picture in pale grey, coloured where the weights exceed `low`.
    """
    from matplotlib import colormaps

    H, W = picture.shape[:2]
    low = weights.mean() if low is None else low
    high = max(weights.max(), 1.5 * low) if high is None else high
    # 0 at `low`, 1 at full colour
    excess = (weights - low) / max(high - low, np.finfo(np.float32).tiny)
    heat = PIL.Image.fromarray(excess.astype(np.float32)).resize((W, H), PIL.Image.Resampling.BILINEAR)
    heat = np.clip(np.asarray(heat), 0, 1)  # (H, W)
    grey = 0.35 + 0.65 * (picture @ np.array([0.299, 0.587, 0.114]))[..., None]  # (H, W, 1)
    colour = colormaps["YlOrRd"](0.2 + 0.7 * heat)[..., :3]  # (H, W, 3)
    opacity = 0.75 * np.sqrt(heat)[..., None]  # (H, W, 1)
    return grey * (1 - opacity) + colour * opacity
