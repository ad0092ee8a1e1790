"""Which classes a model takes for which: counts, a heat map, and a picture grid of the worst confusions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpclip.contact_sheet import FAINT, ContactSheet, wrap
from mpclip.files import aside

MOST_CLASSES = 30  # classes that a heat map or a table names; more could not be read
# Lengths in inches.
CELL, GAP, TITLE, LINE = 1.3, 0.16, 2.9, 0.3


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many pictures of each class were taken for each class.

    Args:
        labels, predicted: (I,) int.
        classes: C.

    Returns:
        (C, C) int64; rows are the pictures' own classes, columns the predicted ones.
    """
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def worst_confusions(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The most frequent confusions.

    Args:
        counts: (C, C), as from `confusion_counts`.
        most: how many.

    Returns:
        (own class, predicted class, number of pictures) of each, most pictures first; only those with at least one picture.
    """
    wrong = counts - np.diag(np.diag(counts))  # (C, C)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    found = [(*map(int, divmod(int(place), len(counts))), int(wrong.flat[place])) for place in order]
    return [(own, taken, count) for own, taken, count in found if count]


def confusion_plot(counts: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Draw a heat map into a PNG: the share of each class's pictures that were taken for each class, in percent.

    Of more than `MOST_CLASSES` classes it shows those with the most mistakes, in their order; the title says so.

    Args:
        counts: (C, C), as from `confusion_counts`.
        names: of the C classes.
        path: the file to write; its folder is created.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wrong = counts - np.diag(np.diag(counts))  # (C, C)
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)  # (C,) as own or predicted class
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])  # (S,)
    shares = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    shares = shares[np.ix_(shown, shown)]  # (S, S)
    side = 2.5 + 0.42 * len(shown)
    figure = Figure(figsize=(side + 0.6, side), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    words = [_short(names[i]) for i in shown]
    axes.set_xticks(range(len(shown)), words, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(shown)), words, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="class")
    if len(shown) < len(names):
        axes.set_title(f"the {len(shown)} of {len(names)} classes with the most mistakes", size=10)
    for row, column in zip(*np.nonzero(np.round(shares)), strict=True):
        share = shares[row, column]
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", size=7, color="white" if share > 55 else "black")
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="% of the pictures of a class")
    with aside(path) as written:
        FigureCanvasAgg(figure).print_png(str(written))


def confusion_grid(
    images: Sequence,
    labels: np.ndarray,
    predicted: np.ndarray,
    margin: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    rows: int = 6,
    columns: int = 5,
) -> None:
    """Draw the most frequent confusions into a PNG: a row for each, with the pictures that were mistaken most clearly.

    Args:
        images: I pictures, or a column of a data set; only those shown are read.
        labels, predicted: (I,) int, own and predicted class.
        margin: (I,) the score of the own class minus the best other one.
        names: of the C classes.
        path: the file to write; its folder is created.
        rows, columns: at most so many confusions, and pictures of each.
    """
    from modeling_mpclip.pictures import to_rgb

    counts = confusion_counts(labels, predicted, len(names))
    worst = worst_confusions(counts, rows)
    height = CELL + LINE + GAP
    sheet = ContactSheet(width=TITLE + columns * (CELL + GAP) + GAP, height=GAP + max(1, len(worst)) * height)
    if not worst:
        sheet.text("No picture was taken for another class.", GAP, GAP, size=11)
    for row, (own, taken, count) in enumerate(worst):
        top = GAP + row * height
        of_class = int(counts[own].sum())
        sheet.text("\n".join(wrap(names[own], 28, 2)), GAP, top, size=11, weight="bold")
        sheet.text("\n".join(wrap(f"taken for {names[taken]}", 30, 2)), GAP, top + 0.5, size=10)
        told = f"{count:,} of {of_class:,} pictures ({100 * count / of_class:.0f}%)"
        sheet.text(told, GAP, top + 1.0, size=9, color=FAINT)
        mistaken = np.flatnonzero((labels == own) & (predicted == taken))  # (N,)
        for column, number in enumerate(mistaken[np.argsort(margin[mistaken], kind="stable")][:columns]):
            left = TITLE + column * (CELL + GAP)
            image = to_rgb(images[int(number)])
            scale = CELL / max(image.size)
            box = (left, top, image.width * scale, image.height * scale)
            sheet.picture(image, *box)
            sheet.frame(*box)
            sheet.text(f"{margin[number]:+.3f}", left, top + CELL + 0.06, size=8, color=FAINT)
    sheet.save(path)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:22] + "…"
