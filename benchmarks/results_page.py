"""Write docs/results.md and docs/results/*.md: what was found, with every number taken from docs/results/*.json.

    python -m benchmarks.results_page

The text of a page is docs/results/findings/NAME.md: its title is a question, its first paragraph the answer. index.md
becomes docs/results.md. Where a page shows a number, a table or a plot, its text has a place:

    {mean RESULT SYSTEM METRIC [SPLIT]}                 mean over seeds
    {difference RESULT SYSTEM BASELINE [SPLIT] [METRIC]}  paired difference with its 95% interval
    {seconds RESULT SYSTEM}                             median seconds of a run
    {value RESULT KEY ...}                              a number of the JSON, or a change with its interval
    {systems RESULT [SYSTEM ...] [split=SPLIT] [baselines=A,B] [paper=yes]}
    {paper RESULT} {first_prompts RESULT [SYSTEM ...]} {training RESULT [SYSTEM ...]}
    {recalls RESULT[.PART] ...} {mistakes RESULT[.PART] ...} {weights RESULT} {expansions RESULT} {plot RESULT}

RESULT is the name of a JSON file. SPLIT is "all", the mean over splits, unless it is given; of a result with one split it is
that one. The answers of all pages and the list of measurements are the index's places {answers PAGE ...} and {measurements}.
"""

import argparse
import re
import shlex
from pathlib import Path

from benchmarks import results_tables as tables
from eval.tables import markdown_table
from mpclip.files import read_json, write_text

PLACE = re.compile(r"\{(\w+)((?:\s+[^\s{}]+)*)\}")
NOTE = "<!-- Written by `python -m benchmarks.results_page` from {source} and the JSON files. Change those, not this page. -->"
COMMAND_WIDTH = 110


# Numbers --------------------------------------------------------------------------------------------------------------


def _mean(results: dict, name: str, system: str, metric: str, split: str | None = None) -> str:
    (row,) = tables.rows_of(results[name], split or tables.whole_split(results[name]), [system])
    return f"{row['mean'][metric]:.1f}"


def _difference(results: dict, name: str, system: str, baseline: str, *further: str) -> str:
    metric = next((word for word in further if word in tables.METRIC_NAMES), None)
    split = next((word for word in further if word != metric), tables.whole_split(results[name]))
    found = tables.difference(results[name], system, baseline, split, metric)
    if found is None:
        raise KeyError(system, baseline, split)
    return found


def _seconds(results: dict, name: str, system: str) -> str:
    return f"{tables.seconds_of(results[name], system):,.0f}"


def _value(results: dict, name: str, *keys: str) -> str:
    value = results[name]
    for key in keys:
        value = value[key]
    return tables.change(value["mean"], value["interval_95"]) if isinstance(value, dict) else f"{value:.1f}"


# Tables and plots -----------------------------------------------------------------------------------------------------


def _systems(results: dict, name: str, *systems: str, split: str = "", baselines: str = "", paper: str = "no") -> str:
    asked = baselines.split(",") if baselines else []
    split = split or tables.whole_split(results[name])
    return tables.systems_table(results[name], split, list(systems) or None, asked, paper == "yes")


def _by_system(table):
    """A place for a table of a result's systems: all of them, or those that are named."""
    return lambda results, name, *systems: table(results[name], tables.whole_split(results[name]), list(systems) or None)


def _by_model(table):
    """A place for a table of models: each is a result, or a part of one as RESULT.PART."""

    def place(results: dict, *paths: str) -> str:
        models = {}
        for path in paths:
            name, _, part = path.partition(".")
            models[tables.words(part or name)] = results[name][part] if part else results[name]
        return table(models)

    return place


def _plot(results: dict, name: str) -> str:
    if "tasks" in results[name]:
        told = "The metric on validation over the weight of each segment"
    else:
        told = f"Every seed on {results[name]['reported']}, and the differences to the first two baselines"
    return f"![{told}.]({name}.png)"


