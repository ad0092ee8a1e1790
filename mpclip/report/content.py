"""The sections of the report: what was measured, as the values of page.html."""

from collections.abc import Sequence

import numpy as np

from eval.result import Result

from .charts import curve, intervals, matrix, pairs_of_bars
from .failures import failures
from .pictures import LARGE, Maps, inline, maps_of
from .prompts import alone, weight_curves

PAIRS, LEANING, DISAGREEING, MAPS, FAILURES = 4, 4, 3, 4, 8  # how many are shown


def of_retrieval(result: Result) -> dict:
    """The values of the header and of the section on retrieval.

    Args:
        result: of the task `retrieval`.
    """
    from eval.metrics import RECALLS
    from eval.tables import with_interval

    titles = {"t2i": "Captions search pictures", "i2t": "Pictures search captions"}
    charts = []
    for way, title in titles.items():
        rows = [(f"recall at {k}", result.metrics[f"{way}_R@{k}"], result.intervals[f"{way}_R@{k}"]) for k in RECALLS]
        charts.append((title, intervals(rows, f"{title}: {_said(rows)}")))
    mean = with_interval(result.metrics["mean_recall"], result.intervals["mean_recall"])
    return {"metrics": result.metrics, "counts": result.counts, "recalls": charts, "mean_recall": mean}


def labels_of(names: Sequence[str]) -> list[str]:
    """What prompts are called in charts and below pictures: "1 color", or "prompt 1" if they have no names."""
    return [f"prompt {k}" if name == str(k) else f"{k} {name}" for k, name in enumerate(names, start=1)]


def of_prompts(result: Result, embeds: dict, rows, names: list[str], templates: list[str]) -> dict:
    """The section on prompts.

    Args:
        result: of `eval.tasks.prompts.measure`.
        embeds: as from `encode_dataset`.
        rows: the pictures, with columns `image` and `captions`.
        names, templates: of the K prompts.
    """
    from eval.metrics import contents_of
    from eval.tasks.prompts import profile

    K, labels = len(names), labels_of(names)
    captions = [caption for row in rows.with_format(None)["captions"][:] for caption in row]
    owner, contents, images = np.asarray(embeds["caption_image"]), contents_of(captions), rows["image"]
    told = profile(embeds, K, rows)
    found = alone(embeds, contents, K, PAIRS, DISAGREEING)
    return {
        "names": names,
        "templates": templates,
        "share": told["share"],
        "only": found.only,
        "alone_chart": _alone_chart(result, labels),
        "matrices": _matrices(told),
        "disagreements": [
            {
                "caption": captions[t],
                "found": [
                    {
                        "by": by,
                        "source": inline(images[row]),
                        "caption": captions[int(np.flatnonzero(owner == row)[0])],
                        "right": bool((contents[owner == row] == contents[t]).any()),
                    }
                    for by, row in zip(["all prompts", *labels], [int(found.whole[t]), *map(int, found.first[t])], strict=True)
                ],
            }
            for t in found.disagreements
        ],
        "gallery": [
            {
                "name": label,
                "highest": [
                    {"source": inline(images[pair.row]), "caption": captions[pair.caption], "right": pair.right}
                    for pair in found.highest[k]
                ],
                "leans": [
                    {"source": inline(images[one["row"]]), "caption": one["captions"][0]}
                    for one in told["highest"][k]["pictures"][:LEANING]
                ],
            }
            for k, label in enumerate(labels)
        ],
    }


def of_maps(encoder, rows) -> list[Maps]:
    """The section on maps: pictures at even intervals, each with its first caption.

    Args:
        encoder: a `ModelEncoder`.
        rows: the pictures, with columns `image` and `captions`.

    Raises:
        ValueError: the model has no such maps.
    """
    chosen = np.linspace(0, len(rows) - 1, min(MAPS, len(rows))).astype(int)
    some = [rows[int(i)] for i in chosen]
    return [maps_of(encoder, row["captions"][0], row["image"]) for row in some]


