"""The search command, and the page of what it found."""

import base64
import io
import json
from html.parser import HTMLParser

import PIL.Image
import pytest
from search_fixtures import WEIGHTS, add_picture

from mpclip.search.__main__ import main
from mpclip.search.build import build_index
from mpclip.search.page import write_page
from mpclip.search.search import Answer, Hit, PictureIndex, query_index

pytest_plugins = ["search_fixtures"]


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


NASTY = """"'><script>alert(1)</script><img src=x onerror=alert(2)> & {title} </style>"""


def test_page_shows_nasty_words_and_runs_none(tmp_path):
    PIL.Image.new("RGB", (9, 9), "red").save(jpeg := io.BytesIO(), "JPEG")
    hit = Hit(NASTY + "\udcff", NASTY, 0.25, [0.5, -0.25, 0.0], jpeg.getvalue())
    answers = [Answer(NASTY, [NASTY], [NASTY], [1.0, 2.0, 0.5], [hit, hit], [jpeg.getvalue()])]
    write_page(answers, tmp_path / "new/page.html", NASTY)
    page = Page((tmp_path / "new/page.html").read_text(encoding="utf-8"))
    assert page.words.count(NASTY) == 9  # title, about, heading, picture, exclusion; twice a name and a caption
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "form", "a"})
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3 and [a["alt"] for a in pictures] == ["", NASTY, NASTY]
    assert all(a["src"] == uri for a in pictures)
    assert not any(name.startswith("on") or name in ("href", "srcset") for _, a in page.tags for name in a)
    heights = [a["height"] for tag, a in page.tags if tag == "rect"]
    assert heights == ["12.0", "6.0", "0.0"] * 2
    write_page([Answer(None, ["a.png"], [], None, [], [jpeg.getvalue()])], tmp_path / "page.html")
    assert "Pictures like this" in Page((tmp_path / "page.html").read_text()).words


def test_command(model, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "56")
    add_picture(photos / "evil\x1b[2J.png", 80)
    index, html, found = str(tmp_path / "index"), tmp_path / "new/found.html", tmp_path / "new/found.json"
    main(["build", "--model", model, "--data", str(photos), "--index", index, "--device", "cpu"])
    assert "12 pictures, 12 of them embedded now; 0 removed, 0 unreadable" in capsys.readouterr().out

    (tmp_path / "queries.txt").write_text("a boat\n\nthe red mat\n")
    arguments = ["query", "--index", index, "a street", "--file", str(tmp_path / "queries.txt"), "--top", "12"]
    arguments += ["--weights", *map(str, WEIGHTS), "--exclude", "cars", "--exclude", "a dog", "--device", "cpu"]
    main([*arguments, "--html", str(html), "--json", str(found)])
    printed = capsys.readouterr().out
    assert '"a street"  without "cars"  without "a dog"  weights AP…' in printed and "written: " in printed
    assert "\x1b" not in printed and "evil�[2J.png" in printed

    answers = json.loads(found.read_text())
    assert [answer["text"] for answer in answers] == ["a street", "a boat", "the red mat"]
    assert answers[0]["exclude"] == ["cars", "a dog"] and answers[0]["weights"] == WEIGHTS
    assert [len(answer["hits"]) for answer in answers] == [12] * 3
    assert set(answers[0]["hits"][0]) == {"picture", "caption", "score", "aspects", "also"}
    page = Page(html.read_text(encoding="utf-8"))
    assert "12 pictures of photos, searched with model" in page.words  # and no path
    assert str(tmp_path) not in html.read_text(encoding="utf-8")
    assert sum(tag == "img" for tag, _ in page.tags) == 36


def test_command_with_pictures(model, encoder, photos, tmp_path):
    index, found, file = str(tmp_path / "index"), tmp_path / "found.json", photos / "02.webp"
    main(["build", "--model", model, "--data", str(photos), "--index", index, "--device", "cpu", "--precision", "float32"])
    query = ["query", "--index", index, "--top", "3", "--device", "cpu", "--json", str(found)]
    opened = PictureIndex(index, encoder)

    def answers(*arguments: str) -> list[dict]:
        main([*query, *arguments])
        return json.loads(found.read_text())

    (alone,) = answers("--image", str(file))
    assert alone["text"] is None and alone["hits"][0]["picture"] == "02.webp"
    expected = query_index(opened, pictures=[file], exclude=["a cat"], weights=WEIGHTS, top=3)
    options = ["--exclude", "a cat", "--weights", *map(str, WEIGHTS)]
    assert answers("--image", str(file), *options) == [answer.to_json() for answer in expected]
    expected = query_index(opened, ["a street"], [file, photos / "00.png"], exclude=["a cat"], weights=WEIGHTS, top=3)
    both = answers("a street", "--image", str(file), "--image", str(photos / "00.png"), *options)
    assert both == [answer.to_json() for answer in expected] and both[0]["hits"] != alone["hits"]
    assert answers("--verify", "--image", str(file)) == [alone]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["query", "--index", "{index}", "a street", "--exclude", ""], "an empty text names nothing; leave it out"),
        (["query", "--index", "{index}", "--image", "nowhere.png"], "nowhere.png"),
        (["query", "--index", "{index}"], "no query: give a text, a picture, or both"),
        (["query", "--index", "nowhere", "a street"], "no index at nowhere"),
        (["query", "--index", "{index}", "a street", "--model", "no\nwhere"], "no where"),
        (["build", "--index", "{index}", "--model", "{model}", "--data", "nowhere"], "no folder nowhere"),
    ],
    ids=["exclude", "picture", "nothing", "index", "model", "data"],
)
def test_what_the_user_can_mend_is_one_line(model, photos, tmp_path_factory, arguments, message):
    index = tmp_path_factory.getbasetemp() / "index_of_errors"
    build_index(model, str(photos), index) if not index.exists() else None
    given = [argument.format(index=index, model=model) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        main(given)
    line = str(ended.value)
    assert line.startswith("python -m mpclip.search: ") and message in line and "\n" not in line
