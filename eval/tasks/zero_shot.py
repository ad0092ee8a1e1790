"""Zero-shot classification: each picture is given the class whose name, in some sentences, is nearest.

    mpclip eval zero_shot --model runs/demo/multi_prompt --data runs/openmoji_categories --split test \\
        --json zero_shot.json
    mpclip eval zero_shot --model runs/demo/multi_prompt --data my_photos --split test --classes names.txt \\
        --confusion confusion.png --json mine.json
    mpclip eval zero_shot --model runs/demo/multi_prompt --data my_photos --split test --label_column kind \\
        --templates texts.txt --json kind.json

A class is the normalised mean of the embeddings of its name in several templates (--templates). A picture is given the class of
highest score. The metrics are shares in percent:

    top1               pictures whose own class is first (the primary metric)
    top5               pictures whose own class is among the first five; only with more than five classes
    balanced_accuracy  the mean over classes of their own top1, so that frequent classes count no more than rare ones
    top1_of_NAME       top1 of the pictures of one class; with more than 30 classes these stand in the JSON alone

A tie counts against the model. The classes are those of the whole data set, also with --limit or a part of a split. The items
are, of each picture: `label`, `predicted`, the `rank` of its own class, and `margin`, the score of its own class minus the best
other one. `class_names` are those of the classes.
"""

import argparse

import numpy as np

from eval.aspects import add_weights, weights_of
from eval.class_templates import NAMED, read_templates
from eval.confusion import MOST_CLASSES, confusion_counts, confusion_grid, confusion_plot, worst_confusions
from eval.result import Result

WORST = 10  # confusions that the result names


class ZeroShot:
    """The task; see `eval.task.Task`."""

    name = "zero_shot"
    writes = ("confusion", "grid")
    takes = "pictures with class labels: a folder for each class, a table with a column label, a saved data set or a Hub id"

    def __init__(self, options: argparse.Namespace | None = None):
        self.label_column: str | None = getattr(options, "label_column", None)
        self.classes: str | None = getattr(options, "classes", None)
        self.templates = read_templates(getattr(options, "templates", NAMED[0]))
        self.weights: list[str] | None = getattr(options, "weights", None)
        self.confusion: str | None = getattr(options, "confusion", None)
        self.grid: str | None = getattr(options, "grid", None)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--label_column", help="column of the label (default: label, class or category)")
        parser.add_argument(
            "--classes",
            metavar="FILE",
            help="class names: a name per line, a JSON list, or a JSON mapping label -> name (default: from the data)",
        )
        parser.add_argument(
            "--templates",
            default=NAMED[0],
            help=f"{' or '.join(NAMED)} (needs open_clip), or a file with a text per line in which {{}} is the name "
            "(default: %(default)s)",
        )
        add_weights(parser)
        parser.add_argument("--confusion", metavar="OUT.png", help="also draw which classes are taken for which")
        parser.add_argument("--grid", metavar="OUT.png", help="also draw pictures of the most frequent confusions")

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The pictures and their classes, as from `load_labelled`."""
        from mpclip.data.labelled import load_labelled

        return load_labelled(source, split, label_column=self.label_column, classes=self.classes, limit=limit, **reading)

    def run(self, encoder, data, **encoding) -> Result:
        """Embed classes and pictures and measure; see `eval.task.Task.run`."""
        from mpclip.encoding import encode_images

        weights = weights_of(encoder, self.weights)
        classes = class_embeddings(encoder, data.classes, self.templates, weights, **encoding)  # (C, D)
        images = encode_images(encoder, data.rows, **encoding)  # (I, D)
        result = measure(images, classes, data.labels, data.classes)
        result.counts["templates"] = len(self.templates)
        result.origin |= {"templates": self.templates, "aspect_weights": weights}
        self._draw(data, result.items)
        return result

    def _draw(self, data, items: dict) -> None:
        """The pictures that the options ask for."""
        if self.confusion:
            counts = confusion_counts(items["label"], items["predicted"], len(data.classes))
            confusion_plot(counts, data.classes, self.confusion)
        if self.grid:
            found = (items[name] for name in ("label", "predicted", "margin"))
            confusion_grid(data.rows["image"], *found, data.classes, self.grid)

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The pictures."""
        return len(items["label"])

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """The metrics, if picture u counts `counts[u]` times; nan for a class without pictures."""
        names, total, of_class = items["class_names"], counts.sum(), top1_of_classes(items, counts)
        metrics = {"top1": 100.0 * float(counts[items["rank"] == 1].sum() / total)}
        if len(names) > 5:
            metrics["top5"] = 100.0 * float(counts[items["rank"] <= 5].sum() / total)
        metrics["balanced_accuracy"] = float(np.nanmean(of_class))
        shown = np.unique(items["label"]) if len(names) <= MOST_CLASSES else ()
        return metrics | {f"top1_of_{names[i]}": float(of_class[i]) for i in shown}


