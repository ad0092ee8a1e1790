"""A picture of search results: a row for each query, with its text and the images of highest score."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike

from mpclip.contact_sheet import FAINT, ContactSheet, wrap

# Colours of frames. They differ in brightness too, and a mark below the image says the same.
RIGHT, WRONG = "#1a8a3c", "#e0491b"
# Lengths in inches.
CELL = 1.5  # longer side of an image
FRAME = 0.03  # from an image to the middle of its frame
GAP = 0.16  # between images
QUERY = 2.9  # width of the queries' column
CAPTION = 0.34  # height of the line below an image


def query_grid(
    queries: Sequence[str],
    images: Sequence[PIL.Image.Image],
    scores: ArrayLike,
    right: Sequence[int],
    path: str | Path,
    columns: int = 5,
    same: Sequence[Collection[int]] | None = None,
) -> None:
    """Draw the best images for each query into a PNG file.

    The right image has a green frame and a check mark, and so has one that the query describes as well. A wrong image in first
    place has a red-orange frame and a cross. If the right image is not among those shown, its rank is written below the query.

    Args:
        queries: Q texts.
        images: I images, or a column of a data set; only those shown are read.
        scores: (Q, I), an array or a tensor on the CPU; higher is better.
        right: Q indices of the right images.
        path: the file to write; its folder is created.
        columns: images per query.
        same: for each query the indices of other images that have a caption of the same words.

    Raises:
        ValueError: the numbers of queries, images, scores and right images do not match.
    """
    scores = np.asarray(scores, dtype=np.float32)  # (Q, I)
    if scores.shape != (len(queries), len(images)) or len(right) != len(queries):
        raise ValueError(
            f"{len(queries)} queries, {len(images)} images, {len(right)} right answers, scores {scores.shape}: "
            "expected scores (queries, images) and one right image per query"
        )
    columns = min(columns, len(images))
    row_height = CELL + CAPTION + GAP
    sheet = ContactSheet(width=QUERY + columns * (CELL + GAP) + GAP, height=GAP + len(queries) * row_height)

    for row, (query, row_scores, answer) in enumerate(zip(queries, scores, right, strict=True)):
        top = GAP + row * row_height
        order = np.lexsort((np.arange(len(images)) == int(answer), -row_scores))  # (I,) in a tie, the right image is last
        _draw_query(sheet, query, int(np.flatnonzero(order == int(answer))[0]) + 1, columns, top)
        for column, number in enumerate(order[:columns]):
            left = QUERY + column * (CELL + GAP)
            alike = same is not None and int(number) in same[row]
            verdict = "right" if number == int(answer) else "same caption" if alike else "wrong" if column == 0 else None
            _draw_image(sheet, images[int(number)], float(row_scores[number]), verdict, left, top)
    sheet.save(path)


def _draw_query(sheet: ContactSheet, query: str, rank: int, columns: int, top: float) -> None:
    sheet.text("\n".join(wrap(query, 30, max_lines=6)), GAP, top, size=11, linespacing=1.25)
    if rank > columns:
        sheet.text(f"right image at rank {rank:,}", GAP, top + CELL, size=9, color=FAINT, va="bottom")


def _draw_image(
    sheet: ContactSheet, image: PIL.Image.Image, score: float, verdict: str | None, left: float, top: float
) -> None:
    scale = CELL / max(image.size)
    width, height = image.width * scale, image.height * scale  # inches
    box = (left + (CELL - width) / 2, top + (CELL - height) / 2, width, height)
    sheet.picture(image, *box)
    sheet.frame(*box)
    below = top + CELL + 0.1
    if verdict:
        color, mark = (WRONG, "✗ wrong") if verdict == "wrong" else (RIGHT, f"✓ {verdict}")
        sheet.frame(*box, color=color, line=3, gap=FRAME)  # around the image, so that it covers nothing
        sheet.text(mark, left, below, size=9, color=color, weight="bold")
    sheet.text(f"{score:.2f}", left + CELL, below, size=9, color=FAINT, ha="right")
