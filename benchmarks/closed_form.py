"""What the frozen towers know: both projections solved in closed form, without a step of training.

    python -m benchmarks.closed_form --data data/flickr8k --choose "validation[:50%]" --report "validation[50%:]" \\
        --features runs/closed_form --json docs/results/closed_form.json
    python -m benchmarks.closed_form --data data/flickr8k --start "<|endoftext|>" --photos 6000 \\
        --features runs/closed_form --json docs/results/closed_form_start.json
    python -m benchmarks.closed_form --data data/flickr8k --quick --features runs/closed_form

A text is a set of vectors from the frozen LLM (`benchmarks.frozen_features`): the ends of six prompts or of one, the mean of
the states of its tokens, the mean of its input embeddings ("words"). A picture is the mean of its tokens, in the coordinates of
its principal axes, each divided by the square root of its variance plus that of the average axis times WHITENING. A ridge
regression predicts the picture from all vectors of the text; the match is the cosine of prediction and picture. The ridge is
chosen on the pictures of --choose, and recall is reported on those of --report, with a 95% bootstrap interval over pictures.

"together": one matrix takes all vectors to all dimensions. "segments": vector k takes part in segment k alone, as in the paper.
Its matrix is the best one of rank D / K under the solution, and segment k of the picture is read in the same directions.
"""

import sys
from functools import cache

import numpy as np

from benchmarks.record import command_parser, provenance
from eval.tables import markdown_table
from mpclip.argument_types import count
from mpclip.command import start
from mpclip.files import write_json
from mpclip.hardware import add_precision, choose_precision

DIMENSIONS = 768  # of an embedding in segments
PROMPT_LAYERS = [12, 20, 24, 28, 30]
MEAN_LAYERS = [2, 16, 30]
TOWERS = {
    "text": "smollm2-135m",
    "vision": "efficientnet-lite0",
    "templates": [f"The [APT-{i}]:" for i in range(1, 7)],
    "negated_templates": [],
    "adaptive_init": ["picture", "subject", "action", "place", "color", "number"],
}
BASELINES = ("mean_30", "prompt_30")
METRICS = ("mean_recall", "t2i_R@1", "i2t_R@1")


def texts_read(layers_of_prompts: list[int], layers_of_means: list[int]) -> dict[str, tuple[tuple[str, int | None], ...]]:
    """Name of a row -> (name of a feature, how many of its vectors, or all) for each part. "prompt_D" is the first prompt."""
    rows = {f"mean_{d}": ((f"mean {d}", None),) for d in layers_of_means}
    for d in layers_of_prompts:
        rows |= {f"prompt_{d}": ((f"prompts {d}", 1),), f"prompts_{d}": ((f"prompts {d}", None),)}
    words = ("words", None)
    return {"words": (words,)} | rows | {f"{name}+words": (*parts, words) for name, parts in rows.items()}


def design(features, parts, like=None):
    """The vectors of texts as (T, n, H) float32, centred and of mean squared length 1, by the statistics of `like`.

    Args:
        features: a `Features`.
        parts: as from `texts_read`.
        like: the `Features` of the training pictures, or None for these themselves.
    """
    import torch

    def joined(of):
        return torch.cat([of.text[name][:, :vectors].float() for name, vectors in parts], dim=1)  # (T, n, H)

    x, reference = joined(features), joined(like or features)
    mean = reference.mean(dim=0)  # (n, H)
    length = (reference - mean).square().sum(dim=-1).mean(dim=0).sqrt()  # (n,)
    return (x - mean) / length[:, None]


def regression(x, y, owner):
    """The `mpclip.training.ridge.Ridge` from all vectors of a text to its picture.

    Args:
        x: (T, n, H), as from `design`.
        y: (I, r), of the pictures.
        owner: (T,), the picture of each text.
    """
    from mpclip.training.ridge import Ridge, Sums

    return Ridge(Sums.of(x.flatten(1), y[owner]), [x.shape[2]] * x.shape[1])


def together(x, matrices, y, training):
    """Texts (T, r) and pictures (I, r) by all matrices at once."""
    import torch

    return torch.einsum("tnh,nhr->tr", x, matrices), y


def in_segments(x, matrices, y, training):
    """Texts (T, D) and pictures (I, D): segment k of both in the D / n directions that vector k predicts most of."""
    import torch

    size = DIMENSIONS // len(matrices)
    texts, pictures = [], []
    for k, matrix in enumerate(matrices):
        predicted = training[:, k] @ matrix  # (T', r)
        _, directions = torch.linalg.eigh(predicted.T @ predicted)
        directions = directions[:, -size:]  # (r, D / n)
        texts.append(x[:, k] @ matrix @ directions)
        pictures.append(y @ directions)
    return torch.cat(texts, dim=1), torch.cat(pictures, dim=1)


FORMS = {"together": together, "segments": in_segments}


def measure(form, x, matrices, y, training, owner) -> dict:
    """The items of retrieval (`eval.metrics.retrieval_items`) by one form of the solution."""
    from torch.nn.functional import normalize

    from eval.metrics.retrieval import retrieval_items

    texts, pictures = FORMS[form](x, matrices, y, training)
    return retrieval_items(normalize(pictures, dim=-1), normalize(texts, dim=-1), owner)


