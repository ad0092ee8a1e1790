"""Write the tables of docs/evaluation/*.md from the results of `python -m eval`.

    python -m eval retrieval --model A B --data DATA --split test --json docs/results/evaluation/retrieval.DATA
    python -m benchmarks.evaluation_pages
    python -m benchmarks.evaluation_pages --check      # changes nothing; fails if a page is not what the results give

A folder docs/results/evaluation/TASK or TASK.DATA has a JSON file for each model, named for the model. On a page, what stands
between the lines `<!-- table: TASK -->` and `<!-- end of table -->` is replaced by a table for each folder of the task;
`<!-- table: TASK.DATA -->` takes that folder alone. First comes the model that the others were compared with.
"""

import re
from pathlib import Path

from benchmarks.record import command_parser
from eval.result import load_result
from eval.tables import decimals_of, markdown_table, with_interval
from mpclip.command import start
from mpclip.files import write_text

DOCS = Path(__file__).parent.parent / "docs"
PLACE = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def results_of(name: str, results: Path) -> dict[str, dict[str, dict]]:
    """The results of a task.

    Args:
        name: TASK or TASK.DATA, as in the mark of a page.
        results: the folder docs/results/evaluation.

    Returns:
        Name of a folder -> {name of a model: JSON}, the model that others are compared with first.

    Raises:
        ValueError: a file is no result of `python -m eval`.
    """
    folders = sorted(folder for pattern in (name, f"{name}.*") for folder in results.glob(pattern) if folder.is_dir())
    found = {}
    for folder in folders:
        models = {file.stem: load_result(file) for file in sorted(folder.glob("*.json"))}
        if models:
            found[folder.name] = dict(sorted(models.items(), key=lambda item: "against" in item[1]))
    return found


def table(models: dict[str, dict]) -> str:
    """A row for each metric and a column for each model, and how it was measured below.

    Args:
        models: name -> JSON, all of one task on the same data.
    """
    first = next(iter(models.values()))
    rows = []
    for metric in dict.fromkeys(name for result in models.values() for name in result["metrics"]):
        values = {name: result["metrics"].get(metric, float("nan")) for name, result in models.items()}
        decimals = decimals_of(values.values())
        cells = []
        for name, result in models.items():
            cell = with_interval(values[name], result["intervals"].get(metric), decimals)
            changed = result.get("against", {}).get("differences", {}).get(metric)
            if changed is not None and metric == result["primary"]:
                change = with_interval(changed, result["against"]["intervals"][metric], decimals, signed=True)
                cell += f"<br>difference: {change}"
            cells.append(cell)
        title = metric.replace("_", " ")
        rows.append([f"**{title}**" if metric == first["primary"] else title, *cells])
    return f"{markdown_table(['metric', *models], rows)}\n\n{record(models)}"


def record(models: dict[str, dict]) -> str:
    """Data, dtype, machine, date and command of a table, in small print."""
    first = next(iter(models.values()))
    facts = [f"`{first['data']}`, split `{first['split']}`"]
    facts += [f"the first {first['limit']} only"] if first.get("limit") else []
    facts += [f"left out: {count} {what}" for what, count in first.get("left_out", {}).items()]
    facts += _one_or_each(models, "dtype")
    facts += [", ".join(f"{key} {value}" for key, value in first["machine"].items())]
    facts += _one_or_each({name: {"date": result["date"][:10]} for name, result in models.items()}, "date")
    commands = dict.fromkeys(result["command"] for result in models.values() if result.get("command"))
    told = f"In brackets: 95% interval. Differences are paired. {'; '.join(facts)}."
    return f"<sub>{told} {' '.join(f'`{command}`' for command in commands)}</sub>"


def _one_or_each(models: dict[str, dict], key: str) -> list[str]:
    """A fact once if it is the same for all models, else with the name of each."""
    values = {name: result.get(key) for name, result in models.items()}
    if len(set(values.values())) == 1:
        return [str(next(iter(values.values())))]
    return [f"{name}: {value}" for name, value in values.items()]


def filled(page: str, results: Path) -> str:
    """A page with the tables of the results as they are now.

    Args:
        page: its text.
        results: the folder docs/results/evaluation.
    """

    def tables(place: re.Match) -> str:
        found = results_of(place["name"], results)
        parts = [(f"### {name}\n\n" if len(found) > 1 else "") + table(models) for name, models in found.items()]
        return place[1] + "".join(f"\n{part}\n" for part in parts) + ("\n" if parts else "") + place[3]

    return PLACE.sub(tables, page)


def main(argv: list[str] | None = None) -> None:
    """The command.

    Args:
        argv: words of the command line; None takes those of the process.

    Raises:
        SystemExit: with --check, a page is not what the results give; or a result cannot be read.
    """
    parser = command_parser("benchmarks.evaluation_pages", __doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder with evaluation/ and results/ (default: docs)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page would change")
    options = parser.parse_args(argv)
    stale = []
    for file in sorted((options.docs / "evaluation").glob("*.md")):
        old = file.read_text(encoding="utf-8")
        try:
            new = filled(old, options.docs / "results" / "evaluation")
        except (OSError, ValueError) as error:
            raise SystemExit(f"{file.name}: {error}") from error
        if options.check:
            stale += [file.name] if new != old else []
        elif new != old:
            write_text(file, new)
            print(f"written: {file}")
    if stale:
        raise SystemExit(f"{', '.join(stale)}: not what the results give. Run python -m benchmarks.evaluation_pages.")


if __name__ == "__main__":
    start(main)
