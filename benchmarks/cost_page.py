"""Write the tables of docs/cost.md from docs/cost/*.json.

    python -m benchmarks.flops --json docs/cost/flops.json
    python -m benchmarks.cost_page

The table of a measurement NAME replaces what stands between the marks `<!-- NAME -->` and `<!-- /NAME -->` of the page.
"""

import re
from pathlib import Path

from benchmarks import branches, cache_formats, flops, guards, serving, speed
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


def section(name: str) -> str:
    """The table of a measurement and how it was measured; without a JSON file, the command that measures it.

    Args:
        name: a key of `TABLES`.
    """
    result = read_json(PAGE.parent / "cost" / f"{name}.json")
    if not result:
        return f"Not measured yet: `python -m benchmarks.{name} --json docs/cost/{name}.json`"
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return f"{TABLES[name](result)}\n\n<sub>`{result['command']}`, {result['date'][:10]}, {machine}</sub>"


def filled(page: str) -> str:
    """The page with the tables of the JSON files as they are now.

    Args:
        page: the text of docs/cost.md.

    Raises:
        ValueError: the page lacks the marks of a measurement.
    """
    for name in TABLES:
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"{PAGE.name} has no place for {name}: it lacks {marks[0]} and {marks[1]}. Put them back.")
        text = f"{marks[0]}\n{section(name)}\n{marks[1]}"
        page = pattern.sub(lambda _, text=text: text, page)
    return page


def main(argv: list[str] | None = None) -> None:
    """The command."""
    command_parser("benchmarks.cost_page", __doc__).parse_args(argv)
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    start(main)