PLACES = {
    "mean": _mean,
    "difference": _difference,
    "seconds": _seconds,
    "value": _value,
    "systems": _systems,
    "paper": lambda results, name: tables.paper_table(results[name], tables.whole_split(results[name])),
    "first_prompts": _by_system(tables.first_prompts_table),
    "training": _by_system(tables.seconds_table),
    "recalls": _by_model(tables.recalls_table),
    "mistakes": _by_model(tables.mistakes_table),
    "weights": lambda results, name: tables.weights_table(results[name]["tasks"]),
    "expansions": lambda results, name: tables.expansion_table(results[name]["models"]),
    "plot": _plot,
}


def fill_in(text: str, results: dict[str, dict], places: dict = PLACES) -> str:
    """Put numbers, tables and plots in the places that a text leaves for them.

    Args:
        results: name -> JSON of a measurement.
        places: kind -> what writes it, called with the results and the words of the place.

    Raises:
        SystemExit: a place asks for what was not measured, or is of no known kind.
    """

    def measured(place: re.Match) -> str:
        kind, words = place[1], place[2].split()
        if kind not in places:
            if not words:
                return place[0]  # prose, such as [APT-{i}]
            raise SystemExit(f"{place[0]} is no place of a page: expected one of {', '.join(places)}.")
        options = dict(word.split("=", 1) for word in words if "=" in word)
        try:
            return places[kind](results, *(word for word in words if "=" not in word), **options)
        except (KeyError, TypeError, ValueError) as error:
            raise SystemExit(
                f"The findings tell of {place[0]}, which was not measured ({error!r}): expected one of {', '.join(results)}."
            ) from error

    return PLACE.sub(measured, text)


def results_in(text: str, results: dict[str, dict]) -> list[str]:
    """Names of the results that the places of a text use, in their order."""
    words = (word.partition(".")[0] for place in PLACE.finditer(text) for word in place[2].split())
    return list(dict.fromkeys(word for word in words if word in results))


# Pages ----------------------------------------------------------------------------------------------------------------


def parts(text: str) -> tuple[str, str, str]:
    """Title, answer and the rest of a page.

    Raises:
        ValueError: the text does not begin with a title and a paragraph.
    """
    found = re.match(r"# (?P<title>.+)\n\n(?P<answer>\S(?:.|\n(?!\n))*)\n\n(?P<rest>(?:.|\n)*)", text)
    if not found:
        raise ValueError(f"A page begins with '# QUESTION' and a paragraph that answers it, not with {text[:60]!r}.")
    return found["title"], found["answer"], found["rest"]


def question_page(source: str, text: str, results: dict[str, dict]) -> str:
    """A page by question: the answer, its tables, and where the numbers come from."""
    names = results_in(text, results)
    title, answer, rest = parts(fill_in(text, results))
    links = ", ".join(f"[{name}]({name}.json)" for name in names)
    where = f"[All results](../results.md). [Terms and names](../results.md#how-to-read-the-numbers). Measured: {links}."
    origins = [origin(name, results[name]) for name in names]
    head = [NOTE.format(source=source), f"# {title}", answer, where, rest.strip()]
    told = (
        "A command that names a recipe which is no longer in configs/search is the command as it was typed. What such a "
        "system changes in its setting is in the JSON file, under `overrides`."
    )
    return "\n\n".join([*head, "## Data, commands and machine", told, *origins]) + "\n"


