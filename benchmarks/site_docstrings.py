"""An extension of griffe, which reads docstrings for the site: what this project writes in a way of its own becomes plain.

* [`MPCLIPModel`] becomes a link to that class, where the site has it.
* Lines "name: what it is" of a class, without a heading above, become a list of its attributes.
"""

import re
from pathlib import Path

import griffe

from benchmarks.site import REFERENCE

API = Path(__file__).parent.parent / "docs" / "api"
NAME = re.compile(r"\[`(\w+)`\](?![\[(])")
FIELDS = re.compile(r"(?:^[a-z_]+(?:, [a-z_]+)*: .+\n?)+\Z", re.MULTILINE)


class PlainDocstrings(griffe.Extension):
    """Rewrites the docstring of every object before it is parsed."""

    def __init__(self):
        super().__init__()
        documented = [name for page in API.glob("*.md") for name in REFERENCE.findall(page.read_text())]
        self.places = {name.rpartition(".")[2]: name for name in documented}

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value, self.places, of_class=obj.is_class)


def plain(docstring: str, places: dict[str, str], of_class: bool = False) -> str:
    """A docstring as griffe and autorefs read it.

    Args:
        docstring: as `inspect.cleandoc` gives it.
        places: short name -> full name of each class and function of the site.
        of_class: whether it belongs to a class, whose fields may be listed.
    """
    paragraphs = docstring.split("\n\n")
    if of_class:
        paragraphs = [_attributes(paragraph) for paragraph in paragraphs]

    def link(found: re.Match) -> str:
        name = found[1]
        return f"[`{name}`][{places[name]}]" if name in places else f"`{name}`"

    return NAME.sub(link, "\n\n".join(paragraphs))


def _attributes(paragraph: str) -> str:
    if not FIELDS.match(paragraph):
        return paragraph
    lines = []
    for line in paragraph.splitlines():
        names, _, told = line.partition(": ")
        lines += [f"    {name}: {told}" for name in names.split(", ")]
    return "\n".join(["Attributes:", *lines])