def top1_of_classes(items: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """(C,) the top1 of each class's pictures in percent, if picture u counts `counts[u]` times; nan for a class without any."""
    label, classes = items["label"], len(items["class_names"])
    pictures = np.bincount(label, counts, classes)  # (C,)
    right = np.bincount(label, counts * (items["rank"] == 1), classes)  # (C,)
    return 100.0 * np.divide(right, pictures, out=np.full(classes, np.nan), where=pictures > 0)


def class_embeddings(encoder, names: list[str], templates: list[str], weights: list[float] | None = None, **encoding):
    """The embedding of each class: the mean over its templates, normalised; then its segments are weighted.

    Args:
        encoder: an `mpclip.encoding.Encoder`.
        names: C class names.
        templates: T texts with {} for the name.
        weights: K aspect weights, or None.
        encoding: options of `encode_texts`.

    Returns:
        (C, D) float32 tensor. Its rows have norm 1 unless there are weights.
    """
    from modeling_mpclip.segments import assembled, checked_weights
    from mpclip.encoding import encode_texts

    texts = [template.replace("{}", name) for name in names for template in templates]
    embeds = encode_texts(encoder, texts, title="Embedding classes", **encoding)  # (C * T, D)
    means = embeds.unflatten(0, (len(names), len(templates))).mean(dim=1)  # (C, D)
    K = encoder.segments
    factors = None if weights is None else checked_weights(weights, K)  # (K,)
    return assembled(means.unflatten(1, (K, -1)), factors)


def measure(image_embeds, class_embeds, labels: np.ndarray, names: list[str]) -> Result:
    """The result, from embeddings.

    Args:
        image_embeds: (I, D) tensor.
        class_embeds: (C, D) tensor.
        labels: (I,) int, the class of each picture.
        names: of the C classes.
    """
    from eval.intervals import bootstrap

    items = classify(image_embeds, class_embeds, labels)
    seen = [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]
    items["class_names"] = np.array(seen)
    worst = worst_confusions(confusion_counts(items["label"], items["predicted"], len(names)), WORST)
    units = ZeroShot.units(items)
    ones = np.ones(units, dtype=np.int64)
    of_class = zip(items["class_names"], top1_of_classes(items, ones), strict=True)
    return Result(
        task=ZeroShot.name,
        primary="top1",
        metrics=ZeroShot.metrics_of(items, ones),
        intervals=bootstrap(ZeroShot.metrics_of, items, units),
        counts={"images": units, "classes": len(names), "classes_without_images": len(names) - len(np.unique(labels))},
        items=items,
        origin={
            "top1_of_classes": {str(name): float(top1) for name, top1 in of_class if not np.isnan(top1)},
            "confusions": [{"class": names[a], "taken_for": names[b], "images": count} for a, b, count in worst],
        },
    )


def classify(image_embeds, class_embeds, labels: np.ndarray, chunk: int = 4096) -> dict[str, np.ndarray]:
    """Rank the classes for each picture. A class that scores as high as the own one, up to rounding, comes before it.

    Args:
        image_embeds: (I, D) tensor.
        class_embeds: (C, D) tensor.
        labels: (I,) int, the class of each picture.
        chunk: pictures at a time.

    Returns:
        (I,) each: `label` int32; `predicted` int32, the first class; `rank` int32 of the own class, 1 is best; `margin`
        float32, the score of the own class minus the best other one.

    Raises:
        ValueError: an embedding has values that are not finite.
    """
    import torch

    for name, embeds in (("pictures", image_embeds), ("classes", class_embeds)):
        if bad := int((~torch.isfinite(embeds)).any(dim=1).sum()):
            raise ValueError(f"{bad} of {len(embeds)} {name} have embeddings that are not finite: check the checkpoint for NaN")

    tolerance = 8 * torch.finfo(torch.float32).eps * image_embeds.norm(dim=1).max() * class_embeds.norm(dim=1).max()
    found: dict[str, list] = {"predicted": [], "rank": [], "margin": []}
    for at in range(0, len(image_embeds), chunk):
        own = torch.as_tensor(labels[at : at + chunk])[:, None]  # (B, 1)
        scores = image_embeds[at : at + chunk] @ class_embeds.T  # (B, C)
        right = scores.gather(1, own)  # (B, 1)
        best, other = scores.scatter(1, own, -torch.inf).max(dim=1)  # (B,) each
        rank = (scores >= right - tolerance).scatter(1, own, True).sum(dim=1)  # (B,)
        found["rank"].append(rank)
        found["predicted"].append(torch.where(rank == 1, own[:, 0], other))
        found["margin"].append(right[:, 0] - best)
    joined = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return {
        "label": labels.astype(np.int32),
        "predicted": joined["predicted"].astype(np.int32),
        "rank": joined["rank"].astype(np.int32),
        "margin": joined["margin"].astype(np.float32),
    }
