"""Search a collection of pictures by text or by picture: build an index, query it.

    mpclip search build --model runs/demo/multi_prompt --data photos --index runs/photos
    mpclip search build --model you/your-model --data jxie/flickr8k --split test --index runs/flickr --kind hnsw
    mpclip search query --index runs/photos "a street" --weights color=1.5 --exclude cars --html found.html
    mpclip search query --index runs/photos "the same in winter" --image photo.jpg --top 20

A build that was killed goes on where it was when started again. Started again later, it adds new pictures, drops those that are
gone, and takes up captions that were corrected. A picture is known by its content: one that was moved or renamed, and one of a
folder that was, is not embedded again. One with several names is embedded once and shown with all of them. In a folder, picture
files of every format that Pillow reads are found, whatever their names. Those that cannot be read are named and left out.

An embedding has a segment for each of the model's prompts, its aspects; --weights says how much each counts. Results end with
the names of the aspects: what their prompts do not share, or the words that training gave them.

Both commands find damaged files. They trust a file whose size and date are still those of the last check, and hash the others.
Only --verify finds a file that was changed and then given its old date back.

Both commands run the Python files that come with the checkpoint (trust_remote_code=True), and a query opens the checkpoint that
the index names. Give only checkpoints and indexes you trust, or name the checkpoint yourself with --model.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mpclip.argument_types import count
from mpclip.command import Stoppable, next_steps
from mpclip.data.reading import add_reading_options, reading_given, reading_of
from mpclip.files import write_json
from mpclip.hardware import add_precision, usable_device
from mpclip.progress import printable
from mpclip.search.stores import KINDS, STORES
from mpclip.search.weights import listed, read_weights, split_off

if TYPE_CHECKING:
    from mpclip.search.search import Answer

BUILD = """Make an index of pictures, or bring one up to date.

    mpclip search build --model runs/demo/multi_prompt --data photos --index runs/photos
    mpclip search build --model you/your-model --data jxie/flickr8k --split test --index runs/flickr --kind hnsw
    mpclip search build --model runs/mine --data photos --index runs/photos --verify     # later: what is new, gone or damaged
    mpclip search build --model runs/mine --embeddings runs/laion --index runs/laion_index --kind ivfpq --processes 8

After Ctrl-C or a kill, the same command goes on: pictures are embedded once, but for the last few hundred.
"""
QUERY = """Find pictures by texts, by pictures, or by both.

    mpclip search query --index runs/photos "a street" "a dog on a beach" --html found.html
    mpclip search query --index runs/photos "a street" --exclude cars --weights 1,1,1.5,1,1,1 --json found.json
    mpclip search query --index runs/photos "the same in winter" --image photo.jpg --top 20
    mpclip search query --index runs/photos --file queries.txt --html found.html
"""


def main(arguments: list[str] | None = None, prog: str = "python -m mpclip.search") -> None:
    """The command. torch is loaded when `build` or `query` runs, and not for `--help`.

    Args:
        arguments: those after `python -m mpclip.search`; by default the ones of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with Stoppable(prog, arguments) as stoppable:
        _run(arguments, prog, stoppable)


def _run(arguments: list[str], prog: str, stoppable: Stoppable) -> None:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="build|query", required=True)

    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    build = commands.add_parser("build", help="make an index, or bring one up to date", description=BUILD, **raw)
    build.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id; its Python files are run")
    source = build.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="folder of pictures; with --split a data set: folder, parquet, Hub id")
    source.add_argument("--embeddings", metavar="FOLDER", help="what mpclip embed has written; nothing is embedded again")
    build.add_argument("--split", help="split of a data set, such as validation or test")
    build.add_argument("--index", required=True, metavar="FOLDER", help="folder of the index")
    build.add_argument("--store", choices=STORES, default="faiss", help="library that searches (default: %(default)s)")
    build.add_argument(
        "--kind",
        choices=KINDS,
        default="flat",
        help="flat: exact; hnsw: a graph, far faster on a million pictures; ivfpq: a sixteenth of the memory (default: flat)",
    )
    build.add_argument(
        "--processes", type=count, default=1, help="that read --embeddings and make codes of ivfpq (default: %(default)s)"
    )
    build.add_argument("--batch_size", type=count, default=64, help="pictures at a time (default: %(default)s)")
    add_precision(build)
    build.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    build.add_argument("--verify", action="store_true", help="hash all files of the index and all weights")
    add_reading_options(build)
    build.set_defaults(run=_build)

    query = commands.add_parser("query", help="find pictures", description=QUERY, **raw)
    query.add_argument("texts", nargs="*", metavar="TEXT", help="a query; may be repeated")
    query.add_argument("--index", required=True, metavar="FOLDER", help="folder of the index")
    query.add_argument("--file", type=Path, help="more queries, one per line")
    query.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture as the query, may be repeated; with texts, part of each query: the mean of the normalised embeddings",
    )
    query.add_argument("--exclude", action="append", default=[], metavar="TEXT", help="what not to find; may be repeated")
    query.add_argument(
        "--weights",
        nargs="+",
        action=WeightsThenTexts,
        metavar="W",
        help="a weight for each of the model's aspects in their order, such as 1,1,1.5; or some by name or number, such as "
        "color=1.5 or 3=1.5, and 1 for the others",
    )
    query.add_argument("--top", type=count, default=10, help="pictures per query (default: %(default)s)")
    query.add_argument("--html", type=Path, metavar="OUT.html", help="write a page of thumbnails")
    query.add_argument("--json", type=Path, metavar="OUT.json", help="write the results, with the score of every aspect")
    query.add_argument("--model", help="checkpoint, if it is no longer where it was")
    query.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    query.add_argument("--verify", action="store_true", help="hash all files of the index and all weights first")
    query.set_defaults(run=_query, texts_after_weights=[])

    options = parser.parse_args(arguments)
    if options.run is _build:
        stoppable.kept = f"What is embedded is kept in {options.index}, but for the last few hundred pictures."
    try:
        options.run(options)
    except (ImportError, OSError, ValueError) as error:  # what the user can mend, on one line
        raise SystemExit(f"{parser.prog}: {' '.join(str(error).split())}") from error


