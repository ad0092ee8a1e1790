"""Markdown tables, as pages, cards and terminals show them."""


def markdown_table(head: list[str], rows: list[list]) -> str:
    """A table in Markdown. Floats have two decimals, None is a dash."""
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)
