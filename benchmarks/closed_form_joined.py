"""Do prompts gain with the length of a text? Closed-form solutions for texts of several captions of a picture.

    python -m benchmarks.closed_form_joined --data data/flickr8k --joined 1 5 --features runs/closed_form_joined \\
        --json docs/results/closed_form_joined.json

A text is n captions of a picture, joined as sentences (`mpclip.data.joined_captions`); every picture has one text, in training
and in measuring, so that lengths are compared with the same number of texts. All else is as in `benchmarks.closed_form`.

Each length is written to the JSON file when it is solved. The same command with further lengths adds them.
"""

import statistics
import sys

from benchmarks.closed_form import TOWERS, as_table, row, texts_read, with_intervals
from benchmarks.record import command_parser, provenance
from mpclip.argument_types import count
from mpclip.command import start
from mpclip.files import read_json, write_json
from mpclip.hardware import add_precision, choose_precision

LAYER = 30  # of SmolLM2-135M, its last
COMPARED = tuple(name + words for words in ("", "+words") for name in ("mean_30", "prompt_30"))
BATCH = 8  # texts that run at a time


def mean_tokens(data: str, split: str, joined: int) -> float:
    """Mean number of tokens of the texts of a split, prompts not counted."""
    from transformers import AutoTokenizer

    from mpclip.data.backbones import prepare_backbone
    from mpclip.data.image_text import load_image_text
    from mpclip.data.joined_captions import with_joined_captions

    rows = with_joined_captions(load_image_text(data, split), joined)
    tokenizer = AutoTokenizer.from_pretrained(prepare_backbone(TOWERS["text"]))
    return statistics.mean(map(len, tokenizer([text for (text,) in rows.with_format(None)["captions"][:]])["input_ids"]))


def main(argv: list[str] | None = None) -> dict:
    """Solve every length, print the tables and write the JSON file. Returns its content."""
    argv = sys.argv[1:] if argv is None else argv
    parser = command_parser("benchmarks.closed_form_joined", __doc__)
    parser.add_argument("--data", required=True, help="pictures with captions, with a split 'train'")
    parser.add_argument("--joined", type=count, nargs="+", default=[1, 5], help="captions of a text (default: %(default)s)")
    parser.add_argument("--train", default="train", help="split that is solved on (%(default)s)")
    parser.add_argument("--choose", default="validation[:50%]", help="split on which the ridge is chosen (%(default)s)")
    parser.add_argument("--report", default="validation[50%:]", help="split that is reported (%(default)s)")
    parser.add_argument("--features", required=True, help="folder in which the features are kept")
    parser.add_argument("--json", required=True, metavar="OUT.json", help="where to write the result")
    add_precision(parser)
    options = parser.parse_args(argv)

    from benchmarks.frozen_features import features
    from mpclip.training.ridge import whitened_axes

    precision = choose_precision(options.precision, "cpu")
    result = read_json(options.json)
    solutions, lengths = result.get("solutions", {}), result.get("tokens", {})
    for joined in options.joined:
        read = {"prompt_layers": [LAYER], "mean_layers": [LAYER], "precision": precision, "joined": joined, "batch_size": BATCH}
        training, choose, report = (
            features(options.data, split, options.features, TOWERS, **read)
            for split in (options.train, options.choose, options.report)
        )
        axes, found = whitened_axes(training.image.float()), {}
        for name, parts in texts_read([LAYER], [LAYER]).items():
            forms = ("together", "segments") if name.startswith("prompts") else ("together",)
            found[name] = row(parts, forms, training, choose, report, axes)
        solutions[str(joined)] = with_intervals(found, len(report.image), COMPARED)
        lengths[str(joined)] = round(mean_tokens(options.data, options.report, joined), 1)
        print(f"\n{joined} captions, {lengths[str(joined)]} tokens\n\n{as_table(solutions[str(joined)])}", flush=True)
        told, before = provenance("benchmarks.closed_form_joined", argv), result.get("commands", [])
        result = {
            "about": "Ridge regressions from frozen states of texts of several captions to frozen pictures.",
            "data": options.data,
            "splits": [options.choose, options.report],
            "train": options.train,
            "towers": TOWERS,
            "dtype": precision,
            "tokens": dict(sorted(lengths.items())),
            "solutions": dict(sorted(solutions.items())),
            "commands": list(dict.fromkeys([*before, told["command"]])),
        } | told
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    start(main)
