"""Contact sheets: pictures and words on a white page, saved as a PNG.

    sheet = ContactSheet(width=4.0, height=2.4)
    sheet.picture(image, 0.2, 0.2, 1.5, 1.5)  # left, top, width, height
    sheet.frame(0.2, 0.2, 1.5, 1.5)
    sheet.text("\\n".join(wrap("A caption of many words.", 20)), 0.2, 1.8, size=8)
    sheet.save("sheet.png")

Places and lengths are in inches, measured from the upper left corner of the page. Font sizes and line widths are in points, 72
to an inch. In any order of drawing, words lie above frames and frames above pictures. matplotlib is imported when the first
sheet is made.
"""

import os
import textwrap

import numpy as np
import PIL.Image

from mpclip.files import aside

DPI = 130  # pixels of an inch
INK, FAINT, HAIRLINE = "#1c1c1c", "#6b6b6b", "#cfcfcf"


class ContactSheet:
    """An empty white page of `width` x `height` inches."""

    def __init__(self, width: float, height: float):
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        self._axes = self._figure.add_axes((0, 0, 1, 1))  # one set of axes over the whole page, in inches
        self._axes.set(xlim=(0, width), ylim=(height, 0))
        self._axes.axis("off")

    def picture(self, image: PIL.Image.Image | np.ndarray, left: float, top: float, width: float, height: float) -> None:
        """Draw a picture, stretched to the given box.

        Args:
            image: a PIL image, which Pillow scales to the page's resolution; or an array (H, W, 3) of floats in 0..1, which
                matplotlib scales.
            left, top, width, height: the box, in inches.
        """
        pixels, interpolation = image, "lanczos"
        if isinstance(image, PIL.Image.Image):
            size = max(1, round(width * DPI)), max(1, round(height * DPI))
            pixels, interpolation = image.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS), None  # already scaled
        extent = (left, left + width, top + height, top)
        self._axes.imshow(np.asarray(pixels), extent=extent, aspect="auto", interpolation=interpolation)

    def frame(
        self, left: float, top: float, width: float, height: float, color: str = HAIRLINE, line: float = 0.6, gap: float = 0
    ) -> None:
        """Draw a rectangle around a box.

        Args:
            left, top, width, height: the box, in inches.
            color: any colour of matplotlib's.
            line: width of the line in points. The default is a hairline, which shows where a white picture ends.
            gap: inches from the box to the middle of the line.
        """
        from matplotlib.patches import Rectangle

        corner, size = (left - gap, top - gap), (width + 2 * gap, height + 2 * gap)
        self._axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=line))

    def text(
        self,
        words: str,
        x: float,
        y: float,
        size: float,
        color: str = INK,
        ha: str = "left",
        va: str = "top",
        weight: str = "normal",
        linespacing: float | None = None,
    ) -> None:
        """Write words, one line or several. A dollar sign is a dollar sign.

        Args:
            words: the text, with its line breaks.
            x, y: a point, in inches.
            size: of the font, in points.
            color: any colour of matplotlib's.
            ha: which side of the text is at x: "left", "center" or "right".
            va: which side of the text is at y: "top", "center" or "bottom".
            weight: "normal" or "bold".
            linespacing: distance of lines in font heights; None for the font's own.
        """
        style = {"size": size, "color": color, "ha": ha, "va": va, "weight": weight, "linespacing": linespacing}
        self._axes.text(x, y, words, parse_math=False, **style)

    def save(self, path: str | os.PathLike) -> None:
        """Write the page as a PNG, whole or not at all; its folder is made."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        with aside(path) as written:
            FigureCanvasAgg(self._figure).print_png(str(written))


def wrap(text: str, characters: int, max_lines: int | None = None) -> list[str]:
    """Lines of at most `characters`; " ..." ends the last one where `max_lines` are not enough. [] for an empty text."""
    return textwrap.wrap(text, width=characters, max_lines=max_lines, placeholder=" ...")