def of_failures(embeds: dict, rows, labels: list[str]) -> dict:
    """The section on failures.

    Args:
        embeds: as from `encode_dataset`.
        rows: the pictures, with columns `image` and `captions`.
        labels: of the K prompts; one for a model without prompts.
    """
    captions = [caption for row in rows.with_format(None)["captions"][:] for caption in row]
    found, images = failures(embeds, captions, len(labels), FAILURES), rows["image"]
    shown = []
    for one in found.shown:
        gains = one.found_parts - one.wanted_parts  # (K,)
        misled = [label for label, gain in zip(labels, gains, strict=True) if gain > 0]
        note = f"Score of the wanted picture {one.wanted_parts.sum():.2f}, of the found one {one.found_parts.sum():.2f}."
        if len(labels) > 1:
            note += f" {len(misled)} of {len(labels)} prompts prefer the found one."
        chart = pairs_of_bars(labels, one.wanted_parts.tolist(), one.found_parts.tolist(), note)
        pictures = {"wanted_source": inline(images[one.wanted], LARGE), "found_source": inline(images[one.found], LARGE)}
        shown.append({"caption": one.caption, "other": one.other, "rank": one.rank, "chart": chart, "note": note} | pictures)
    return {"captions": found.captions, "near": found.near, "shown": shown}


def of_weights(result: Result, embeds: dict, labels: list[str], fit_split: str | None) -> dict:
    """The section on aspect weights.

    Args:
        result: of `eval.tasks.prompts.measure`; with `fit_split`, it has the weights that were fitted.
        embeds: as from `encode_dataset`; the curves are of them if no weights were fitted.
        labels: of the K prompts.
        fit_split: the split that weights were fitted on.
    """
    from eval.tables import with_interval
    from eval.weight_search import WEIGHTS

    fitted = ""
    if fit := result.origin.get("fit"):
        curves, pictures = fit["curves"], fit["pictures"]
        where = f"They are of the split {fit_split}, {pictures:,} pictures."
        gain = with_interval(result.metrics["fitted_gain"], result.intervals["fitted_gain"], signed=True)
        chosen = ", ".join(f"{weight:g} for {label}" for label, weight in zip(labels, fit["weights"], strict=True))
        fitted = f"The best weights there: {chosen}. With them, mean recall on the measured split changes by {gain} points."
    else:
        curves, pictures = weight_curves(embeds, len(labels))
        some = "all" if pictures == len(embeds["image_embeds"]) else f"the first {pictures:,}"
        where = f"They are of {some} pictures of the measured split, so they only describe it. To choose weights, give another "
        where += "split: --fit_split."
    values = [value for of_one in curves for value in of_one]
    limits = np.floor(min(values)), np.ceil(max(values))
    drawn = [
        (label, curve(WEIGHTS, ys, limits, f"Mean recall by weight of {label}: " + _along(WEIGHTS, ys)))
        for label, ys in zip(labels, curves, strict=True)
    ]
    return {"curves": drawn, "note": where, "fitted": fitted}


def _alone_chart(result: Result, labels: list[str]):
    def row(name: str, metric: str) -> tuple:
        return name, result.metrics[metric], result.intervals[metric]

    alone = [row(label, f"alone_{k}") for k, label in enumerate(labels, start=1)]
    others = [row(label, f"without_{k}") for k, label in enumerate(labels, start=1) if len(labels) > 2]
    rows = [row("all", "all"), ("each alone", None, None), *alone]
    said = f"Mean recall: all {result.metrics['all']:.1f}; alone: {_said(alone)}"
    if others:
        rows += [("without one", None, None), *others]
        said += f"; without: {_said(others)}"
    return intervals(rows, said, reference=result.metrics["all"])


def _matrices(told: dict) -> list[tuple]:
    kinds = {
        "cosine_of_texts": ("Similarity of the segments of texts", "Mean cosine of two segments of one text."),
        "cosine_of_pictures": ("Similarity of the segments of pictures", "Mean cosine of two segments of one picture."),
        "correlation_of_scores": (
            "Do two prompts rank alike?",
            "Correlation of the scores of two segments over all pairs of a caption and a picture: 1 if they rank alike. The "
            "cosines do not tell this, because each prompt has a projection of its own.",
        ),
    }
    return [
        (
            title,
            note,
            matrix(told[name], f"{title}, row by row: " + "; ".join(" ".join(f"{v:.2f}" for v in r) for r in told[name])),
        )
        for name, (title, note) in kinds.items()
    ]


def _said(rows: Sequence[tuple]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value, _ in rows)


def _along(xs: Sequence[float], ys: Sequence[float]) -> str:
    return ", ".join(f"{y:.1f} at {x:g}" for x, y in zip(xs, ys, strict=True))