class WeightsThenTexts(argparse.Action):
    """Takes weights, and leaves the queries that follow them to `texts_after_weights`."""

    def __call__(self, parser, namespace, values, option_string=None):
        weights, texts = split_off(values)
        if not weights:
            parser.error(f"--weights {values[0]!r}: expected numbers such as 1,1,1.5, or NAME=NUMBER")
        namespace.weights = [*(namespace.weights or []), *weights]
        namespace.texts_after_weights = [*namespace.texts_after_weights, *texts]


def _build(options: argparse.Namespace) -> None:
    if options.embeddings:
        _build_from_embeddings(options)
        return
    from mpclip.search.build import build_index, precision_of_build

    if options.split is None and (given := reading_given(options).keys() - {"follow_links", "max_megapixels"}):
        raise ValueError(f"{', '.join(sorted(given))}: options of a data set; name its split with --split")
    built = build_index(
        options.model,
        options.data,
        options.index,
        options.split,
        store=options.store,
        kind=options.kind,
        batch_size=options.batch_size,
        dtype=precision_of_build(options.precision, options.index, options.device),
        device=options.device,
        verify=options.verify,
        **reading_of(options),
    )
    names = f" under {built['names']:,} names" if built["names"] > built["pictures"] else ""
    print(
        f"{options.index}: {built['pictures']:,} pictures{names}, {built['embedded']:,} of them embedded now; "
        f"{built['removed']:,} removed, {len(built['unreadable']):,} unreadable"
    )
    _show_next(options.index)


def _build_from_embeddings(options: argparse.Namespace) -> None:
    from mpclip.search.from_embeddings import build_from_embeddings

    own = {"split": options.split is not None, "precision": options.precision != "auto"}
    if given := [name for name, there in own.items() if there] + sorted(reading_given(options)):
        raise ValueError(f"{', '.join(given)}: options of --data; --embeddings were made with their own")
    built = build_from_embeddings(
        options.model,
        options.embeddings,
        options.index,
        store=options.store,
        kind=options.kind,
        processes=options.processes,
        device=options.device,
        verify=options.verify,
    )
    names = f" under {built['names']:,} names" if built["names"] > built["pictures"] else ""
    print(f"{options.index}: {built['pictures']:,} pictures{names} of {built['files']:,} files, {built['read']:,} read now")
    _show_next(options.index)


def _show_next(index: str) -> None:
    query = ["mpclip", "search", "query", "--index", index, "a dog on a beach", "--html", "found.html"]
    print(next_steps([(query, "find pictures, and look at them in a browser")]))


def _query(options: argparse.Namespace) -> None:
    from mpclip.search.page import write_page
    from mpclip.search.queries import QueryEncoder, read_queries
    from mpclip.search.search import PictureIndex, query_index, read_settings

    texts = options.texts + options.texts_after_weights + (read_queries(options.file) if options.file else [])
    settings = read_settings(options.index)
    encoder = QueryEncoder(options.model or settings["model"], settings["dtype"], options.device)
    index = PictureIndex(options.index, encoder, options.verify)
    weights = read_weights(options.weights, encoder.names) if options.weights else None
    answers = query_index(index, texts, options.image, exclude=options.exclude, weights=weights, top=options.top)
    print("\n\n".join(table(answer) for answer in answers))
    if len(encoder.names) > 1:
        print(f"\naspects: {listed(encoder.names)}")
    if options.html:
        data, model = (Path(name).name if Path(name).is_absolute() else name for name in (settings["data"], encoder.name))
        about = f"{settings['pictures']:,} pictures of {data}, searched with {model}"  # a page is shown to others: no paths
        write_page(answers, options.html, about)
    if options.json:
        write_json(options.json, [answer.to_json() for answer in answers], indent=2)
    if written := [str(path) for path in (options.html, options.json) if path]:
        print(f"\nwritten: {', '.join(written)}")


def table(answer: "Answer") -> str:
    """A query and its hits in aligned columns, cut to the width of the terminal. (+2): the picture has two more names."""
    from mpclip.search.search import weights_in_words

    heading = [] if answer.text is None else [f'"{answer.text}"']
    heading += answer.pictures + [f'without "{text}"' for text in answer.exclude]
    if answer.weights is not None:
        heading.append(f"weights {weights_in_words(answer)}")
    names = [hit.picture + (f" (+{len(hit.also)})" if hit.also else "") for hit in answer.hits]
    width = max(map(len, names), default=0)
    lines = ["  ".join(heading)]
    for rank, (hit, name) in enumerate(zip(answer.hits, names, strict=True), start=1):
        lines.append(f"{rank:>5}  {hit.score:>7.4f}  {name:<{width}}  {hit.caption}".rstrip())
    columns = shutil.get_terminal_size((120, 24)).columns
    return "\n".join(line if len(line) <= columns else line[: columns - 1] + "…" for line in map(printable, lines))


if __name__ == "__main__":
    main()
