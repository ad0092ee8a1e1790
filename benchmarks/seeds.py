"""Results over several seeds: means, paired differences, and their plot.

A row is one cell on one split: {"system": str, "split": str, "seed": int, "metrics": {name: value}}.
"""

import statistics
from pathlib import Path

from benchmarks.results_tables import ALL, METRIC_NAMES, PAPER_DIFFERENCES, comparison, words
from eval.intervals import t_interval

BLUE, RED = "#2a6f97", "#c44e52"


def with_all_splits(rows: list[dict]) -> list[dict]:
    """Add rows of the split "all", the mean over splits.

    Returns:
        The rows, and after them one for each cell that was measured on every split. With one split, the rows alone.
    """
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        cells.setdefault((row["system"], row["seed"]), []).append(row["metrics"])
    splits = len({row["split"] for row in rows})
    return rows + [
        {
            "system": system,
            "split": ALL,
            "seed": seed,
            "metrics": {name: statistics.mean(one[name] for one in measured) for name in measured[0]},
        }
        for (system, seed), measured in cells.items()
        if len(measured) == splits > 1
    ]


def summarise(rows: list[dict]) -> list[dict]:
    """Mean and standard deviation over seeds.

    Returns:
        For each system and split: `system`, `split`, `seeds` (how many), and `mean` and `std` of every metric; `std` is None
        for one seed.
    """
    summary = []
    for system, split in dict.fromkeys((row["system"], row["split"]) for row in rows):
        cells = [row["metrics"] for row in rows if (row["system"], row["split"]) == (system, split)]
        values = {name: [cell[name] for cell in cells] for name in cells[0]}
        summary.append(
            {
                "system": system,
                "split": split,
                "seeds": len(cells),
                "mean": {name: statistics.mean(of_seeds) for name, of_seeds in values.items()},
                "std": {name: statistics.stdev(of_seeds) if len(cells) > 1 else None for name, of_seeds in values.items()},
            }
        )
    return summary


def compare(rows: list[dict], baselines: list[str], metrics: tuple[str, ...]) -> list[dict]:
    """Paired differences of systems to baselines on each split, over the seeds that both have.

    Args:
        rows: of all systems.
        baselines: every system is compared with each of these. The paper's own comparisons are added.
        metrics: the metrics to compare, where a system has them.

    Returns:
        For each comparison: `system`, `baseline`, `split`, `metric`, `mean_difference`, `seeds` (how many), and `interval`,
        [low, high] of 95% as from `t_interval`.
    """
    asked = {(system, baseline) for system in {row["system"] for row in rows} for baseline in baselines}
    asked |= PAPER_DIFFERENCES.keys()
    measured = {(row["system"], row["split"], row["seed"]): row["metrics"] for row in rows}
    pairs = dict.fromkeys((row["system"], row["split"]) for row in rows)
    comparisons = []
    for baseline in dict.fromkeys([*baselines, *(baseline for _, baseline in PAPER_DIFFERENCES)]):
        for system, split in pairs:
            seeds = [s for (name, part, s) in measured if (name, part) == (system, split) and (baseline, split, s) in measured]
            if system == baseline or (system, baseline) not in asked or not seeds:
                continue
            for metric in metrics:
                if metric not in measured[system, split, seeds[0]]:
                    continue
                change = [measured[system, split, s][metric] - measured[baseline, split, s][metric] for s in seeds]
                comparisons.append(
                    {
                        "system": system,
                        "baseline": baseline,
                        "split": split,
                        "metric": metric,
                        "mean_difference": statistics.mean(change),
                        "interval": t_interval(change),
                        "seeds": len(seeds),
                    }
                )
    return comparisons


def plot(result: dict, split: str, path: Path) -> None:
    """Draw the first metric on a split, best system first.

    The left panel has a dot for every seed and a bar for the mean. A panel for each of the first two baselines has the paired
    differences to it, with their 95% intervals.

    Args:
        result: the content of the JSON file.
        split: one of its splits.
        path: the PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = result["metrics"][0]
    summary = [row for row in result["summary"] if row["split"] == split]
    order = [row["system"] for row in sorted(summary, key=lambda row: -row["mean"][metric])]
    baselines = [baseline for baseline in result["baselines"] if baseline in order][:2]
    figure, panels = plt.subplots(
        1,
        1 + len(baselines),
        figsize=(2 + 3.4 * (1 + len(baselines)), 1.2 + 0.32 * len(order)),
        sharey=True,
        constrained_layout=True,
        squeeze=False,
    )
    values = {
        system: [row["metrics"][metric] for row in result["rows"] if (row["system"], row["split"]) == (system, split)]
        for system in order
    }
    first, *others = panels[0]
    for y, system in enumerate(order):
        seeds = values[system]
        first.plot(seeds, [y] * len(seeds), "o", color=BLUE, alpha=0.5, markersize=5, label="" if y else "one seed")
        if len(seeds) > 1:
            first.plot([statistics.mean(seeds)] * 2, [y - 0.3, y + 0.3], color=RED, linewidth=2)
    several = max(map(len, values.values())) > 1
    if several:
        first.plot([], [], color=RED, linewidth=2, label="mean")
        first.legend(frameon=False, fontsize="small")
    first.set(title=METRIC_NAMES[metric], xlabel="percent")
    for panel, baseline in zip(others, baselines, strict=True):
        panel.axvline(0, color="0.4", linewidth=1)
        for y, system in enumerate(order):
            if (found := comparison(result, system, baseline, split, metric)) is not None:
                panel.plot(found["mean_difference"], y, "o", color=BLUE, markersize=5)
                panel.plot(found["interval"] or [], [y, y] if found["interval"] else [], color=BLUE, linewidth=2)
        panel.set(title=f"against\n{words(baseline)}", xlabel="points, paired by seed" + ", with 95% interval" * several)
    for panel in panels[0]:
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    first.set_yticks(range(len(order)), map(words, order))
    first.invert_yaxis()
    figure.savefig(path, dpi=130)
    plt.close(figure)
