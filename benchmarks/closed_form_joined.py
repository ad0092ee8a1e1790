"""Do prompts gain with the length of a text? Closed-form solutions for texts of several captions of a picture.

    python -m benchmarks.closed_form_joined --data data/flickr8k --joined 1 5 --features runs/closed_form_joined \\
        --json docs/results/closed_form_joined.json

A text is n captions of a picture, joined as sentences (`mpclip.data.joined_captions`); every picture has one text, in training
and in measuring, so that lengths are compared with the same number of texts. All else is as in `benchmarks.closed_form`.

Each length is written to the JSON file when it is solved. The same command with further lengths adds them.
"""

import sys
from pathlib import Path

from benchmarks.closed_form import TOWERS, as_table, row, texts_read, with_intervals
from benchmarks.record import command_parser, provenance
from mpclip.argument_types import count
from mpclip.command import start
from mpclip.files import read_json, write_json
from mpclip.hardware import add_precision, choose_precision

LAYER = 30  # of SmolLM2-135M, its last
COMPARED = tuple(name + words for words in ("", "+words") for name in ("mean_30", "prompt_30"))
BATCH = 8  # texts that run at a time


def joined_features(data: str, split: str, joined: int, folder: Path, precision: str):
    """The `benchmarks.frozen_features.Features` of a split with one text per picture, computed once for a folder.

    Args:
        data, split: pictures with captions, as `load_image_text` takes them.
        joined: captions of a text.
        folder: where they are kept; it is for one data set.
        precision: name of the dtype to compute in.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoImageProcessor, AutoTokenizer

    from benchmarks.frozen_features import Features, image_features, text_features
    from modeling_mpclip import MPCLIPModel
    from mpclip.data.backbones import prepare_backbone
    from mpclip.data.image_text import load_image_text
    from mpclip.data.joined_captions import joined as text_of

    name = "".join(c if c.isalnum() else "_" for c in split)
    files = folder / f"{name}_image.safetensors", folder / f"{name}_{joined}.safetensors"
    rows = load_image_text(data, split)
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        model = MPCLIPModel.from_pretrained_towers(**TOWERS, text_kwargs={"dtype": getattr(torch, precision)})
        model.eval().requires_grad_(False)
        if not files[0].exists():
            processor = AutoImageProcessor.from_pretrained(prepare_backbone(TOWERS["vision"]))
            save_file({"image": image_features(model, processor, rows["image"], precision)}, files[0])
        if not files[1].exists():
            tokenizer = AutoTokenizer.from_pretrained(prepare_backbone(TOWERS["text"]))
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            texts = [text_of(captions, joined) for captions in rows.with_format(None)["captions"][:]]
            found = text_features(model, tokenizer, texts, [LAYER], [LAYER], batch_size=BATCH)
            tokens = sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)
            save_file(found | {"tokens": torch.tensor(tokens)}, files[1])
    text = load_file(files[1])
    tokens = float(text.pop("tokens"))
    return Features(text, load_file(files[0])["image"], torch.arange(len(rows))), tokens


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

    from mpclip.training.ridge import whitened_axes

    precision = choose_precision(options.precision, "cpu")
    result = read_json(options.json)
    solutions, lengths = result.get("solutions", {}), result.get("tokens", {})
    for joined in options.joined:
        read = [
            joined_features(options.data, split, joined, Path(options.features), precision)
            for split in (options.train, options.choose, options.report)
        ]
        training, choose, report = (features for features, _ in read)
        axes, found = whitened_axes(training.image.float()), {}
        for name, parts in texts_read([LAYER], [LAYER]).items():
            forms = ("together", "segments") if name.startswith("prompts") else ("together",)
            found[name] = row(parts, forms, training, choose, report, axes)
        solutions[str(joined)] = with_intervals(found, len(report.image), COMPARED)
        lengths[str(joined)] = round(read[2][1], 1)
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
