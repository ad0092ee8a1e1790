"""The placeholders of the texts in docs/results/findings: numbers, tables and plots of docs/results/*.json.

`python -m benchmarks.results_page --help` lists them.
"""

import re

from benchmarks import results_tables as tables

PLACE = re.compile(r"\{(\w+)((?:\s+[^\s{}]+)*)\}")  # {WORD WORD ...}


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
    """Make a placeholder of a table of a result's systems: all of them, or those that the placeholder names."""
    return lambda results, name, *systems: table(results[name], tables.whole_split(results[name]), list(systems) or None)


def _by_model(table):
    """Make a placeholder of a table of single models, each of them a result or RESULT.PART."""

    def place(results: dict, *paths: str) -> str:
        models = {}
        for path in paths:
            name, _, part = path.partition(".")
            models[tables.words(part or name)] = results[name][part] if part else results[name]
        return table(models)

    return place


def _plot(results: dict, name: str) -> str:
    if "tasks" in results[name]:
        shown = "The metric on validation over the weight of each segment"
    else:
        shown = f"Every seed on {results[name]['reported']}, and the differences to the first two baselines"
    return f"![{shown}.]({name}.png)"


# First word of a placeholder -> the function that writes its text, called with all results and the other words.
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
    "solutions": lambda results, name: tables.solutions_table(results[name]["solutions"]),
    "photos": lambda results, name, *what: tables.photos_table(results[name]["solutions"], *what),
    "plot": _plot,
}


def fill_in(text: str, results: dict[str, dict], places: dict = PLACES) -> str:
    """Replace the placeholders of a text.

    Args:
        text: Markdown with placeholders.
        results: name -> JSON of a measurement.
        places: first word of a placeholder -> the function that writes its text.

    Raises:
        SystemExit: a placeholder asks for something that was not measured, or begins with no word of `places`.
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
                f"The findings ask for {place[0]}, which was not measured ({error!r}): expected one of {', '.join(results)}."
            ) from error

    return PLACE.sub(measured, text)


def results_in(text: str, results: dict[str, dict]) -> list[str]:
    """Names of the results that the placeholders of a text use, in the order of their first use."""
    words = (word.partition(".")[0] for place in PLACE.finditer(text) for word in place[2].split())
    return list(dict.fromkeys(word for word in words if word in results))
