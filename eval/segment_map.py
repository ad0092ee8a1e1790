"""A heat map of shares of right choices between two: white is chance, dark is all right."""

from collections.abc import Sequence
from pathlib import Path


def segment_map(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], path: str | Path) -> None:
    """Draw the heat map into a PNG.

    Args:
        rows, columns: names.
        values: in percent, a list for each row.
        path: the file to write; its folder is created.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mpclip.files import aside

    figure = Figure(figsize=(1.1 * len(columns) + 2, 0.45 * len(rows) + 0.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, vmin=50, vmax=100, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for row, one in enumerate(values):
        for column, value in enumerate(one):
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if value > 80 else "black")
    with aside(path) as written:
        FigureCanvasAgg(figure).print_png(str(written))
