"""The figures of the prompts are drawn from the tree and the mask of the model, and are those that lie in docs/."""

import re
from xml.etree import ElementTree

from benchmarks import prompt_figures
from benchmarks.prompt_figures import CELL, DOCS, Example


def test_the_figures_are_what_the_program_draws():
    for file, drawn in prompt_figures.figures().items():
        assert file.read_text() == drawn, f"{file.name}: run python -m benchmarks.prompt_figures"


def test_the_drawn_tree_shows_every_token_once():
    drawn = (DOCS / "prompt_tree.svg").read_text()
    example = Example()
    boxes = re.findall(r'rx="5".*\n<text[^>]*>([^<]+)<', drawn)
    assert boxes == [token for token in example.tokens if token != "padding"]
    assert f"{len(example.tree)} tokens in place of {example.written_out}" in drawn
    assert (len(example.tree), example.written_out) == (21, 2 * (7 + 9))  # 7 and 9 words; "The [APT-i] of this image" is shared


def test_the_drawn_mask_fills_what_a_token_may_see():
    """Counted from the words: the text so far, or the text and the prompt so far; padding sees itself alone."""
    drawn = ElementTree.fromstring((DOCS / "prompt_mask.svg").read_text())
    paths = [path.get("d") for path in drawn.iter("{http://www.w3.org/2000/svg}path")]
    filled = [path.count("z") for path in paths if f"h{CELL}v{CELL}" in path]
    text, positive = [1, 2, 3, 1], [3 + n for n in range(1, 8)]  # 3 words, padding; 7 words of a prompt
    twin = [3 + n for n in range(6, 10)]  # what a twin does not share, from its sixth word on
    assert filled == [*text, *positive, *positive[1:], *twin, *twin]
