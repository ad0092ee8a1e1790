"""Markdown tables of the JSON files in docs/results, and the paper's figures beside them.

A `result` is the content of a JSON file. Those of several systems are written by `python -m benchmarks.ablation` or `.sts`,
those of one model by `python -m eval retrieval`. Every function whose name ends in `_table` returns Markdown.
"""

import statistics

from eval.tables import markdown_table
from eval.tasks.retrieval import recalls_of

METRIC_NAMES = {"mean_recall": "mean recall", "t2i_R@1": "T2I R@1", "i2t_R@1": "I2T R@1", "spearman": "Spearman"}
METRIC_NAMES |= {"words_R@1": 'R@1 of "X without Y"', "plain_R@1": 'R@1 of "X"', "exclude_R@1": "R@1 of X with exclude="}
METRIC_NAMES |= {"negated_R@1": 'T2I R@1 of "without ..."', "joined_mean_recall": "mean recall of joined captions"}
SOME_HAVE = ("negated_R@1", "joined_mean_recall", "plain_R@1", "words_R@1", "exclude_R@1")  # shown where they are
ALL = "all"  # name of the split that holds the mean over splits

# The paper's figures (arXiv 2508.02762) ------------------------------------------------------------------------------

# R@1 text-to-image and image-to-text on Flickr30k, zero-shot after training on LAION.
PAPER_RETRIEVAL = {
    "vanilla_clip": (43.7, 61.4),
    "mean_pooling": (43.4, 60.6),
    "mean_pooling_lora": (44.6, 63.1),
    "appended_tokens": (43.8, 63.4),
    "multi_prompt_both_one_query": (47.1, 66.0),
    "vanilla_clip_sigmoid": (60.0, 80.6),
    "multi_prompt_sigmoid": (64.2, 83.2),
}
# The paper has one pooling query for all prompts. Our variant with one per prompt is compared with the same figures.
PAPER_RETRIEVAL["multi_prompt_both"] = PAPER_RETRIEVAL["multi_prompt_both_one_query"]
# Spearman correlation on the test split of STS-B, Gemma-2B.
PAPER_STS = {"single_prompt": (87.2,), "multi_prompt": (88.9,)}
# The paper's comparisons: (system, baseline) -> difference of R@1 on Flickr30k, text-to-image and image-to-text.
PAPER_DIFFERENCES = {
    (system, baseline): tuple(
        round(ours - theirs, 1) for ours, theirs in zip(PAPER_RETRIEVAL[system], PAPER_RETRIEVAL[baseline], strict=True)
    )
    for system, baseline in (
        ("mean_pooling", "vanilla_clip"),
        ("mean_pooling_lora", "mean_pooling"),
        ("appended_tokens", "mean_pooling"),
        *(
            (system, baseline)
            for baseline in ("vanilla_clip", "mean_pooling", "mean_pooling_lora", "appended_tokens")
            for system in ("multi_prompt_both_one_query", "multi_prompt_both")
        ),
        ("multi_prompt_sigmoid", "vanilla_clip_sigmoid"),
    )
}
# Measured in the paper with LLaMA-3-8B and a batch of 4,096.
PAPER_DIFFERENCES |= {(system, "single_prompt"): (6.7, 5.5) for system in ("multi_prompt_both_one_query", "multi_prompt_both")}


# Cells of tables ------------------------------------------------------------------------------------------------------


def words(system: str) -> str:
    """A system's name with spaces for underscores."""
    return system.replace("_", " ")


def whole_split(result: dict) -> str:
    """ "all", the mean over splits, if the result has several splits; else the split that it reports."""
    return ALL if any(row["split"] == ALL for row in result["summary"]) else result["reported"]


def rows_of(result: dict, split: str, systems: list[str] | None = None) -> list[dict]:
    """Rows of the summary on a split.

    Args:
        result: of several systems.
        split: one of the result's, or "all".
        systems: the systems to return, in this order; None returns all.

    Raises:
        KeyError: one of `systems` was not measured on the split.
    """
    rows = {row["system"]: row for row in result["summary"] if row["split"] == split}
    return [rows[system] for system in (rows if systems is None else systems)]


def spread(row: dict, metric: str) -> str:
    """A mean over seeds with its standard deviation, as "50.2 ± 0.6"; for one seed, the value alone."""
    std = row["std"][metric]
    return f"{row['mean'][metric]:.1f}" + (f" ± {std:.1f}" if std is not None else "")


def comparison(result: dict, system: str, baseline: str, split: str, metric: str) -> dict | None:
    """The row of `comparisons` for a system, a baseline, a split and a metric; None if it was not measured."""
    wanted = {"system": system, "baseline": baseline, "split": split, "metric": metric}
    for row in result["comparisons"]:
        if all(row[name] == value for name, value in wanted.items()):
            return row
    return None


