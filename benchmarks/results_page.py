"""Write docs/results.md from the measurements in docs/results/*.json, and what is said of them in docs/results/findings.md.

The findings are prose in which a number is `{mean RESULT SYSTEM METRIC}`, the mean over seeds, or
`{difference RESULT SYSTEM BASELINE}`, the paired difference of the first metric with its interval. A further word in the
braces names another split than the reported one ("all" is the mean over splits), or another metric of a difference.
"""

import argparse
import json
import re
from pathlib import Path

from eval.tables import markdown_table

HEAD = """# Results

Written by `python -m benchmarks.results_page` from the JSON files in docs/results; no number here was typed by hand.
Recall in percent; a tie counts against the model. ± is half of the 95% interval over the choice of test images, but where
several seeds were run: there it is the standard deviation over seeds, and a difference is paired by the seeds that both
have, with the 95% interval of Student's t where these are three or more. Such an interval leaves out that other images are
easier or harder.
"""

METRIC_NAMES = {"mean_recall": "mean recall", "t2i_R@1": "T2I R@1", "i2t_R@1": "I2T R@1", "spearman": "Spearman"}
METRIC_NAMES |= {"negated_R@1": 'T2I R@1 of "without ..."'}

# R@1 text-to-image and image-to-text on Flickr30k, zero-shot after training on LAION (arXiv 2508.02762).
PAPER_RETRIEVAL = {
    "vanilla_clip": (43.7, 61.4),
    "mean_pooling": (43.4, 60.6),
    "mean_pooling_lora": (44.6, 63.1),
    "appended_tokens": (43.8, 63.4),
    "multi_prompt_both_one_query": (47.1, 66.0),
    "vanilla_clip_sigmoid": (60.0, 80.6),
    "multi_prompt_sigmoid": (64.2, 83.2),
}
# Ours has a query per prompt; both are held against the paper's comparisons.
PAPER_RETRIEVAL["multi_prompt_both"] = PAPER_RETRIEVAL["multi_prompt_both_one_query"]
PAPER_NOTE = (
    "The paper's figures: Flickr30k, zero-shot after training on LAION with Gemma-2B at a batch of 1,024; with the sigmoid "
    "loss, and against the single prompt (LLaMA-3-8B), at 4,096. Its image pooling has one query for all prompts, ours one "
    'per prompt but where a system says "one query".'
)
# Spearman correlation on the test split of STS-B, Gemma-2B.
PAPER_STS = {"single_prompt": (87.2,), "multi_prompt": (88.9,)}
# What the paper compares: (system, baseline) -> difference of R@1, text-to-image and image-to-text on Flickr30k.
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
# LLaMA-3-8B, batch 4,096
PAPER_DIFFERENCES |= {(system, "single_prompt"): (6.7, 5.5) for system in ("multi_prompt_both_one_query", "multi_prompt_both")}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results_page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of JSON files (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"), help="page to write (%(default)s)")
    options = parser.parse_args(arguments)
    if not options.results.is_dir() or not list(options.results.glob("*.json")):
        raise SystemExit(f"No measurement in {options.results}: python -m eval retrieval --json writes one.")
    results = {file.stem: json.loads(file.read_text()) for file in sorted(options.results.glob("*.json"))}
    findings = options.results / "findings.md"
    sections = [_fill_in(findings.read_text(), results)] if findings.is_file() else []
    for name, result in results.items():
        kinds = {"comparisons": _systems_section, "tasks": _weights_section, "expansions": _expansion_section}
        section = next((write for key, write in kinds.items() if key in result), _section)
        sections.append(section(name, result))
    options.out.write_text("\n".join([HEAD, *sections]))
    print(f"written: {options.out}")


def _fill_in(findings: str, results: dict[str, dict]) -> str:
    """Put the measured numbers in the places that the findings leave for them; a paragraph is then one line."""

    def measured(place: re.Match) -> str:
        kind, name, system, other, *further = place[1].split()
        result = results.get(name, {"reported": None, "summary": [], "comparisons": []})
        metric = next((word for word in further if word in METRIC_NAMES), None)
        split = next((word for word in further if word != metric), result["reported"])
        if kind == "difference":
            found = _difference(result, system, other, split, metric)
        else:
            rows = [row for row in result["summary"] if (row["system"], row["split"]) == (system, split)]
            found = f"{rows[0]['mean'][other]:.1f}" if rows and other in rows[0]["mean"] else "-"
        if found == "-":
            raise SystemExit(f"The findings tell of {place[0]}, which was not measured: expected one of {', '.join(results)}.")
        return found

    unwrapped = re.sub(r"(?<=\S)\n(?=\S)", " ", findings)
    return re.sub(r"\{((?:mean|difference)(?: [^\s{}]+){3,5})\}", measured, unwrapped)


def _section(name: str, result: dict) -> str:
    """A demo result holds several systems, the result of `python -m eval retrieval` is one."""
    systems = {key: value for key, value in result.items() if isinstance(value, dict) and "mean_recall" in value}
    lines = [f"## {name}", "", result.get("about", ""), ""]
    lines += ["| system | T2I R@1 | R@5 | R@10 | I2T R@1 | R@5 | R@10 | mean |", "|---|---|---|---|---|---|---|---|"]
    for system, measured in (systems or {name: result}).items():
        cells = []
        for way in ("text_to_image", "image_to_text"):
            for recall, value in measured[way].items():
                low, high = measured["interval_95"][way][recall]
                cells.append(f"{value:.1f} ± {(high - low) / 2:.1f}")
        lines.append(f"| {words(system)} | {' | '.join(cells)} | {measured['mean_recall']:.1f} |")
    for system, measured in systems.items():
        if "mistakes" in measured:
            kinds = {kind: count for kind, count in measured["mistakes"].items() if kind != "queries"}
            told = ", ".join(f"{words(kind)} {count}" for kind, count in kinds.items())
            queries = measured["mistakes"]["queries"]
            lines += ["", f"Wrong first pictures of the {words(system)} model in {queries} queries, by what differs: {told}."]
    facts = {
        "images": result.get("images") or result.get("scenes"),
        "captions": result.get("captions"),
        "split": result.get("split"),
        "seconds": result["seconds"],
    }
    return "\n".join([*lines, "", *_facts(facts, result)])


def _facts(facts: dict, result: dict) -> list[str]:
    """A list of what a section's numbers belong to, ending with what it takes to repeat them."""
    commands = result.get("commands", [result["command"]])
    facts = facts | {
        "commands" if len(commands) > 1 else "command": ", then ".join(f"`{command}`" for command in commands),
        "date": result["date"],
        "machine": ", ".join(f"{key} {value}" for key, value in result["machine"].items()),
    }
    return [*(f"* {key}: {value}" for key, value in facts.items() if value is not None), ""]


# Systems over several seeds, from `python -m benchmarks.ablation` -------------------------------------------------


def _systems_section(name: str, result: dict) -> str:
    split = result["reported"]
    lines = [f"## {name}", "", result.get("about", ""), "", systems_table(result, split), ""]
    lines += [f"![Every seed, and the differences to each baseline.](results/{name}.png)", ""]
    lines += _beside_the_paper(result, split)
    first = [row for row in result["summary"] if row["split"] == split and "mean_recall_first_1" in row["mean"]]
    if first:
        K = 1 + max(sum("_first_" in metric for metric in row["mean"]) for row in first)
        lines += [f"| mean recall of the first prompts alone | {' | '.join(str(m) for m in range(1, K + 1))} |"]
        lines += ["|" + "---|" * (K + 1)]
        for row in first:
            own = sum("_first_" in metric for metric in row["mean"])  # its prompts but the last
            values = [*(row["mean"][f"mean_recall_first_{m + 1}"] for m in range(own)), row["mean"]["mean_recall"]]
            cells = [f"{value:.1f}" for value in values] + ["-"] * (K - len(values))
            lines += [f"| {words(row['system'])} | {' | '.join(cells)} |"]
        lines += [""]
    data = ", ".join(dict.fromkeys(row["data"] for row in result["rows"]))
    return "\n".join([*lines, *_facts({"data": data, "split": split, "setting": result["setting"]}, result)])


def systems_table(result: dict, split: str) -> str:
    """Markdown: each metric with its standard deviation, the first one's difference to each baseline, the paper's figures."""
    metrics = list(result["metrics"])
    paper, paper_head = (
        (PAPER_STS, ["paper, test split"])
        if metrics == ["spearman"]
        else (PAPER_RETRIEVAL, ["paper: T2I R@1", "paper: I2T R@1"])
    )
    summary = [row for row in result["summary"] if row["split"] == split]
    if not any(row["system"] in paper for row in summary):
        paper_head = []
    metrics = [*metrics, *(["negated_R@1"] if any("negated_R@1" in row["mean"] for row in summary) else [])]
    baselines = [name for name in result["baselines"] if any(row["system"] == name for row in summary)]
    head = ["system", "seeds", *(METRIC_NAMES[metric] for metric in metrics)]
    head += [f"{METRIC_NAMES[metrics[0]]} against {words(baseline)}" for baseline in baselines]
    lines = [[*head, *paper_head], ["---"] * (len(head) + len(paper_head))]
    for row in summary:
        measured = [_spread(row, metric) for metric in metrics]
        differences = [_difference(result, row["system"], baseline, split) for baseline in baselines]
        theirs = [str(value) for value in paper.get(row["system"], ["-"] * len(paper_head))]
        lines.append([words(row["system"]), str(row["seeds"]), *measured, *differences, *theirs])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _beside_the_paper(result: dict, split: str) -> list[str]:
    """A table of the paper's comparisons that were measured here too, and whether they come out alike."""
    measured = {(row["system"], row["baseline"]) for row in result["comparisons"] if row["split"] == split}
    pairs = [pair for pair in PAPER_DIFFERENCES if pair in measured]
    if "i2t_R@1" not in result["metrics"] or not pairs:
        return []
    lines = [
        PAPER_NOTE,
        "",
        "| difference | T2I R@1, paper | here | I2T R@1, paper | here | mean recall here | has the paper's sign |",
        "|" + "---|" * 7,
    ]
    for system, baseline in pairs:
        cells = [f"{words(system)} against {words(baseline)}"]
        theirs = PAPER_DIFFERENCES[system, baseline]
        for metric, difference in zip(("t2i_R@1", "i2t_R@1"), theirs, strict=True):
            cells += [f"{difference:+.1f}", _difference(result, system, baseline, split, metric)]
        cells += [_difference(result, system, baseline, split), _verdict(result, system, baseline, split, sum(theirs))]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _verdict(result: dict, system: str, baseline: str, split: str, theirs: float) -> str:
    interval = comparison(result, system, baseline, split, result["metrics"][0])["interval"]
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "not decided"
    return "yes" if (interval[0] > 0) == (theirs > 0) else "no"


def words(system: str) -> str:
    """A system's name to read."""
    return system.replace("_", " ")


def _spread(row: dict, metric: str) -> str:
    spread = row["std"][metric]
    return f"{row['mean'][metric]:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def _difference(result: dict, system: str, baseline: str, split: str, metric: str | None = None) -> str:
    row = comparison(result, system, baseline, split, metric or result["metrics"][0])
    if row is None:
        return "-"
    interval = row["interval"]
    return f"{row['mean_difference']:+.1f}" + (f" ({interval[0]:+.1f} to {interval[1]:+.1f})" if interval else "")


def comparison(result: dict, system: str, baseline: str, split: str, metric: str) -> dict | None:
    """The paired difference of a system to a baseline; None if it was not measured."""
    wanted = {"system": system, "baseline": baseline, "split": split, "metric": metric}
    for row in result["comparisons"]:
        if all(row[name] == value for name, value in wanted.items()):
            return row
    return None


# Weights of the segments, and expanded queries ----------------------------------------------------------------------


def _weights_section(name: str, result: dict) -> str:
    told = (
        "Segment k of the text is scaled by w_k. Chosen on validation, one weight after the other as long as it gains; changes "
        "on test with the 95% interval of a paired bootstrap over pictures. Source: 61.4 to 61.8 on ImageNet, zero-shot."
    )
    largest = result["tasks"]["classification"].get("largest_category")
    told += "" if largest is None else f" Always naming the largest category is right for {largest:.1f}%."
    lines = [f"## {name}", "", told, "", weights_table(result["tasks"]), ""]
    lines += [f"![The metric on validation over the weight of each segment.](results/{name}.png)", ""]
    facts = {"model": result["model"], "data": result["data"], "validation and test": ", ".join(result["splits"])}
    return "\n".join([*lines, *_facts(facts, result)])


def weights_table(tasks: dict[str, dict]) -> str:
    """Markdown: the metric on test without weights, and what the chosen and the paper's weights change."""
    rows = []
    for name, task in tasks.items():
        for weights in ("chosen", "paper"):
            gained = task["validation"][weights] - task["validation"]["equal"]
            of = " ".join(f"{w:g}" for w in task["chosen"]) if weights == "chosen" else "as in the paper"
            rows.append(
                [name, task["metric"], of, task["test"]["equal"], f"{gained:+.2f}", _change(task["difference"][weights])]
            )
    return markdown_table(["task", "metric", "weights", "equal weights", "change on validation", "change on test"], rows)


def _expansion_section(name: str, result: dict) -> str:
    told = (
        f"{result['writer']} adds a sentence to every caption at test time. Changes with the 95% interval of a paired "
        "bootstrap over images. Source, vanilla CLIP: 61.4 to 60.2 image-to-text, 43.7 to 43.3 text-to-image."
    )
    caption, written = next(iter(result["expansions"].items()))
    lines = [f"## {name}", "", told, "", expansion_table(result["models"]), ""]
    lines += [f'An example: "{caption}" is followed by "{written}"', ""]
    return "\n".join([*lines, *_facts({"data": result["data"], "split": result["split"]}, result)])


def expansion_table(models: dict[str, dict]) -> str:
    """Markdown: recall at 1 both ways and mean recall, with the captions alone and expanded."""
    rows = []
    for model, result in models.items():
        for name in ("captions", "expanded"):
            both = [result[name][way]["R@1"] for way in ("image_to_text", "text_to_image")]
            change = _change(result["difference"]) if name == "expanded" else None
            rows.append([words(model), name, *both, result[name]["mean_recall"], change])
    return markdown_table(["model", "queries", "I2T R@1", "T2I R@1", "mean recall", "change"], rows)


def _change(difference: dict) -> str:
    low, high = difference["interval_95"]
    return f"{difference['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()
