"""Build the site of the documents: every page of docs/, and the API from docstrings.

    python -m benchmarks.site                    # into build/site/html
    python -m benchmarks.site --out FOLDER
    python -m http.server --directory build/site/html      # then read it at http://localhost:8000

zensical builds it from plain Markdown, without a network, and mkdocstrings reads the docstrings from the source. zensical.toml
holds the navigation. Links between pages are those of the repository. A link that leads to no page, to no heading or to no file
ends the build with an error, and so does a name of the API that is not found.
"""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from benchmarks.record import command_parser
from mpclip.command import start

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "site"
# The site has the folders of the repository, so that a link is the same in both. Other files that pages link to are in it too.
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*", "notebooks/*", "eval/metrics/*/README.md")
UNPUBLISHED = ("docs/results/findings",)  # the texts that docs/results/*.md are made of
LINK = re.compile(r"\]\((?!http)([^)#]+)")
REFERENCE = re.compile(r"^::: (\S+)$", re.MULTILINE)


class Document(HTMLParser):
    """What a page of the site holds.

    Attributes:
        ids: the ids of its elements, to which links may lead.
        links: (attribute, address) of everything that it links to or loads.
        loaded: the addresses that a browser loads when it shows the page.
    """

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        self.links += [found[name] for name in ("href", "src") if name in found]
        of_page = tag == "link" and found.get("rel") not in ("canonical", "prev", "next")
        self.loaded += [found[name] for name in ("href", "src") if name in found and (of_page or tag not in ("a", "link"))]


def build(out: Path = OUT) -> Path:
    """Build the site.

    Args:
        out: a folder for the pages, the site and the cache of zensical. What an earlier build left there is replaced.

    Returns:
        The folder of the site, `out`/html.

    Raises:
        SystemExit: zensical is not installed or finds an error, or `problems` are found.
    """
    pages, html = out / "pages", out / "html"
    for folder in (pages, html):
        shutil.rmtree(folder, ignore_errors=True)
    files = [file for pattern in PAGES for file in ROOT.glob(pattern) if file.is_file()]
    files = [file for file in files if not str(file.relative_to(ROOT)).startswith(UNPUBLISHED)]
    linked = [found for page in files if page.suffix == ".md" for found in _files_linked(page)]
    for file in {*files, *linked}:
        (pages / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, pages / file.relative_to(ROOT))
    shutil.copyfile(ROOT / "zensical.toml", out / "zensical.toml")
    found_at = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # where mkdocstrings finds the source
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(out / "zensical.toml")]
    environment = os.environ | {"PYTHONPATH": found_at, "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nThe site was not built. It needs zensical: pip install -e '.[docs]'")
    if found := problems(html, pages):
        raise SystemExit("\n".join(["The site has errors:", *found]))
    return html


def _files_linked(page: Path) -> list[Path]:
    """The files of the repository, other than pages, that a page of Markdown links to."""
    targets = [(page.parent / target).resolve() for target in LINK.findall(page.read_text(encoding="utf-8"))]
    return [file for file in targets if file.is_file() and file.suffix != ".md" and file.is_relative_to(ROOT)]


def problems(html: Path, pages: Path) -> list[str]:
    """What is wrong with a site, a line each: links that lead nowhere, requests to other hosts, names that are missing.

    Args:
        html: the folder of the site.
        pages: the folder of Markdown that it was built from.
    """
    documents = {file: Document(file.read_text(encoding="utf-8")) for file in sorted(html.rglob("*.html"))}
    found = [f"{page}: {link} leads nowhere" for page, link in broken_links(html, documents)]
    for file, document in documents.items():
        found += [f"{file.relative_to(html)}: loads {link}" for link in document.loaded if urlsplit(link).netloc]
    ids = {name for document in documents.values() for name in document.ids}
    for page in sorted((pages / "docs/api").glob("*.md")):
        found += [f"{page.name}: {name} is not in the site" for name in REFERENCE.findall(page.read_text()) if name not in ids]
    return found


def broken_links(html: Path, documents: dict[Path, Document]) -> list[tuple[Path, str]]:
    """(page, link) for each link within the site whose file or whose heading does not exist."""
    broken = []
    for file, document in documents.items():
        if file.name == "404.html":
            continue  # its links are from the root of a server
        for link in document.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            has_place = not parts.fragment or target not in documents or unquote(parts.fragment) in documents[target].ids
            if not target.exists() or not has_place:
                broken.append((file.relative_to(html), link))
    return broken


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = command_parser("benchmarks.site", __doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the site (default: build/site)")
    html = build(parser.parse_args(argv).out.resolve())
    print(f"written: {html}\nTo read it: python -m http.server --directory {html}")


if __name__ == "__main__":
    start(main)