def difference(result: dict, system: str, baseline: str, split: str, metric: str | None = None) -> str | None:
    """A paired difference with its interval, as "+2.1 (+1.5 to +2.8)"; None if it was not measured.

    Args:
        result: of several systems.
        system, baseline: the difference is that of `system` minus `baseline`.
        split: one of the result's, or "all".
        metric: the metric to compare; None takes the first one of the result.
    """
    row = comparison(result, system, baseline, split, metric or result["metrics"][0])
    return None if row is None else change(row["mean_difference"], row["interval"])


def change(mean: float, interval: list[float] | None, decimals: int = 1) -> str:
    """A change with its sign, and its 95% interval if there is one, as "+2.1 (+1.5 to +2.8)"."""
    number = lambda value: f"{value:+.{decimals}f}"  # noqa: E731
    return number(mean) + (f" ({number(interval[0])} to {number(interval[1])})" if interval else "")


# Systems over several seeds -------------------------------------------------------------------------------------------


def systems_table(
    result: dict, split: str, systems: list[str] | None = None, baselines: list[str] | None = None, paper: bool = True
) -> str:
    """Systems with their metrics, and the differences of the first metric to each baseline.

    Args:
        result: of several systems.
        split: one of the result's, or "all".
        systems: the rows, in this order; None shows all.
        baselines: a column of differences for each, in this order; None shows all.
        paper: add columns of the paper's figures, if the paper has some of these systems.
    """
    summary = rows_of(result, split, systems)
    metrics = [*result["metrics"], *(name for name in SOME_HAVE if any(name in row["mean"] for row in summary))]
    if baselines is None:
        baselines = [name for name in result["baselines"] if any(row["system"] == name for row in summary)]
    theirs, paper_head = PAPER_RETRIEVAL, ["paper: T2I R@1", "paper: I2T R@1"]
    if metrics == ["spearman"]:
        theirs, paper_head = PAPER_STS, ["paper, test split"]
    if not paper or not any(row["system"] in theirs for row in summary):
        paper_head = []
    head = ["system", "seeds", *(METRIC_NAMES[metric] for metric in metrics)]
    head += [f"difference to {words(baseline)}" for baseline in baselines]
    rows = [
        [
            words(row["system"]),
            row["seeds"],
            *(spread(row, metric) for metric in metrics),
            *(difference(result, row["system"], baseline, split) for baseline in baselines),
            *(str(value) for value in theirs.get(row["system"], ["-"] * len(paper_head))[: len(paper_head)]),
        ]
        for row in summary
    ]
    return markdown_table([*head, *paper_head], rows)


def paper_table(result: dict, split: str) -> str:
    """The paper's comparisons beside ours, and whether ours have the same sign. Those we did not measure are left out."""
    head = ["comparison", "T2I R@1, paper", "T2I R@1, here", "I2T R@1, paper", "I2T R@1, here", "mean recall, here"]
    rows = []
    for (system, baseline), theirs in PAPER_DIFFERENCES.items():
        here = comparison(result, system, baseline, split, result["metrics"][0])
        if here is None:
            continue
        cells = [f"{words(system)} against {words(baseline)}"]
        for metric, value in zip(("t2i_R@1", "i2t_R@1"), theirs, strict=True):
            cells += [f"{value:+.1f}", difference(result, system, baseline, split, metric)]
        rows.append([*cells, difference(result, system, baseline, split), _verdict(here["interval"], sum(theirs))])
    return markdown_table([*head, "has the paper's sign"], rows)