def origin(name: str, result: dict) -> str:
    """What the numbers of a result belong to, and what it takes to repeat them."""
    commands = result.get("commands", [result["command"]])
    splits = ", ".join(f"`{split}`" for split in splits_of(result))
    data = ", ".join(dict.fromkeys(row["data"] for row in result["rows"])) if "rows" in result else result.get("data")
    facts = {
        "data": data,
        "images": result.get("images") or result.get("scenes"),
        "captions": result.get("captions"),
        "splits" if "," in splits else "split": splits,
        "setting": result.get("setting"),
        "model": result.get("model"),
        "seconds": result.get("seconds"),
        "date": result["date"][:10],
        "machine": ", ".join(f"{key} {value}" for key, value in result["machine"].items()),
    }
    lines = [f"### {name}", "", f"[{name}.json]({name}.json). {about(result)}", ""]
    lines += [f"* {key}: {value}" for key, value in facts.items() if value]
    count = f"{len(commands)} commands" if len(commands) > 1 else "Command"
    lines += ["", f"<details><summary>{count}</summary>", "", "```", *map(wrapped, commands), "```", "", "</details>"]
    return "\n".join(lines)


def splits_of(result: dict) -> list[str]:
    """The splits that a result was measured on."""
    if "rows" in result:
        return list(dict.fromkeys(row["split"] for row in result["rows"]))
    return result.get("splits") or ([result["split"]] if result.get("split") else [])


def about(result: dict) -> str:
    """A sentence on what was measured."""
    if "about" in result:
        return result["about"]
    if "tasks" in result:
        return f"Weights of the segments of {result['model']}: chosen on the first split, reported on the second."
    if "expansions" in result:
        return f"Captions that {result['writer']} expands at test time."
    return f"Recall of {result['model']}" + (f" with {result['quantize']} weights." if result["quantize"] else ".")


def wrapped(command: str) -> str:
    """A command over several lines, as a shell takes it; an option is on the line of its first value."""
    words = [shlex.quote(word) for word in shlex.split(command)]
    lines = [words[0]]
    for word, following in zip(words[1:], [*words[2:], ""], strict=True):
        together = f"{word} {following}" if word.startswith("--") else word
        if len(lines[-1]) + 1 + len(together) > COMMAND_WIDTH:
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def index_page(source: str, text: str, questions: dict[str, str], results: dict[str, dict]) -> str:
    """docs/results.md: the answers of all pages and the list of measurements.

    Args:
        questions: name -> text of each page by question, with its places.
    """

    def answers(results: dict, *names: str) -> str:
        if set(names) != set(questions):
            raise KeyError(*(set(names) ^ set(questions)))
        filled = {name: parts(fill_in(questions[name], results)) for name in names}
        lines = (f"* **[{title}](results/{name}.md)** {answer}" for name, (title, answer, _) in filled.items())
        return "\n".join(" ".join(line.split()) for line in lines)

    def measurements(results: dict) -> str:
        used = {name: results_in(text, results) for name, text in questions.items()}
        rows = []
        for name, result in results.items():
            pages = ", ".join(f"[{page}](results/{page}.md)" for page, names in used.items() if name in names)
            rows.append([f"[{name}](results/{name}.json)", about(result), pages, result["date"][:10]])
        return markdown_table(["measurement", "what it is", "shown on", "date"], rows)

    places = PLACES | {"answers": answers, "measurements": measurements}
    return NOTE.format(source=source) + "\n\n" + fill_in(text, results, places)


def pages(folder: Path) -> dict[Path, str]:
    """Path -> text of every page that is made of a folder of JSON files, docs/results.

    Raises:
        SystemExit: there is no measurement, or a page tells of one that is not there.
    """
    results = {file.stem: read_json(file) for file in sorted(folder.glob("*.json"))}
    if not results:
        raise SystemExit(f"No measurement in {folder}: python -m eval retrieval --json writes one.")
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted((folder / "findings").glob("*.md"))}
    index = texts.pop("index")
    source = f"docs/{folder.name}/findings"
    made = {folder / f"{name}.md": question_page(f"{source}/{name}.md", text, results) for name, text in texts.items()}
    return {folder.with_suffix(".md"): index_page(f"{source}/index.md", index, texts, results)} | made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results_page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of JSON files (%(default)s)")
    options = parser.parse_args(arguments)
    for file, text in pages(options.results).items():
        write_text(file, text)
        print(f"written: {file}")


if __name__ == "__main__":
    main()
