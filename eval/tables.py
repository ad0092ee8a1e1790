"""Markdown tables for pages, model cards and the terminal."""


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
