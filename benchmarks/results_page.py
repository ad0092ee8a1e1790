"""Write docs/results.md and docs/results/*.md. Every number in them comes from docs/results/*.json.

    python -m benchmarks.results_page
    python -m benchmarks.results_page --results docs/results

The text of a page is docs/results/findings/NAME.md. Its title is a question, and its first paragraph is the answer. The text
index.md becomes docs/results.md. Numbers, tables and plots are placeholders in the text:

    {mean RESULT SYSTEM METRIC [SPLIT]}                   mean over seeds
    {difference RESULT SYSTEM BASELINE [SPLIT] [METRIC]}  paired difference with its 95% interval
    {seconds RESULT SYSTEM}                               median seconds of a run
    {value RESULT KEY ...}                                a number in the JSON, or a change with its interval
    {systems RESULT [SYSTEM ...] [split=SPLIT] [baselines=A,B] [paper=yes]}
                                                          table of systems with their metrics and differences
    {paper RESULT}                                        table of the paper's comparisons beside ours
    {first_prompts RESULT [SYSTEM ...]}                   table of recalls with the first prompts alone
    {training RESULT [SYSTEM ...]}                        table of the seconds of a run
    {recalls RESULT[.PART] ...}                           table of the recalls of single models
    {mistakes RESULT[.PART] ...}                          table of wrong first pictures by difference
    {weights RESULT}                                      table of segment weights
    {expansions RESULT}                                   table of expanded queries
    {solutions RESULT}                                    table of solutions in closed form, from the most photos
    {photos RESULT [WHAT]}                                their mean recall over the number of photos, or of WHAT
    {plot RESULT}                                         the plot beside the JSON file
    {answers PAGE ...}                                    in index.md: the answers of all pages
    {measurements}                                        in index.md: the list of JSON files

RESULT is the name of a JSON file, and PART a key in it. The default SPLIT is "all", the mean over splits, or the only split.
"""

import re
import shlex
from pathlib import Path

from benchmarks.placeholders import PLACES, fill_in, results_in
from benchmarks.record import command_parser
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import read_json, write_text

NOTE = "<!-- Written by `python -m benchmarks.results_page` from {source} and the JSON files. Change those, not this page. -->"
COMMAND_WIDTH = 110  # characters of a line of a command


def parts(text: str) -> tuple[str, str, str]:
    """Split the text of a page.

    Returns:
        Title, answer (the first paragraph), and the rest.

    Raises:
        ValueError: the text does not begin with a title and a paragraph.
    """
    found = re.match(r"# (?P<title>.+)\n\n(?P<answer>\S(?:.|\n(?!\n))*)\n\n(?P<rest>(?:.|\n)*)", text)
    if not found:
        raise ValueError(f"A page begins with '# QUESTION' and a paragraph that answers it, not with {text[:60]!r}.")
    return found["title"], found["answer"], found["rest"]


def question_page(source: str, text: str, results: dict[str, dict]) -> str:
    """A page of docs/results: question, answer, tables, and how the numbers were measured.

    Args:
        source: path of the text, for the note at the top.
        text: the text with its placeholders.
        results: name -> JSON of a measurement.
    """
    names = results_in(text, results)
    title, answer, rest = parts(fill_in(text, results))
    links = ", ".join(f"[{name}]({name}.json)" for name in names)
    where = f"[All results](../results.md). [Terms and names](../results.md#how-to-read-the-numbers). Measured: {links}."
    origins = [origin(name, results[name]) for name in names]
    head = [NOTE.format(source=source), f"# {title}", answer, where, rest.strip()]
    note = (
        "A command that names a recipe which is no longer in configs/search is the command as it was typed. What such a "
        "system changes in its setting is in the JSON file, under `overrides`."
    )
    return "\n\n".join([*head, "## Data, commands and machine", note, *origins]) + "\n"


def origin(name: str, result: dict) -> str:
    """The section of a page on one result: data, setting, machine and commands."""
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
    """A command over several lines that a shell takes as one; no line breaks between an option and its first value."""
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
        source: path of the text, for the note at the top.
        text: the text with its placeholders.
        questions: name -> text of every other page, with its placeholders.
        results: name -> JSON of a measurement.
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
    """All pages of a folder of measurements.

    Args:
        folder: docs/results, with JSON files and findings/*.md.

    Returns:
        Path -> text.

    Raises:
        SystemExit: the folder has no measurement, or a page asks for one that it lacks.
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
    """The command.

    Args:
        arguments: words of the command line; None takes those of the process.
    """
    parser = command_parser("benchmarks.results_page", __doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results"), help="folder of JSON files and findings (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    for file, text in pages(options.results).items():
        write_text(file, text)
        print(f"written: {file}")


if __name__ == "__main__":
    start(main)
