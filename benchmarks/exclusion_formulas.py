"""Which formula makes of a query and an excluded text the best query: the trials behind `exclude=`.

    python -m benchmarks.exclusion_formulas --model runs/flickr8k/multi_prompt --choose data/flickr8k "validation[:50%]" \\
        --report data/flickr8k "validation[50%:]" --json docs/results/exclusion_formulas/flickr8k.json

The queries are the pairs (X, Y) of `python -m eval exclusion`; t is the embedding of X, x that of Y, v that of a picture. Every
formula is measured by the recall of X that it loses against the plain query t, in points, and by the share of Y among the first
five pictures that it leaves, in percent of the plain query's. The aim is to leave at most 50 and to lose at most 3.

Formulas and strengths are to be chosen on the pictures of --choose. On those of --report the figures have a 95% interval over
pairs. There, they are also measured with three excluded texts: Y and two other things, drawn at random.

Most formulas make a vector that any index can search with. "Scores" need a second look at the pictures. The last row leaves out
all pictures whose captions or descriptions tell that they show Y: the best that is possible.
"""

import numpy as np

from benchmarks.record import command_parser, provenance
from eval.tables import markdown_table
from eval.tasks.exclusion import Exclusion
from mpclip.command import start
from mpclip.files import write_json
from mpclip.hardware import add_precision, choose_precision

TOP, TOGETHER = 5, 3  # as in `python -m eval exclusion`
PARTS = {"choose": "chosen on", "report": "reported on", "three": "reported on, three texts excluded"}
KNOWN = "pictures of Y left out, as captions or descriptions tell"


def formulas(t, x, both, words, images, K: int) -> dict:
    """The scores of all pictures by every formula.

    Args:
        t: (P, D) tensor, of the texts X.
        x: (P, E, D), of the E excluded texts of each.
        both, words: (P, D), of "X and Y" and "X without Y".
        images: (I, D).
        K: number of segments.

    Returns:
        Name -> (P, I) tensor. The plain query's name is "plain".
    """
    total = x.sum(dim=1)  # (P, D)
    apart = total - (x @ t[:, :, None]).sum(dim=1) * t  # (P, D) without the part along t
    segments, excluded = t.unflatten(1, (K, -1)), total.unflatten(1, (K, -1))  # (P, K, d)
    along = (segments * excluded).sum(2, keepdim=True) / segments.square().sum(2, keepdim=True)  # (P, K, 1)
    apart_by_segment = (excluded - along * segments).flatten(1)  # (P, D)
    rest = t
    for one in x.unbind(dim=1):
        rest = rest - (rest * one).sum(1, keepdim=True) * one  # (P, D)
    queries = {"plain": t, '"X without Y" in words': words}
    queries |= {f"t - {s} x" if s != 1 else "t - x (formerly)": t - s * total for s in (0.3, 0.5, 1)}
    queries |= {f"t - {s} (x - (x.t) t)": t - s * apart for s in (0.3, 0.5, 0.7, 1)}
    queries |= {"the same with 0.5, in each segment": t - 0.5 * apart_by_segment, "t - (t.x) x": rest}
    queries |= {'t - 0.5 ("X and Y" - t)': t - 0.5 * (both - t)}
    scores = {name: query @ images.T for name, query in queries.items()}  # (P, I) each
    of_excluded = x @ images.T  # (P, E, I)
    high = of_excluded - of_excluded.median(dim=2, keepdim=True).values
    scores["scores v.t - max(0, v.x - median of v.x)"] = scores["plain"] - high.clamp(min=0).sum(dim=1)
    much = of_excluded > of_excluded.quantile(0.9, dim=2, keepdim=True)
    scores["scores v.t, without the tenth of highest v.x"] = scores["plain"] - 10.0 * much.any(dim=1)
    return scores


def measure(scores: dict, wanted: np.ndarray, unwanted: np.ndarray, intervals: bool) -> dict:
    """Recall lost and Y left by every formula.

    Args:
        scores: as from `formulas`.
        wanted, unwanted: (P, I) bool, whether a picture shows X, and Y.
        intervals: whether to compute intervals.

    Returns:
        Formula -> `lost`, `left`, and maybe their intervals; in addition `plain`, its recall and share of Y in percent.

    Raises:
        ValueError: the plain queries find no Y, so nothing can be left out.
    """
    from eval.intervals import bootstrap
    from eval.metrics.unwanted import found_first

    scores = {name: values.numpy() for name, values in scores.items()}
    scores |= {KNOWN: scores["plain"] - 10.0 * unwanted}

    def counted(way: str, name: str) -> dict:
        found = found_first(scores[name], wanted, unwanted, TOP)
        return {f"{way}_recall": found.wanted, f"{way}_pure": found.pure, f"{way}_unwanted": found.unwanted}

    common = {
        "can_recall": wanted.sum(axis=1).clip(max=TOP),
        "can_pure": (wanted & ~unwanted).sum(axis=1).clip(max=TOP),
        "first": np.full(len(wanted), TOP),
        **counted("plain", "plain"),
        **counted("words", "plain"),
    }
    result: dict = {}
    for name in scores:
        items = common | counted("exclude", name)
        metrics = Exclusion.metrics_of(items, np.ones(len(wanted), dtype=int))
        if name == "plain":
            result[name] = {"recall": metrics["plain_recall"], "unwanted": metrics["plain_unwanted"]}
            if not metrics["plain_unwanted"]:
                raise ValueError("the plain queries find no picture of Y, so nothing can be left out: give more pictures")
            continue
        result[name] = {short: metrics[f"exclude_{short}"] for short in ("lost", "left")}
        if intervals:
            drawn = bootstrap(Exclusion.metrics_of, items, len(wanted))
            result[name] |= {f"{short}_interval": drawn[f"exclude_{short}"] for short in ("lost", "left")}
    return result


