"""Writes a report on a model as one HTML file: results, what each prompt does, maps, failures, weights and cost.

    mpclip report --model runs/demo/multi_prompt --data runs/demo/scenes --split test --out report.html
    mpclip report --model runs/mine --data photos --split validation --limit 500 --out quick_look.html
    mpclip report --model runs/mine --data photos --split test --fit_split validation --out report.html
    mpclip report --model openai/clip-vit-base-patch32 --data jxie/flickr8k --split test --out clip.html

The file needs no network and no other file: pictures are in it, small. It can be read on a phone and in dark mode, and be
printed. It shows pictures and captions of the data, so pass it on only where the data may go.

Any model that `mpclip eval` takes has a report. One without prompts, such as a CLIP, has no sections on prompts, maps and
weights; they say so. Embeddings are kept on disk and shared with `mpclip eval`, so a second report takes little time.

The Python files of a checkpoint are run: report only on checkpoints that you trust.
"""

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path

from eval.options import add_embedding_options
from mpclip.command import start
from mpclip.data.reading import reading_given, reading_of

STAGES = 6


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="folder or Hub id of an MP-CLIP, CLIP, SigLIP or sentence-transformers model"
    )
    parser.add_argument("--data", required=True, help="pictures with captions: whatever --dataset of training takes")
    parser.add_argument("--split", default="test", help="name of the split, or a part as 'test[:500]' (default: %(default)s)")
    parser.add_argument("--fit_split", metavar="SPLIT", help="also fit aspect weights on this other split")
    parser.add_argument("--out", required=True, type=Path, metavar="OUT.html", help="the file to write")
    add_embedding_options(parser)
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m mpclip.report") -> None:
    """The command. torch is loaded when it runs, and not for `--help`.

    Args:
        arguments: words of the command line; None takes those of the process.
        prog: name of the command in messages.

    Raises:
        SystemExit: code 2 for a wrong command line; code 1 and one line for an error that the user can fix.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    try:
        print(run(options, [*prog.split(), *arguments]))
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {' '.join(str(error).split())}") from error


def run(options: argparse.Namespace, command: list[str]) -> str:
    """Measure, write the page, and return what to print.

    Args:
        options: as parsed by `make_parser`.
        command: words of the command, which the page names.
    """
    if options.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {options.out}: expected a name that ends in .html")
    started = time.monotonic()

    from accelerate import PartialState

    from eval.evaluate import cache_of, open_encoder, short_names
    from eval.tasks import prompts, retrieval
    from mpclip.data.skipped import count_skipped
    from mpclip.encoding import encode_dataset, refuse_unfit

    from . import content
    from .cost import AT_ONCE, RUNS, cost
    from .page import write_report

    refuse_unfit(options.model)
    stage(1, "reading the data")
    with count_skipped() as skipped:
        data = prompts.Prompts(options).load(options.data, options.split, options.limit, **reading_of(options))
    rows, left_out = data.rows, dict(skipped)
    stage(2, "embedding pictures and captions")
    encoder, how = open_encoder(options, PartialState(cpu=options.device == "cpu"), pictures=True)
    K, encoding = encoder.segments, {"batch_size": options.batch_size, "cache": cache_of(options)}
    names = names_of(encoder)
    if options.fit_split and K == 1:
        raise ValueError(f"--fit_split: {encoder.name} has no prompts whose weights could be fitted: leave it out")
    embeds = encode_dataset(encoder, rows, **encoding)
    fit = encode_dataset(encoder, data.fit, **encoding) if data.fit is not None else None
    stage(3, "retrieval and failures")
    captions = [caption for row in rows.with_format(None)["captions"][:] for caption in row]
    labels = content.labels_of(names) if K > 1 else ["score"]
    page = content.of_retrieval(retrieval.measure(embeds, captions))
    page["failures"] = content.of_failures(embeds, rows, labels)
    stage(4, "what each prompt does")
    page |= {"prompts": None, "weights": None, "no_prompts": NO_PROMPTS.format(without(encoder))}
    if K > 1:
        result = prompts.measure(embeds, K, fit)
        page["prompts"] = content.of_prompts(result, embeds, rows, names, templates_of(encoder))
        page["weights"] = content.of_weights(result, embeds, labels, options.fit_split)
    stage(5, "maps")
    page |= {"labels": labels, "maps": None, "no_maps": "Maps are drawn of MP-CLIP models alone."}
    if is_ours(encoder):
        try:
            page["maps"] = content.of_maps(encoder, rows)
        except ValueError as error:  # such as a pooling that reads no places
            page["no_maps"] = f"This model has no such maps. {error}"
    stage(6, "what it costs")
    few = [rows[i]["image"] for i in range(min(AT_ONCE, len(rows)))]
    page |= {"cost": cost(encoder, captions, few), "runs": RUNS, "machine": machine_in_words(how)}
    (name,) = short_names([options.model])
    page |= {"name": name, "data_name": Path(options.data).name or options.data, "split": options.split, "limit": options.limit}
    page |= {"left_out": left_out, "made": made(options, how, command)}
    size = write_report(page, options.out)
    return f"written: {options.out} ({size / 1e6:.1f} MB, {time.monotonic() - started:.0f} seconds). Open it in a browser."


NO_PROMPTS = "{}, so there are no segments to compare or to weight."


def stage(number: int, title: str) -> None:
    """Say on stderr what is done now."""
    print(f"Report, {number} of {STAGES}: {title}", file=sys.stderr, flush=True)


def is_ours(encoder) -> bool:
    """Whether an encoder's model is MP-CLIP's, so that maps can be drawn."""
    from mpclip.encoding import ModelEncoder

    return isinstance(encoder, ModelEncoder)


def without(encoder) -> str:
    """Why a model has no segments, as the beginning of a sentence."""
    if not is_ours(encoder):
        return "This model has no prompts"
    joint = encoder.model.config.joint_projection
    return "Every segment of this model reads all prompts" if joint else "This model reads a text through a single prompt"


def names_of(encoder) -> list[str]:
    """A name for each prompt."""
    from eval.aspects import names_of_aspects

    return names_of_aspects(encoder)


def templates_of(encoder) -> list[str]:
    """The prompts as people read them, with the words that adaptive tokens started from, where these are known."""
    from mpclip.maps.prompt_maps import prompt_names
    from mpclip.search.queries import initial_words
    from mpclip.search.weights import filled_templates

    return filled_templates(prompt_names(encoder.model.config), initial_words(encoder.name))


def machine_in_words(how: dict) -> str:
    """The machine and the dtype, from what `eval.evaluate.open_encoder` tells."""
    machine = how["machine"]
    where = [machine[part] for part in ("gpu", "cpu") if machine.get(part)] + [f"{machine['cores']} cores"]
    versions = [f"{name} {machine[name]}" for name in ("torch", "transformers")]
    return f"{', '.join(where)}; computed in {how['dtype']}; {', '.join(versions)}"


def made(options: argparse.Namespace, how: dict, command: list[str]) -> list[tuple[str, str]]:
    """How the report is made again: name and value of each line."""
    from mpclip.encoding.fingerprint import weights_fingerprint

    read = [(name.replace("_", " "), str(value)) for name, value in reading_given(options).items()]
    return [
        ("command", shlex.join(command)),
        ("model", options.model),
        ("weights", str(weights_fingerprint(options.model))),
        ("data", f"{options.data}, split {options.split}"),
        *read,
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]


if __name__ == "__main__":
    start(main)
