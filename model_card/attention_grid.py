"""Pictures of what each prompt looks at: the attention pooling's weights over the picture, a heat map per query.

pictures, maps = pooling_maps(model, processor, images)
attention_grid(pictures, maps, titles, "attention.png")
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT = "#1c1c1c", "#6b6b6b"
DPI = 130
CELL = 1.45  # inches of a picture's longer side
GAP = 0.12  # inches between pictures
TITLE_LINE = 0.155  # inches of a line of a column's title
LABEL = 0.22  # inches below a picture


def pooling_maps(model, processor, images: Sequence[PIL.Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Runs the image side on a few images.

    Args:
        model: [`MPCLIPModel`] with image_pooling "attention" or "attention_per_prompt"; its mode is restored.
        processor: its [`MPCLIPProcessor`].
        images: B of them, RGB.

    Returns:
        The images as the model sees them, (B, H, W, 3) float32 in 0..1, and the attention weights of each query at every
        place, averaged over the heads, (B, Q, h, w) float32. They sum to at most 1: a class token may take a part.

    Raises:
        ValueError: the model has no attention pooling.
    """
    image_processor = processor.image_processor
    pixels = image_processor(list(images), return_tensors="pt")["pixel_values"]  # (B, 3, H, W)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        weights = model.get_image_features(pixel_values=pixels.to(model.device)).pooling_attentions  # (B, Q, heads, N)
    model.train(was_training)
    if weights is None:
        raise ValueError(
            f"image_pooling={model.config.image_pooling!r} has no attention weights to draw; "
            "'attention' and 'attention_per_prompt' have."
        )
    h, w = token_grid(weights.shape[-1], *pixels.shape[-2:], getattr(model.config.vision_config, "patch_size", None))
    maps = weights.float().mean(dim=2)[..., -h * w :].unflatten(-1, (h, w))  # special tokens stand in front
    return _as_seen(pixels, image_processor), maps.cpu().numpy()


def token_grid(tokens: int, height: int, width: int, patch: int | None) -> tuple[int, int]:
    """(rows, columns) of the image tokens; `patch` is None for a CNN, whose feature map has the proportions of the image."""
    if patch is not None:
        return height // patch, width // patch
    rows = round((tokens * height / width) ** 0.5)
    if rows * (tokens // rows) != tokens:
        raise ValueError(f"{tokens} tokens form no grid with the proportions of an image of {height} x {width} pixels.")
    return rows, tokens // rows


def attention_grid(pictures: np.ndarray, maps: np.ndarray, titles: Sequence[str], path: str | Path) -> None:
    """Draws a row per picture into a PNG file: the picture, then each heat map laid over it in grey.

    What weighs more than the map's mean is coloured; full colour is the map's highest weight, or 1.5 times the mean where that
    is more, so that a flat map stays pale. The number below says how many times the mean the highest weight is.

    Args:
        pictures: (B, H, W, 3) float in 0..1.
        maps: (B, Q, h, w) weights, not negative.
        titles: Q column titles.
        path: the file to write; its folder is made.
    """
    B, Q = maps.shape[:2]
    H, W = pictures.shape[1:3]
    if len(pictures) != B or len(titles) != Q:
        raise ValueError(
            f"{len(pictures)} pictures, {B} x {Q} maps, {len(titles)} titles: expected a row of maps for every picture "
            "and a title for every column of maps"
        )
    cell_w, cell_h = CELL * W / max(H, W), CELL * H / max(H, W)  # inches
    wrapped = [textwrap.wrap(title, width=19, max_lines=4, placeholder=" ...") for title in titles]
    head = GAP + TITLE_LINE * max(map(len, wrapped), default=0) + 0.06
    row_height = cell_h + LABEL
    width, height = GAP + (Q + 1) * (cell_w + GAP), head + B * (row_height + GAP)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))  # one set of axes, measured in inches from the upper left corner
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def draw(row: int, column: int, image: np.ndarray, label: str) -> None:
        left, top = GAP + column * (cell_w + GAP), head + row * (row_height + GAP)
        axes.imshow(image, extent=(left, left + cell_w, top + cell_h, top), aspect="auto", interpolation="lanczos")
        axes.text(left + cell_w / 2, top + cell_h + 0.05, label, va="top", ha="center", size=7.5, color=FAINT, parse_math=False)

    for column, lines in enumerate(wrapped, start=1):
        at = GAP + column * (cell_w + GAP) + cell_w / 2
        axes.text(at, head - 0.06, "\n".join(lines), va="bottom", ha="center", size=8, color=INK, parse_math=False)
    for row in range(B):
        draw(row, 0, pictures[row], "as the model sees it")
        for query, weights in enumerate(maps[row]):
            draw(row, query + 1, heat_over(pictures[row], weights), f"highest {weights.max() / weights.mean():.1f} x mean")

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def heat_over(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(H, W, 3) the picture in pale grey, and over it in colour what exceeds the mean of (h, w) weights, enlarged smoothly."""
    H, W = picture.shape[:2]
    mean = weights.mean()
    excess = (weights - mean) / max(weights.max() - mean, 0.5 * mean)
    heat = PIL.Image.fromarray(excess.astype(np.float32)).resize((W, H), PIL.Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(heat), 0, 1)  # (H, W)
    grey = 0.35 + 0.65 * (picture @ np.array([0.299, 0.587, 0.114]))[..., None]  # (H, W, 1)
    colour = colormaps["YlOrRd"](0.2 + 0.7 * heat)[..., :3]  # (H, W, 3)
    opacity = 0.75 * np.sqrt(heat)[..., None]  # (H, W, 1)
    return grey * (1 - opacity) + colour * opacity


def _as_seen(pixels: torch.Tensor, image_processor) -> np.ndarray:
    """(B, 3, H, W) normalised pixels -> (B, H, W, 3) in 0..1."""
    if getattr(image_processor, "do_normalize", False):
        mean, std = (torch.tensor(getattr(image_processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
        pixels = pixels * std + mean
    return pixels.clamp(0, 1).permute(0, 2, 3, 1).float().numpy()
