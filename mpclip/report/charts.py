"""Charts as SVG. Colours are classes of the page's style, so that they follow its light and its dark form.

A chart is about as wide as a phone's page; on a larger screen it is enlarged. Its description is what a screen reader says.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH = 360
ROW = 22  # height of a row of a chart
LETTER = 6.1  # mean width of a letter of the labels
Row = tuple[str, float | None, Sequence[float] | None]  # name, value, [low, high]


def intervals(rows: Sequence[Row], said: str, reference: float | None = None) -> Markup:
    """A dot for each value in percent, with its 95% interval, and the value in words on the right.

    Args:
        rows: name, value and [low, high] of each. Without a value, the name is a heading.
        said: the description.
        reference: a value that a line is drawn at.
    """
    left, right = _label_width([name for name, *_ in rows]), WIDTH - 44
    values = [end for _, value, interval in rows if value is not None for end in (value, *(interval or ()))]
    low, high = _range(values)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts: list[str] = []
    bottom = ROW * len(rows)
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" y1="0" x2="{x(tick):.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="faint" x="{x(tick):.1f}" y="{bottom + 13}" text-anchor="middle">{tick:g}</text>')
    if reference is not None:
        parts.append(f'<line class="reference" x1="{x(reference):.1f}" y1="0" x2="{x(reference):.1f}" y2="{bottom}"/>')
    for row, (name, value, interval) in enumerate(rows):
        middle = ROW * (row + 0.5)
        if value is None:
            parts.append(f'<text class="head" x="0" y="{middle + 6}">{escape(_short(name))}</text>')
            continue
        parts.append(f'<text x="0" y="{middle + 4}">{escape(_short(name))}</text>')
        if interval is not None:
            ends = f'x1="{x(interval[0]):.1f}" y1="{middle}" x2="{x(interval[1]):.1f}" y2="{middle}"'
            parts.append(f'<line class="spread" {ends}/>')
        parts.append(f'<circle class="mark" cx="{x(value):.1f}" cy="{middle}" r="4"/>')
        parts.append(f'<text x="{WIDTH}" y="{middle + 4}" text-anchor="end">{value:.1f}</text>')
    return _svg(WIDTH, bottom + 18, parts, said)


def matrix(values: Sequence[Sequence[float]], said: str) -> Markup:
    """A square of K x K numbers in -1..1, rows and columns numbered from 1; colour is stronger farther from 0."""
    K = len(values)
    edge, size = 20, (WIDTH - 20) / max(K, 4)
    height = min(size, 40)
    parts = []
    for i, row in enumerate(values):
        parts.append(
            f'<text class="faint" x="{edge - 6}" y="{edge + (i + 0.5) * height + 4:.1f}" text-anchor="end">{i + 1}</text>'
        )
        parts.append(
            f'<text class="faint" x="{edge + (i + 0.5) * size:.1f}" y="{edge - 6}" text-anchor="middle">{i + 1}</text>'
        )
        for j, value in enumerate(row):
            known = math.isfinite(value)
            kind, strength = ("bar" if value >= 0 else "against"), 0.55 * min(1.0, abs(value)) if known else 0.0
            left, top = edge + j * size, edge + i * height
            box = f'x="{left + 1:.1f}" y="{top + 1:.1f}" width="{size - 2:.1f}" height="{height - 2:.1f}"'
            parts.append(f'<rect class="{kind}" {box} rx="3" fill-opacity="{strength:.2f}"/>')
            if K <= 10:  # the numbers of more would not be legible
                shown = _hundredths(value).replace("0.", ".") if known else "–"
                middle = f'x="{left + size / 2:.1f}" y="{top + height / 2 + 4:.1f}"'
                parts.append(f'<text {middle} text-anchor="middle">{shown}</text>')
    return _svg(edge + K * size, edge + K * height, parts, said)


def pairs_of_bars(names: Sequence[str], wanted: Sequence[float], found: Sequence[float], said: str) -> Markup:
    """Two bars for each name, from 0: the upper one for the wanted picture, the lower one for the found one."""
    left, right = _label_width(names), WIDTH - 40
    low, high = min(0.0, *wanted, *found), max(0.0, *wanted, *found)
    scale = (right - left) / ((high - low) or 1.0)
    zero, parts = left - low * scale, []
    for row, (name, of_wanted, of_found) in enumerate(zip(names, wanted, found, strict=True)):
        top = row * (ROW + 2)
        parts.append(f'<text x="0" y="{top + 15}">{escape(_short(name))}</text>')
        for offset, kind, value in ((2, "bar", of_wanted), (11, "against", of_found)):
            start, width = zero + min(0.0, value) * scale, abs(value) * scale
            parts.append(f'<rect class="{kind}" x="{start:.1f}" y="{top + offset}" width="{width:.1f}" height="8" rx="1.5"/>')
        change = of_found - of_wanted
        kind = "strong" if change > 0 else "faint"
        parts.append(f'<text class="{kind}" x="{WIDTH}" y="{top + 15}" text-anchor="end">{_hundredths(change, "+")}</text>')
    bottom = len(names) * (ROW + 2)
    parts.append(f'<line class="axis" x1="{zero:.1f}" y1="0" x2="{zero:.1f}" y2="{bottom}"/>')
    return _svg(WIDTH, bottom, parts, said)


def curve(xs: Sequence[float], ys: Sequence[float], limits: tuple[float, float], said: str) -> Markup:
    """A small line of a metric over a weight; a vertical line stands at weight 1.

    Args:
        xs: the weights, ascending.
        ys: the metric at each.
        limits: lowest and highest value of the axis, the same for all lines that are compared.
        said: the description.
    """
    width, height, left, bottom = 170, 96, 30, 80
    low, high = limits

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + 4 + (x - xs[0]) / ((xs[-1] - xs[0]) or 1.0) * (width - left - 10)
        return across, bottom - 4 - (y - low) / ((high - low) or 1.0) * (bottom - 12)

    one = at(1.0, low)[0]
    parts = [f'<line class="axis" x1="{left}" y1="{bottom}" x2="{width}" y2="{bottom}"/>']
    parts.append(f'<line class="reference" x1="{one:.1f}" y1="4" x2="{one:.1f}" y2="{bottom}"/>')
    for value in (low, high):
        parts.append(
            f'<text class="faint" x="{left - 4}" y="{at(xs[0], value)[1] + 4:.1f}" text-anchor="end">{value:.0f}</text>'
        )
    for x in (xs[0], 1.0, xs[-1]):
        parts.append(f'<text class="faint" x="{at(x, low)[0]:.1f}" y="{bottom + 13}" text-anchor="middle">{x:g}</text>')
    points = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in zip(xs, ys, strict=True))
    parts.append(f'<polyline class="line" points="{points}"/>')
    best = max(range(len(ys)), key=lambda i: (ys[i], -abs(xs[i] - 1)))
    parts.append('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="3.2"/>'.format(*at(xs[best], ys[best])))
    return _svg(width, height, parts, said)


def _svg(width: float, height: float, parts: Sequence[str], said: str) -> Markup:
    described = escape(said)
    return Markup(  # the parts are made of numbers and of escaped names
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{described}"><title>{described}</title>'
        + "".join(parts)
        + "</svg>"
    )


def _hundredths(value: float, sign: str = "") -> str:
    """With two decimals, and no minus before 0.00."""
    return f"{round(value, 2) + 0.0:{sign}.2f}"


def _label_width(names: Sequence[str]) -> float:
    return min(144.0, 12 + LETTER * max(map(len, map(_short, names)), default=0))


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of percents: tens around the values."""
    low, high = 10 * math.floor(min(values) / 10), 10 * math.ceil(max(values) / 10)
    return float(low), float(high if high > low else low + 10)


def _ticks(low: float, high: float) -> list[float]:
    step = next(step for step in (2, 5, 10, 20, 50, 100) if (high - low) / step <= 6)
    first = math.ceil(low / step)
    return [step * n for n in range(first, math.floor(high / step) + 1)]
