"""Put the measurements of docs/cost/*.json into docs/cost.md, between its `<!-- name -->` marks.

python -m benchmarks.cost_page
"""

import re
from pathlib import Path

from benchmarks import cache_formats, flops, guards, serving, speed
from mpclip.files import read_json, write_text

PAGE = Path(__file__).parent.parent / "docs" / "cost.md"
TABLES = {
    "flops": lambda result: f"{flops.table(result)}\n\n{flops.tree_sentence(result)}\n\n{flops.setting_sentence(result)}",
    "speed": lambda result: f"{speed.table(result)}\n\n{speed.sentences(result)}",
    "cache_formats": cache_formats.table,
    "serving": serving.table,
    "guards": guards.table,
}


def section(name: str) -> str:
    """Table and origin of one measurement, or a line that says it is not there."""
    result = read_json(PAGE.parent / "cost" / f"{name}.json")
    if not result:
        return f"Not measured yet: `python -m benchmarks.{name} --json docs/cost/{name}.json`"
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return f"{TABLES[name](result)}\n\n<sub>`{result['command']}`, {result['date'][:10]}, {machine}</sub>"


def filled(page: str) -> str:
    """The page with every section made anew.

    Raises:
        ValueError: the page lacks the marks of a section.
    """
    for name in TABLES:
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"{PAGE.name} has no place for {name}: it lacks {marks[0]} and {marks[1]}. Put them back.")
        text = f"{marks[0]}\n{section(name)}\n{marks[1]}"
        page = pattern.sub(lambda _, text=text: text, page)
    return page


if __name__ == "__main__":
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))
    print(f"written: {PAGE}")
