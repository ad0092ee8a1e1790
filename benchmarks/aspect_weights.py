"""Choose weights of the K segments on a validation split, and measure on a test split what they gain.

    python -m benchmarks.aspect_weights --model runs/flickr8k/multi_prompt --data data/flickr8k \\
        --validation "validation[:50%]" --test "validation[50%:]" --json docs/results/aspect_weights.json

Segment k of the text embedding is scaled by w_k (paper, section 1.7). There are two tasks: retrieval in both directions on the
given data, and zero-shot classification of OpenMoji drawings into nine categories. Of the drawings, one half is for validation
and the other half for test. A model that was trained on OpenMoji scenes has seen some of the drawings in training.

The weights are those of `eval.weight_search`; the plot shows its first sweep, in which each w_k is varied alone. The paper's
weights are measured too: w_1 = 1.25, the others slightly below 1.

For each task, the JSON file holds the curves, the chosen weights, and on both splits the metric with equal weights, with the
chosen ones and with the paper's. Differences on the test split have a 95% interval (paired bootstrap over pictures).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.record import as_arguments, command_parser, provenance
from benchmarks.results_tables import weights_table
from eval.intervals import bootstrap_interval
from eval.weight_search import WEIGHTS, choose, retrieval_score
from mpclip.command import start
from mpclip.data.openmoji.objects import CATEGORIES, Drawings
from mpclip.files import write_json
from mpclip.hardware import add_precision, choose_precision

if TYPE_CHECKING:
    from mpclip.encoding import Encoder

PIXELS, MARGIN = 224, 32  # of a drawing's picture: its side, and the white border


def as_in_the_paper(K: int) -> list[float]:
    """The paper's weights: the first segment scaled up, the others slightly down."""
    return [1.25, *[0.95] * (K - 1)]


# Tasks: (embeddings, K weights) -> (I,) what each picture adds to the metric, in percent -----------------------------


def classification_score(embeds: dict, weights: list[float]) -> np.ndarray:
    """100 for each picture that is nearest to its own class, else 0; a tie counts as a mistake.

    Args:
        embeds: image_embeds (I, D), class_embeds (C, D), class (I,) the index of each picture's class.
        weights: K weights of the classes' segments.

    Returns:
        (I,) float64.
    """
    import torch

    from modeling_mpclip.segments import weighted

    scores = embeds["image_embeds"] @ weighted(embeds["class_embeds"], torch.tensor(weights)).T  # (I, C)
    right = scores.gather(1, embeds["class"][:, None])  # (I, 1)
    return 100.0 * ((scores >= right).sum(dim=1) == 1).numpy()


def encode_categories(encoder: "Encoder") -> tuple[dict, dict]:
    """Embeddings of the nine categories and of every drawing, alone on white, as `classification_score` takes them.

    Returns:
        Those for validation and those for test: every second drawing of a category each.
    """
    import datasets
    import torch

    from mpclip.encoding import encode_dataset

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
    """The drawing in the middle of a white square of `PIXELS`."""
    picture = Image.new("RGB", (PIXELS, PIXELS), "white")
    picture.paste(drawing, ((PIXELS - drawing.width) // 2, (PIXELS - drawing.height) // 2), drawing)
    return picture


# The measurement -----------------------------------------------------------------------------------------------------


def measure(score: Callable[[dict, list[float]], np.ndarray], validation: dict, test: dict, K: int) -> dict:
    """Choose the weights of a task on validation, and measure them on both splits.

    Args:
        score: (embeddings, K weights) -> (I,) what each picture adds to the metric, in percent.
        validation, test: embeddings, as `score` takes them.
        K: number of weights.

    Returns:
        `chosen` weights; `curves` of the first sweep; `validation` and `test`, the metric in percent with equal, chosen and the
        paper's weights; `difference` on test to equal weights, with its 95% interval; and the numbers of pictures.
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
    """Draw the validation metric over each w_k, a panel for each task, into the PNG `path`."""
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
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.

    Raises:
        SystemExit: the model has a single prompt.
    """
    parser = command_parser("benchmarks.aspect_weights", __doc__)
    parser.add_argument("--model", required=True, help="checkpoint with several prompts; its Python files are run")
    parser.add_argument("--data", required=True, help="images with captions: folder, parquet file or Hub id")
    parser.add_argument("--validation", required=True, metavar="SPLIT", help="split to choose the weights on")
    parser.add_argument("--test", required=True, metavar="SPLIT", help="split to report them on")
    parser.add_argument(
        "--json", required=True, metavar="OUT.json", help="where to write the result, and a plot of the same name"
    )
    add_precision(parser)
    options = parser.parse_args(argv)

    from mpclip.data.image_text import load_image_text
    from mpclip.encoding import encode_dataset, load_encoder

    options.precision = choose_precision(options.precision)  # the result records the dtype that was chosen
    encoder = load_encoder(options.model, options.precision)
    K = encoder.segments
    if K < 2:
        raise SystemExit(f"{options.model} has a single prompt, so there is nothing to weight. Give one with several prompts.")
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
    result = {
        "model": options.model,
        "data": options.data,
        "splits": [options.validation, options.test],
        "weights": list(WEIGHTS),
        "paper_weights": as_in_the_paper(K),
        "tasks": tasks,
        **provenance("benchmarks.aspect_weights", as_arguments(vars(options)), str(encoder.device)),
    }
    write_json(options.json, result)
    plot(tasks, Path(options.json).with_suffix(".png"))
    print(weights_table(tasks))
    return result


if __name__ == "__main__":
    start(main)