def measure_data(encoder, data: str, split: str, parts: dict[str, int], **encoding) -> dict:
    """The trials on some pictures.

    Args:
        encoder: an `mpclip.encoding.Encoder`.
        data, split: the pictures.
        parts: name of each trial -> number of excluded texts.
        encoding: options of `encode_texts` and `encode_images`.

    Returns:
        Name of the trial -> as from `measure`, with `data`, `split`, and the numbers of pictures and pairs.
    """
    import torch

    from mpclip.data.exclusion_queries import exclusion_pairs, things_of
    from mpclip.data.image_text import load_image_text
    from mpclip.encoding import encode_images, encode_texts

    rows = load_image_text(data, split)
    things = things_of(rows)
    pairs = exclusion_pairs(things, TOGETHER, TOP)  # (P, 2)
    names = [(things.names[x], things.names[y]) for x, y in pairs]
    told = [f"{x} {word} {y}" for word in ("and", "without") for x, y in names]
    embeds = encode_texts(encoder, things.names + told, **encoding)
    images = encode_images(encoder, rows, **encoding)
    both, words = embeds[len(things.names) :].chunk(2)  # (P, D) each
    wanted, unwanted = things.shown.T[pairs[:, 0]], things.shown.T[pairs[:, 1]]  # (P, I)
    others = np.random.default_rng(0).integers(len(things.names), size=(len(pairs), 2))  # (P, 2)
    excluded = torch.from_numpy(np.concatenate([pairs[:, 1:], others], axis=1))  # (P, 3)
    about = {"data": data, "split": split, "images": len(images), "pairs": len(pairs)}
    trials = {}
    for part, count in parts.items():
        scores = formulas(embeds[pairs[:, 0]], embeds[excluded[:, :count]], both, words, images, encoder.segments)
        trials[part] = about | {"formulas": measure(scores, wanted, unwanted, intervals=part == "report")}
    return trials


def formulas_table(result: dict) -> str:
    """The trials as a Markdown table.

    Args:
        result: content of the JSON file.
    """

    def cell(of: dict, short: str) -> str:
        interval = of.get(f"{short}_interval")
        return f"{of[short]:.1f}" + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")

    head = ["formula", *(f"{words}: {what}" for words in PARTS.values() for what in ("lost", "left"))]
    rows = [
        [name, *(cell(result[part]["formulas"][name], short) for part in PARTS for short in ("lost", "left"))]
        for name in result["report"]["formulas"]
        if name != "plain"
    ]
    return markdown_table(head, rows)


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    import sys

    argv = sys.argv[1:] if argv is None else argv
    parser = command_parser("benchmarks.exclusion_formulas", __doc__)
    parser.add_argument("--model", required=True, help="any model with pictures and texts; its Python files are run")
    parser.add_argument("--choose", required=True, nargs=2, metavar=("DATA", "SPLIT"), help="pictures to choose a formula on")
    parser.add_argument("--report", required=True, nargs=2, metavar=("DATA", "SPLIT"), help="other pictures to report on")
    parser.add_argument("--json", required=True, metavar="OUT.json", help="where to write the result")
    parser.add_argument("--cache", metavar="FOLDER", help="keep embeddings there, for a later run")
    add_precision(parser)
    options = parser.parse_args(argv)

    from mpclip.encoding import load_encoder

    encoder = load_encoder(options.model, choose_precision(options.precision))
    result = {
        "model": options.model,
        "top": TOP,
        **measure_data(encoder, *options.choose, {"choose": 1}, cache=options.cache),
        **measure_data(encoder, *options.report, {"report": 1, "three": 3}, cache=options.cache),
        **provenance("benchmarks.exclusion_formulas", argv, str(encoder.device)),
    }
    write_json(options.json, result)
    print(formulas_table(result))
    return result


if __name__ == "__main__":
    start(main)
