"""Sweep the weights of the K segments on a validation split, and report what the chosen ones do on a test split.

    python -m benchmarks.aspect_weights --model runs/flickr8k/multi_prompt --data data/flickr8k \\
        --validation "validation[:50%]" --test "validation[50%:]" --json docs/results/aspect_weights.json

Two tasks: retrieval, both ways, on the data given; and zero-shot classification of OpenMoji drawings into nine categories,
half of the drawings for validation and half for test. Segment k of the text is scaled by w_k (paper, section 1.7: w_1 = 1.25
and the others slightly down, measured here too). First every w_k is swept on its own, which the plot shows; then the best
single change is kept and the sweep repeated, as long as validation gains.

The JSON holds for each task the curves, the chosen weights, and on both splits the metric without weights, with the
chosen ones and with the paper's; differences on test come with a 95% interval (paired bootstrap over pictures). Drawings of
which the scenes are made were seen in training, but not when the weights were chosen.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from benchmarks.record import provenance
from benchmarks.results_tables import weights_table
from eval.intervals import bootstrap_interval
from eval.metrics import recalls_of_images, retrieval_ranks
from modeling_mpclip.segments import weighted
from mpclip.data.image_text import load_image_text
from mpclip.data.openmoji.objects import CATEGORIES, Drawings
from mpclip.encoding import Encoder, encode_dataset, load_encoder
from mpclip.files import write_json

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
PIXELS, MARGIN = 224, 32


def as_in_the_paper(K: int) -> list[float]:
    """The first segment up, the others slightly down."""
    return [1.25, *[0.95] * (K - 1)]


# Tasks: embeddings and weights -> what each picture adds to the metric, in percent ----------------------------------


def retrieval_score(embeds: dict, weights: list[float]) -> np.ndarray:
    """(I,) mean recall of each image and its captions."""
    text = weighted(embeds["text_embeds"], torch.tensor(weights))
    ranks = retrieval_ranks(embeds["image_embeds"], text, embeds["caption_image"])
    return recalls_of_images(*ranks, embeds["caption_image"].numpy())


def classification_score(embeds: dict, weights: list[float]) -> np.ndarray:
    """(I,) 100 where the picture is nearest to its own class, else 0; a tie counts against the model."""
    scores = embeds["image_embeds"] @ weighted(embeds["class_embeds"], torch.tensor(weights)).T  # (I, C)
    right = scores.gather(1, embeds["class"][:, None])  # (I, 1)
    return 100.0 * ((scores >= right).sum(dim=1) == 1).numpy()


def encode_categories(encoder: Encoder) -> tuple[dict, dict]:
    """Embeddings of every drawing alone on white and of the nine categories; validation and test drawings take turns."""
    drawings, parts = Drawings(), []
    table = [(noun, category) for category, nouns in CATEGORIES.items() for noun in nouns]
    for part in (table[::2], table[1::2]):
        pictures = [on_white(drawings.get(noun, PIXELS - 2 * MARGIN)) for noun, _ in part]
        captions = [[f"A picture of {category}."] for _, category in part]
        embeds = encode_dataset(encoder, datasets.Dataset.from_dict({"image": pictures, "captions": captions}))
        classes = {category: i for i, category in enumerate(CATEGORIES)}
        labels = torch.tensor([classes[category] for _, category in part])  # (I,)
        first = [int((labels == i).nonzero()[0]) for i in range(len(classes))]
        parts.append({"image_embeds": embeds["image_embeds"], "class_embeds": embeds["text_embeds"][first], "class": labels})
    return parts[0], parts[1]


def on_white(drawing: Image.Image) -> Image.Image:
    picture = Image.new("RGB", (PIXELS, PIXELS), "white")
    picture.paste(drawing, ((PIXELS - drawing.width) // 2, (PIXELS - drawing.height) // 2), drawing)
    return picture


# The sweep ----------------------------------------------------------------------------------------------------------


def sweep(score: Callable[[list[float]], float], weights: list[float]) -> list[list[float]]:
    """(K, W): the metric with w_k set to each of `WEIGHTS` and the others as they are."""
    return [[score([*weights[:k], w, *weights[k + 1 :]]) for w in WEIGHTS] for k in range(len(weights))]


def choose(score: Callable[[list[float]], float], K: int) -> tuple[list[float], list[list[float]]]:
    """Weights that no change of a single one improves, and the first sweep. Of equals the one nearest to 1 is taken."""
    weights, best = [1.0] * K, score([1.0] * K)
    first = curves = sweep(score, weights)
    while (top := max(max(curve) for curve in curves)) > best + 1e-9:
        k = next(k for k, curve in enumerate(curves) if max(curve) == top)
        equals = [w for w, value in zip(WEIGHTS, curves[k], strict=True) if value == top]
        weights[k], best = min(equals, key=lambda w: abs(w - 1)), top
        curves = sweep(score, weights)
    return weights, first


def measure(score: Callable[[dict, list[float]], np.ndarray], validation: dict, test: dict, K: int) -> dict:
    """Curves and chosen weights of a task on validation, and the metric on both splits, in percent.

    Args:
        score: (embeddings, K weights) -> (I,) what each picture adds to the metric.
        validation, test: embeddings, as `score` takes them.
    """
    chosen, curves = choose(lambda weights: float(score(validation, weights).mean()), K)
    result = {"chosen": chosen, "curves": curves, "validation": {}, "test": {}, "difference": {}}
    for name, weights in {"equal": [1.0] * K, "chosen": chosen, "paper": as_in_the_paper(K)}.items():
        values = score(test, weights)
        result["validation"][name] = float(score(validation, weights).mean())
        result["test"][name] = float(values.mean())
        if name != "equal":
            change = values - score(test, [1.0] * K)  # (I,)
            result["difference"][name] = {"mean": float(change.mean()), "interval_95": bootstrap_interval(change)}
    return result | {"validation_pictures": len(validation["image_embeds"]), "test_pictures": len(test["image_embeds"])}


def plot(tasks: dict[str, dict], path: Path) -> None:
    """The validation metric over each w_k, one panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.6), constrained_layout=True)
    for panel, (name, task) in zip(panels, tasks.items(), strict=True):
        for k, curve in enumerate(task["curves"]):
            panel.plot(WEIGHTS, curve, marker=".", label=f"$w_{k + 1}$")
        panel.axvline(1, color="grey", linewidth=0.8)
        panel.set(title=f"{name}, validation", xlabel="weight of one segment, the others 1", ylabel=task["metric"])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aspect_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint with several prompts; its Python files are run")
    parser.add_argument("--data", required=True, help="images with captions: folder, parquet file or Hub id")
    parser.add_argument("--validation", required=True, metavar="SPLIT", help="on which the weights are chosen")
    parser.add_argument("--test", required=True, metavar="SPLIT", help="on which they are reported")
    parser.add_argument("--json", required=True, metavar="OUT.json", help="result; a plot of the same name goes beside it")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights (%(default)s)")
    options = parser.parse_args(argv)

    encoder = load_encoder(options.model, options.dtype)
    K = encoder.segments
    if K < 2:
        raise SystemExit(f"{options.model} has a single prompt: there is nothing to weigh. Give a multi-prompt checkpoint.")
    splits = (load_image_text(options.data, split) for split in (options.validation, options.test))
    validation, test = (encode_dataset(encoder, rows) for rows in splits)
    drawings = encode_categories(encoder)
    tasks = {
        "retrieval": {"metric": "mean recall"} | measure(retrieval_score, validation, test, K),
        "classification": {
            "metric": "accuracy",
            "largest_category": 100.0 * float(drawings[1]["class"].bincount().max() / len(drawings[1]["class"])),
        }
        | measure(classification_score, *drawings, K),
    }
    command = [part for name, value in vars(options).items() for part in (f"--{name}", str(value))]
    result = {
        "model": options.model,
        "data": options.data,
        "splits": [options.validation, options.test],
        "weights": list(WEIGHTS),
        "paper_weights": as_in_the_paper(K),
        "tasks": tasks,
        **provenance("benchmarks.aspect_weights", command),
    }
    write_json(options.json, result)
    plot(tasks, Path(options.json).with_suffix(".png"))
    print(weights_table(tasks))
    return result


if __name__ == "__main__":
    main()