def row(parts, forms, training, choose, report, axes) -> dict[str, dict]:
    """Form -> `ridge`, `metrics`, `choose` (mean recall where the ridge was chosen), and `items` of the reported pictures."""
    from eval.metrics.retrieval import retrieval_measures
    from mpclip.training.ridge import RIDGES

    mean, project = axes
    x = design(training, parts)
    solved = regression(x, (training.image.float() - mean) @ project, training.owner)
    measured = [(of, design(of, parts, training), (of.image.float() - mean) @ project) for of in (choose, report)]
    found: dict[str, dict] = {}
    for strength in RIDGES:
        matrices = solved.solve(strength).view(*x.shape[1:], -1)  # (n, H, r)
        for form in forms:
            items = [measure(form, texts, matrices, y, x[::4], of.owner) for of, texts, y in measured]
            metrics = [
                retrieval_measures(one, np.ones(len(of.image), int)) for one, (of, *_) in zip(items, measured, strict=True)
            ]
            if form not in found or metrics[0]["mean_recall"] > found[form]["choose"]:
                found[form] = {"ridge": strength, "choose": metrics[0]["mean_recall"], "metrics": metrics[1], "items": items[1]}
    return found


def interval(items: dict, pictures: int, against: dict | None = None) -> list[float]:
    """95% interval of the mean recall, or of its difference to that of `against`."""
    from eval.intervals import bootstrap
    from eval.metrics.retrieval import retrieval_measures

    return bootstrap(retrieval_measures, items, pictures, against, samples=500)["mean_recall"]


def with_intervals(
    found: dict[str, dict[str, dict]], pictures: int, baselines: tuple[str, ...] = BASELINES
) -> dict[str, dict[str, dict]]:
    """Text -> form -> its solution without items, with its interval and its differences to some texts."""
    told: dict[str, dict[str, dict]] = {}
    for text, forms in found.items():
        for form, one in forms.items():
            differences = {}
            for name in baselines:
                base = found[name]["together"]
                differences[name] = {
                    "mean": one["metrics"]["mean_recall"] - base["metrics"]["mean_recall"],
                    "interval_95": interval(one["items"], pictures, base["items"]),
                }
            kept = {name: value for name, value in one.items() if name != "items"}
            kept |= {"interval_95": interval(one["items"], pictures), "differences": differences}
            told.setdefault(text, {})[form] = kept
    return told


def as_table(rows: dict[str, dict[str, dict]]) -> str:
    """Text -> form -> solution, as Markdown."""
    cells = [
        [text.replace("_", " ").replace("+", " + "), form, *(one["metrics"][m] for m in METRICS), f"{one['ridge']:g}"]
        for text, forms in rows.items()
        for form, one in forms.items()
    ]
    return markdown_table(["text", "form", "mean recall", "T2I R@1", "I2T R@1", "ridge"], cells)


def main(argv: list[str] | None = None) -> dict:
    """Solve every row, print the table and write the JSON file. Returns its content."""
    argv = sys.argv[1:] if argv is None else argv
    parser = command_parser("benchmarks.closed_form", __doc__)
    parser.add_argument("--data", required=True, help="pictures with captions, with a split 'train'")
    parser.add_argument("--choose", default="validation[:50%]", help="split on which the ridge is chosen (%(default)s)")
    parser.add_argument("--report", default="validation[50%:]", help="split that is reported (%(default)s)")
    parser.add_argument(
        "--photos", type=count, nargs="+", default=[6000, 1000, 300, 100], help="training pictures, the first ones"
    )
    parser.add_argument("--start", default="", help="tokens in front of every text, such as '<|endoftext|>'")
    parser.add_argument("--features", required=True, help="folder in which the features are kept")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--quick", action="store_true", help="100 pictures and a few rows only")
    add_precision(parser)
    options = parser.parse_args(argv)

    from benchmarks.frozen_features import features
    from mpclip.training.ridge import AXES, RIDGES, WHITENING, whitened_axes

    precision = choose_precision(options.precision, "cpu")

    @cache
    def of(split: str):
        read = {"prompt_layers": PROMPT_LAYERS, "mean_layers": MEAN_LAYERS, "start": options.start, "precision": precision}
        return features(options.data, split, options.features, TOWERS, **read)

    training, choose, report = of("train"), of(options.choose), of(options.report)
    everything = texts_read(PROMPT_LAYERS, MEAN_LAYERS)
    few = ["words", *(name + words for words in ("", "+words") for name in (*BASELINES, "prompts_30"))]
    record = {
        "about": "Ridge regressions from frozen states of texts to frozen pictures: the first split chooses the ridge.",
        "data": options.data,
        "splits": [options.choose, options.report],
        "towers": TOWERS,
    }
    record |= {"start": options.start, "axes": AXES, "whitening": WHITENING, "ridges": RIDGES, "dtype": precision}
    rows = {}
    for photos in [100] if options.quick else options.photos:
        some = training.first(photos)
        axes = whitened_axes(some.image.float())
        found: dict[str, dict[str, dict]] = {}
        for name in everything if photos == max(options.photos) and not options.quick else few:
            forms = ("together", "segments") if name.startswith("prompts") else ("together",)
            found[name] = row(everything[name], forms, some, choose, report, axes)
            print(photos, as_table({name: found[name]}).partition("\n")[2].partition("\n")[2], flush=True)
        rows[str(photos)] = with_intervals(found, len(report.image))
        result = record | {"solutions": rows} | provenance("benchmarks.closed_form", argv)
        if options.json:
            write_json(options.json, result)
    for photos, told in rows.items():
        print(f"\n{photos} photos\n\n{as_table(told)}")
    return result


if __name__ == "__main__":
    start(main)
