"""Tables for the terminal, for pages and for model cards."""

import math
import shutil
from collections.abc import Iterable, Sequence


def markdown_table(head: list[str], rows: list[list]) -> str:
    """A table in Markdown.

    Args:
        head: titles of the columns.
        rows: cells of each row. A float is shown with two decimals, None as a dash.
    """
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """A table for the terminal: columns with two spaces between them.

    Args:
        head: titles of the columns.
        rows: cells of each row. The first cell is its name.
        width: characters of a line. Default: those of the terminal. Columns that do not fit follow below, with the names of the
            rows again.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    lines = [list(head), *map(list, rows)]
    sizes = [max(len(line[column]) for line in lines) for column in range(len(head))]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(head)):
        used = sizes[0] + sum(2 + sizes[other] for other in blocks[-1])
        if blocks[-1] and used + 2 + sizes[column] > width:
            blocks.append([])
        blocks[-1].append(column)
    shown = [
        "\n".join("  ".join(line[column].ljust(sizes[column]) for column in (0, *block)).rstrip() for line in lines)
        for block in blocks
    ]
    return "\n\n".join(shown)


def decimals_of(values: Iterable[float]) -> int:
    """Decimals for the values of one metric: one for percents and ranks, three if all are small, as correlations are."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    return 3 if finite and 0 < max(finite) < 1 else 1


def with_interval(
    value: float, interval: Sequence[float] | None, decimals: int = 1, signed: bool = False, width: int = 0
) -> str:
    """A value and its interval, such as "45.0 (42.1 to 48.0)".

    Args:
        value: nan is shown as "undefined".
        interval: [low, high]; None or nan for none.
        decimals: of all three numbers.
        signed: a plus before positive numbers, for differences.
        width: characters of the value at least.
    """
    if math.isnan(value):
        return f"{'undefined':>{width}}"
    form = f"{'+' if signed else ''}.{decimals}f"
    shown = f"{value:>{width}{form}}" if not signed else f"{format(value, form):>{width}}"
    if interval is None or any(math.isnan(end) for end in interval):
        return shown
    return f"{shown} ({interval[0]:{form}} to {interval[1]:{form}})"
