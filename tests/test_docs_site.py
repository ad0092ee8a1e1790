"""The site of the documents: it builds strictly, shows every public name, asks no other host, and its checks can fail."""

import importlib
import re
import tomllib

import pytest

from benchmarks import site
from benchmarks.site import Document
from benchmarks.site_docstrings import plain

ROOT = site.ROOT


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    for package in ("zensical", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="the site is built by zensical: pip install -e '.[docs]'")
    return site.build(tmp_path_factory.mktemp("site"))


def public_names() -> set[str]:
    """The full name of every class and function that a package offers."""
    names = set()
    for package in ("modeling_mpclip", "mpclip.training", "mpclip.encoding", "eval.metrics"):
        offered = importlib.import_module(package)
        for name in offered.__all__:
            if not name.isupper():  # constants
                value = getattr(offered, name)
                names.add(f"{value.__module__}.{value.__qualname__}")
    return names


def test_every_public_name_is_in_the_site(html):
    ids = set().union(*(Document(file.read_text()).ids for file in html.rglob("*.html")))
    names = public_names()
    assert len(names) > 30
    assert names - ids == set(), "add them to docs/api"
    model = "modeling_mpclip.modeling_mpclip.MPCLIPModel"
    assert {f"{model}.{method}" for method in ("forward", "get_text_features", "get_image_features", "lower_text")} <= ids


def test_docstrings_are_shown_as_lists_and_links(html):
    page = (html / "docs/api/model.html").read_text()
    assert "[<code>" not in page and "[`" not in page  # [`MPCLIPConfig`] has become a link
    assert 'href="#modeling_mpclip.outputs_mpclip.MPCLIPOutput"' in page
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert re.search(r"Attributes: prompt_embeds .{0,40}\(B, K, D / K\), the segment of each prompt", words)
    assert re.search(r"Returns: .{0,80}The ids of \[APT-1\] to \[APT-M\], which are consecutive\.", words)


def test_the_site_has_every_page_and_the_navigation_every_page():
    listed = []

    def collect(entries):
        for entry in entries:
            for value in entry.values():
                collect(value) if isinstance(value, list) else listed.append(value)

    collect(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    pages = {str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md")}
    pages = {page for page in pages if not page.startswith(site.UNPUBLISHED)} | {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert sorted(listed) == sorted(pages), "zensical.toml: `nav` lists every page once"


def test_faults_of_a_site_are_found(tmp_path):
    html, pages = tmp_path / "html", tmp_path / "pages"
    (html / "docs").mkdir(parents=True)
    (pages / "docs/api").mkdir(parents=True)
    (pages / "docs/api/model.md").write_text("# The model\n\n::: package.Shown\n\n::: package.Missing\n")
    (html / "index.html").write_text(
        '<link href="https://fonts.example/a.css" rel="stylesheet"><a href="https://example.org">a link may lead elsewhere</a>'
        '<a href="docs/page.html#there">right</a><a href="docs/page.html#away">wrong</a>'
        '<img src="docs/none.png"><a href="docs">'
    )
    (html / "docs/page.html").write_text('<h2 id="there"></h2><h2 id="package.Shown"></h2><a href="../index.html">right</a>')
    assert site.problems(html, pages) == [
        "index.html: docs/page.html#away leads nowhere",
        "index.html: docs/none.png leads nowhere",
        "index.html: docs leads nowhere",
        "index.html: loads https://fonts.example/a.css",
        "model.md: package.Missing is not in the site",
    ]


def test_docstrings_of_this_project_are_made_plain():
    places = {"MPCLIPModel": "modeling_mpclip.modeling_mpclip.MPCLIPModel"}
    told = "What [`MPCLIPModel`] and [`Other`] return. See [`x`](y.md).\n\na, b: (B, D).\nc: a loss.\n\nThe end."
    assert plain(told, places, of_class=True) == (
        "What [`MPCLIPModel`][modeling_mpclip.modeling_mpclip.MPCLIPModel] and `Other` return. See [`x`](y.md).\n\n"
        "Attributes:\n    a: (B, D).\n    b: (B, D).\n    c: a loss.\n\nThe end."
    )
    assert plain("note: a line of a function.", places) == "note: a line of a function."
