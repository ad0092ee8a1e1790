"""Write the tables of docs/cost.md and docs/embedding_many.md from docs/cost/*.json.

    python -m benchmarks.flops --json docs/cost/flops.json
    python -m benchmarks.cost_page

The table of a measurement NAME replaces what stands between the marks `<!-- NAME -->` and `<!-- /NAME -->` of the page.
"""

import re
from pathlib import Path

from benchmarks import branches, cache_formats, flops, guards, large_index, serving, speed
from benchmarks.record import command_parser
from mpclip.command import start
from mpclip.files import read_json, write_text

PAGE = Path(__file__).parent.parent / "docs" / "cost.md"
# Measurement -> what makes Markdown of its JSON.
TABLES = {
    "flops": lambda result: f"{flops.table(result)}\n\n{flops.tree_sentence(result)}\n\n{flops.setting_sentence(result)}",
    "speed": lambda result: f"{speed.table(result)}\n\n{speed.sentences(result)}",
    "branches": lambda result: f"{branches.table(result)}\n\n{branches.sentence(result)}",
    "cache_formats": cache_formats.table,
    "serving": serving.table,
    "guards": guards.table,
}
MANY_PAGE = PAGE.with_name("embedding_many.md")
MANY_TABLES = {"large_index": large_index.table}


def section(name: str, tables: dict = TABLES | MANY_TABLES) -> str:
    """The table of a measurement and how it was measured; without a JSON file, the command that measures it.

    Args:
        name: a key of `tables`.
        tables: measurement -> what makes Markdown of its JSON.
    """
    result = read_json(PAGE.parent / "cost" / f"{name}.json")
    if not result:
        return f"Not measured yet: `python -m benchmarks.{name} --json docs/cost/{name}.json`"
    return f"{tables[name](result)}\n\n<sub>{how_measured(result)}</sub>"


def how_measured(result: dict) -> str:
    """Command, date and machine of a result; of each of them, where its parts were measured at several times (`records`)."""
    records = {record["command"]: record for record in result.get("records", {"all": result}).values()}
    told = []
    for command, record in records.items():
        machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
        told.append(f"`{command}`, {record['date'][:10]}, {machine}")
    return "<br>".join(told)


def filled(page: str, tables: dict = TABLES) -> str:
    """The page with the tables of the JSON files as they are now.

    Args:
        page: the text of docs/cost.md, or of the page of `tables`.
        tables: its measurements, such as `TABLES`.

    Raises:
        ValueError: the page lacks the marks of a measurement.
    """
    for name in tables:
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"the page has no place for {name}: it lacks {marks[0]} and {marks[1]}. Put them back.")
        text = f"{marks[0]}\n{section(name, tables)}\n{marks[1]}"
        page = pattern.sub(lambda _, text=text: text, page)
    return page


def main(argv: list[str] | None = None) -> None:
    """The command."""
    command_parser("benchmarks.cost_page", __doc__).parse_args(argv)
    for page, tables in ((PAGE, TABLES), (MANY_PAGE, MANY_TABLES)):
        write_text(page, filled(page.read_text(encoding="utf-8"), tables))
        print(f"written: {page}")


if __name__ == "__main__":
    start(main)
