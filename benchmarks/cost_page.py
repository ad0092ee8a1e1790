"""Put the measurements of docs/cost/*.json into docs/cost.md, between its `<!-- name -->` marks.

python -m benchmarks.cost_page
"""

import json
import re
from pathlib import Path

from benchmarks import cache_formats, flops, serving, speed

PAGE = Path(__file__).parent.parent / "docs" / "cost.md"
TABLES = {
    "flops": lambda result: f"{flops.table(result)}\n\n{flops.tree_sentence(result)}\n\n{flops.setting_sentence(result)}",
    "speed": lambda result: f"{speed.table(result)}\n\n{speed.sentences(result)}",
    "cache_formats": cache_formats.table,
    "serving": serving.table,
}


def section(name: str) -> str:
    """Table and origin of one measurement, or a line that says it is not there."""
    file = PAGE.parent / "cost" / f"{name}.json"
    if not file.exists():
        return f"Not measured yet: `python -m benchmarks.{name} --json docs/cost/{name}.json`"
    result = json.loads(file.read_text())
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return f"{TABLES[name](result)}\n\n<sub>`{result['command']}`, {result['date'][:10]}, {machine}</sub>"


def filled(page: str) -> str:
    """The page with every section made anew."""
    for name in TABLES:
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"{PAGE.name} has no place for {name}: it lacks {marks[0]} and {marks[1]}.")
        text = f"{marks[0]}\n{section(name)}\n{marks[1]}"
        page = pattern.sub(lambda _, text=text: text, page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    print(f"written: {PAGE}")
