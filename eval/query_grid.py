"""A picture of what a model finds: one row per query, its words and the images of highest score beside them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

RIGHT, WRONG = "#1a8a3c", "#e0491b"  # differ in brightness too; the marks beside them say the same without colour
INK, FAINT, HAIRLINE = "#1c1c1c", "#6b6b6b", "#cfcfcf"
DPI = 130
CELL = 1.5  # inches of an image's side
FRAME = 0.03  # inches from an image to the middle of its frame
GAP = 0.16  # inches between images
QUERY = 2.9  # inches of the query column
CAPTION = 0.34  # inches below an image


def query_grid(
    queries: Sequence[str],
    images: Sequence[PIL.Image.Image],
    scores: Tensor | np.ndarray,
    right: Sequence[int],
    path: str | Path,
    columns: int = 5,
) -> None:
    """Draws the best images for each query into a PNG file.

    The right image has a green frame and a check mark; a wrong image at first place a red-orange frame and a cross.
    Under a query whose right image is not shown stands the rank it has.

    Args:
        queries: Q texts.
        images: I images; only those shown are read, so a lazily decoded column will do.
        scores: (Q, I), higher is better.
        right: Q numbers of the right images.
        path: the file to write; its folder is made.
        columns: images per query.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if scores.shape != (len(queries), len(images)) or len(right) != len(queries):
        raise ValueError(
            f"{len(queries)} queries, {len(images)} images, {len(right)} right answers, scores {scores.shape}: "
            "expected scores (queries, images) and one right image per query"
        )
    columns = min(columns, len(images))
    row_height = CELL + CAPTION + GAP
    width = QUERY + columns * (CELL + GAP) + GAP
    height = GAP + len(queries) * row_height
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))  # one set of axes, measured in inches from the upper left corner
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    for row, (query, row_scores, answer) in enumerate(zip(queries, scores, right, strict=True)):
        top = GAP + row * row_height
        order = np.lexsort((np.arange(len(images)) == int(answer), -row_scores))  # (I,) in a tie the right image is last
        _draw_query(axes, query, int(np.flatnonzero(order == int(answer))[0]) + 1, columns, top)
        for column, number in enumerate(order[:columns]):
            left = QUERY + column * (CELL + GAP)
            verdict = "right" if number == int(answer) else "wrong" if column == 0 else None
            _draw_image(axes, images[int(number)], float(row_scores[number]), verdict, left, top)

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def _draw_query(axes, query: str, rank: int, columns: int, top: float) -> None:
    lines = textwrap.wrap(query, width=30, max_lines=6, placeholder=" ...") or [""]
    axes.text(GAP, top, "\n".join(lines), va="top", size=11, color=INK, linespacing=1.25, parse_math=False)
    if rank > columns:
        axes.text(GAP, top + CELL, f"right image at rank {rank:,}", va="bottom", size=9, color=FAINT)


def _draw_image(axes, image: PIL.Image.Image, score: float, verdict: str | None, left: float, top: float) -> None:
    image = image.convert("RGB")
    scale = CELL / max(image.size)
    w, h = image.width * scale, image.height * scale  # inches
    x, y = left + (CELL - w) / 2, top + (CELL - h) / 2
    pixels = image.resize((max(1, round(w * DPI)), max(1, round(h * DPI))), PIL.Image.Resampling.LANCZOS)
    axes.imshow(np.asarray(pixels), extent=(x, x + w, y + h, y), aspect="auto")
    # The hairline keeps an image with a white background from dissolving into the page.
    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=HAIRLINE, linewidth=0.6))
    below = top + CELL + 0.1
    if verdict:
        color, mark = (RIGHT, "✓ right") if verdict == "right" else (WRONG, "✗ wrong")
        corner = (x - FRAME, y - FRAME)  # around the image, hiding none of it
        size = (w + 2 * FRAME, h + 2 * FRAME)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=3, joinstyle="miter"))
        axes.text(left, below, mark, va="top", size=9, color=color, weight="bold")
    axes.text(left + CELL, below, f"{score:.2f}", va="top", ha="right", size=9, color=FAINT)