def _verdict(interval: list[float] | None, theirs: float) -> str:
    """Whether an interval lies on the same side of 0 as the paper's difference; "not decided" if it contains 0."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "not decided"
    return "yes" if (interval[0] > 0) == (theirs > 0) else "no"


def first_prompts_table(result: dict, split: str, systems: list[str] | None = None) -> str:
    """Mean recall with the segments of the first m prompts alone, for every m up to K."""
    rows = [row for row in rows_of(result, split, systems) if "mean_recall_first_1" in row["mean"]]
    values = []
    for row in rows:
        own = sum("mean_recall_first_" in metric for metric in row["mean"])  # K - 1 of this system
        values.append([*(row["mean"][f"mean_recall_first_{m + 1}"] for m in range(own)), row["mean"]["mean_recall"]])
    K = max(map(len, values))
    cells = [[f"{value:.1f}" for value in of] + ["-"] * (K - len(of)) for of in values]
    head = ["mean recall of the first prompts alone", *map(str, range(1, K + 1))]
    return markdown_table(head, [[words(row["system"]), *of] for row, of in zip(rows, cells, strict=True)])


def seconds_of(result: dict, system: str) -> float:
    """Seconds of a run of a system, the median over seeds. A run that computed cached states includes their time."""
    rows = {row["seed"]: row["metrics"]["train_seconds"] for row in result["rows"] if row["system"] == system}
    return statistics.median(rows.values())


def seconds_table(result: dict, split: str, systems: list[str] | None = None) -> str:
    """Seconds of a run, the median over seeds, beside the first metric."""
    metric = result["metrics"][0]
    rows = [
        [words(row["system"]), row["seeds"], f"{seconds_of(result, row['system']):,.0f}", spread(row, metric)]
        for row in rows_of(result, split, systems)
    ]
    return markdown_table(["system", "seeds", "seconds of a run", METRIC_NAMES[metric]], rows)


# One model ------------------------------------------------------------------------------------------------------------


def recalls_table(models: dict[str, dict]) -> str:
    """Recalls in both directions, with half of their 95% intervals.

    Args:
        models: name in the table -> result of one model.
    """
    rows = []
    for name, measured in models.items():
        cells, (recalls, intervals) = [], recalls_of(measured)
        for way in recalls:
            for recall, value in recalls[way].items():
                low, high = intervals[way][recall]
                cells.append(f"{value:.1f} ± {(high - low) / 2:.1f}")
        rows.append([name, *cells, f"{measured.get('metrics', measured)['mean_recall']:.1f}"])
    head = ["model", "T2I R@1", "T2I R@5", "T2I R@10", "I2T R@1", "I2T R@5", "I2T R@10", "mean recall"]
    return markdown_table(head, rows)


def mistakes_table(models: dict[str, dict]) -> str:
    """Wrong first pictures, counted by their difference to the right one.

    Args:
        models: name in the table -> result of one model on scenes.
    """
    kinds = list(dict.fromkeys(kind for measured in models.values() for kind in measured["mistakes"] if kind != "queries"))
    rows = [
        [name, measured["mistakes"]["queries"], *(measured["mistakes"].get(kind, 0) for kind in kinds)]
        for name, measured in models.items()
    ]
    return markdown_table(["model", "queries", *map(words, kinds)], rows)


# Weights of the segments, and expanded queries ------------------------------------------------------------------------


def weights_table(tasks: dict[str, dict]) -> str:
    """The metric on test with equal weights, and its change by the chosen and by the paper's weights.

    Args:
        tasks: name -> result of `benchmarks.aspect_weights.measure`.
    """
    rows = []
    for name, task in tasks.items():
        for weights in ("chosen", "paper"):
            gained = task["validation"][weights] - task["validation"]["equal"]
            shown = " ".join(f"{w:g}" for w in task["chosen"]) if weights == "chosen" else "as in the paper"
            test = task["difference"][weights]
            rows.append(
                [
                    name,
                    task["metric"],
                    shown,
                    task["test"]["equal"],
                    f"{gained:+.2f}",
                    change(test["mean"], test["interval_95"], decimals=2),
                ]
            )
    return markdown_table(["task", "metric", "weights", "equal weights", "change on validation", "change on test"], rows)


def expansion_table(models: dict[str, dict]) -> str:
    """Recall with the captions and with the expanded queries: R@1 in both directions, and mean recall.

    Args:
        models: name -> result of `benchmarks.expanded_queries`.
    """
    rows = []
    for model, result in models.items():
        for name in ("captions", "expanded"):
            both = [result[name][way]["R@1"] for way in ("image_to_text", "text_to_image")]
            found = result["difference"]
            gained = change(found["mean"], found["interval_95"], decimals=2) if name == "expanded" else None
            rows.append([words(model), name, *both, result[name]["mean_recall"], gained])
    return markdown_table(["model", "queries", "I2T R@1", "T2I R@1", "mean recall", "change"], rows)


# Solutions in closed form -----------------------------------------------------------------------------------------------


def _told(text: str) -> str:
    """ "prompts_30+words" -> "prompts 30 + words"."""
    return words(text).replace("+", " + ")


def solutions_table(rows: dict[str, dict]) -> str:
    """Every text and form from the most photos: recalls, and the difference to mean pooling and to the single prompt.

    Args:
        rows: of `benchmarks.closed_form`: number of photos -> text -> form -> solution.
    """
    table = []
    for text, forms in rows[max(rows, key=int)].items():
        for form, one in forms.items():
            metrics = one["metrics"]
            recall = f"{metrics['mean_recall']:.1f} ({one['interval_95'][0]:.1f} to {one['interval_95'][1]:.1f})"
            compared = [
                None if base == text else change(found["mean"], found["interval_95"])
                for base, found in one["differences"].items()
            ]
            ways = [f"{metrics[name]:.1f}" for name in ("t2i_R@1", "i2t_R@1")]
            table.append([_told(text), form, recall, *ways, *compared])
    return markdown_table(
        ["text", "form", "mean recall", "T2I R@1", "I2T R@1", *(f"to {_told(b)}" for b in one["differences"])], table
    )


def photos_table(rows: dict[str, dict], what: str = "photos") -> str:
    """Mean recall of the solutions "together" over a number, by default of photos, for the texts that all numbers have."""
    numbers = sorted(rows, key=int)
    texts = [text for text in rows[numbers[-1]] if all(text in rows[n] for n in numbers)]
    recalls = [[f"{rows[n][text]['together']['metrics']['mean_recall']:.1f}" for n in numbers] for text in texts]
    return markdown_table(
        ["text", *(f"{n} {what}" for n in numbers)], [[_told(t), *r] for t, r in zip(texts, recalls, strict=True)]
    )
