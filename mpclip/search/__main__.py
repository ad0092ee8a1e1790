"""Search a collection of pictures by text or by picture: build an index, query it.

    python -m mpclip.search build --model runs/demo/multi_prompt --data photos --index runs/photos
    python -m mpclip.search build --model you/your-model --data jxie/flickr8k --split test --index runs/flickr --kind hnsw
    python -m mpclip.search query --index runs/photos "a street" --weights 1 1 1.5 1 1 1 --exclude cars --html found.html
    python -m mpclip.search query --index runs/photos "the same in winter" --image photo.jpg --top 20

`python -m mpclip.search` is the same. A build that was killed goes on where it was when started again; started again later,
it adds the pictures that are new and drops those that are gone. Pictures that cannot be read are named and left out.

Both run the Python files that come with the checkpoint (trust_remote_code=True), and a query opens the checkpoint that the
index names: give only checkpoints and indexes you trust, or name the checkpoint yourself with --model.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from mpclip.hardware import usable_device
from mpclip.search.build import build_index
from mpclip.search.encoder import Encoder
from mpclip.search.page import write_page
from mpclip.search.search import Answer, PictureIndex, query_index, read_settings
from mpclip.search.stores import KINDS, STORES


def main(arguments: list[str]) -> None:
    """The command; `arguments` are those after `python -m mpclip.search`."""
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="build|query", required=True)

    build = commands.add_parser("build", help="make an index, or bring one up to date")
    build.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id; its Python files are run")
    build.add_argument("--data", required=True, help="folder of pictures; with --split a data set: folder, parquet, Hub id")
    build.add_argument("--split", help="of a data set, such as validation or test")
    build.add_argument("--index", required=True, metavar="FOLDER", help="where the index is, or will be")
    build.add_argument("--store", choices=STORES, default="faiss", help="(default: %(default)s)")
    build.add_argument(
        "--kind",
        choices=KINDS,
        default="flat",
        help="flat: exact; hnsw: a graph, far faster on a million pictures; ivfpq: a sixteenth of the memory (default: flat)",
    )
    build.add_argument("--batch_size", type=int, default=64, help="pictures at a time (default: %(default)s)")
    build.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default: float32)")
    build.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    build.set_defaults(run=_build)

    query = commands.add_parser("query", help="find pictures")
    query.add_argument("texts", nargs="*", metavar="TEXT", help="a query each")
    query.add_argument("--index", required=True, metavar="FOLDER", help="as built")
    query.add_argument("--file", type=Path, help="more queries, one per line")
    query.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture as the query; with texts, part of each: the mean of the normalised embeddings. May be repeated",
    )
    query.add_argument("--exclude", action="append", default=[], metavar="TEXT", help="what not to find. May be repeated")
    query.add_argument("--weights", type=float, nargs="+", metavar="W", help="a weight for each of the model's K aspects")
    query.add_argument("--top", type=int, default=10, help="pictures per query (default: %(default)s)")
    query.add_argument("--html", type=Path, metavar="OUT.html", help="write a page of thumbnails")
    query.add_argument("--json", type=Path, metavar="OUT.json", help="write the results, with the score of every aspect")
    query.add_argument("--model", help="where the checkpoint lies now, if not where it was")
    query.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    query.set_defaults(run=_query)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ImportError, OSError, ValueError) as error:  # what the user can mend; several libraries write many lines
        raise SystemExit(f"{parser.prog}: {' '.join(str(error).split())}") from error


def _build(options: argparse.Namespace) -> None:
    built = build_index(
        options.model,
        options.data,
        options.index,
        options.split,
        store=options.store,
        kind=options.kind,
        batch_size=options.batch_size,
        dtype=options.dtype,
        device=options.device,
    )
    print(
        f"{options.index}: {built['pictures']:,} pictures, {built['embedded']:,} of them embedded now; "
        f"{built['removed']:,} removed, {len(built['unreadable']):,} unreadable"
    )


def _query(options: argparse.Namespace) -> None:
    lines = options.file.read_text(encoding="utf-8").splitlines() if options.file else []
    texts = options.texts + [line for line in lines if line.strip()]
    settings = read_settings(options.index)
    index = PictureIndex(options.index, Encoder(options.model or settings["model"], settings["dtype"], options.device))
    answers = query_index(index, texts, options.image, exclude=options.exclude, weights=options.weights, top=options.top)
    print("\n\n".join(table(answer) for answer in answers))
    if options.html:
        data, model = (Path(name).name if Path(name).is_absolute() else name for name in (settings["data"], index.encoder.name))
        about = f"{settings['pictures']:,} pictures of {data}, searched with {model}"  # a page is shown to others: no paths
        write_page(answers, options.html, about)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([answer.to_json() for answer in answers], indent=2, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    if written := [str(path) for path in (options.html, options.json) if path]:
        print(f"\nwritten: {', '.join(written)}")


def table(answer: Answer) -> str:
    """A query and its hits in aligned columns, cut to the width of the terminal."""
    heading = [] if answer.text is None else [f'"{answer.text}"']
    heading += answer.pictures + [f'without "{text}"' for text in answer.exclude]
    if answer.weights is not None:
        heading.append("weights " + " ".join(f"{weight:g}" for weight in answer.weights))
    names = max((len(hit.picture) for hit in answer.hits), default=0)
    lines = ["  ".join(heading)]
    for rank, hit in enumerate(answer.hits, start=1):
        lines.append(f"{rank:>5}  {hit.score:>7.4f}  {hit.picture:<{names}}  {hit.caption}".rstrip())
    columns = shutil.get_terminal_size((120, 24)).columns
    # File names and captions are others' words: their control characters would command the terminal.
    printable = ("".join(c if c.isprintable() else "�" for c in line) for line in lines)
    return "\n".join(line if len(line) <= columns else line[: columns - 1] + "…" for line in printable)


if __name__ == "__main__":
    main(sys.argv[1:])
