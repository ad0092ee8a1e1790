"""Queries as people give them: files of any editor, weights by order, name or number, and which prompt is which."""

import codecs
import json
import shutil

import pytest
from conftest import make_model, make_processor, make_tokenizer
from search_fixtures import add_picture

from mpclip.search.__main__ import main
from mpclip.search.build import build_index
from mpclip.search.queries import QueryEncoder, read_queries
from mpclip.search.weights import aspect_names, read_weights, split_off

pytest_plugins = ["search_fixtures"]

NAMES = ["color", "main action", "place"]


# Names


@pytest.mark.parametrize(
    "templates, words, names",
    [
        (["The [APT-1] of this image means:", "The [APT-2] of this image means:"], ["color", "action"], ["color", "action"]),
        (["The [APT-1] of this image means:", "The [APT-2] of this image means:"], None, ["APT-1", "APT-2"]),
        (["[APT-1]:", "[APT-2]:"], ["color"], ["color", "APT-2"]),
        (["Colors:", "The main action:"], None, ["Colors", "The main action"]),
        (["In this image the colors are", "In this image the people do"], None, ["colors are", "people do"]),
        (["[APT-1]:", "[APT-2]:"], ["color", "Color"], ["1", "2"]),  # names must differ
        (["The image", "The image shows", "The image has"], None, ["1", "2", "3"]),  # nothing is left of the first
        (["This image means in one word:"], None, ["This image means in one word"]),
    ],
)
def test_an_aspect_is_called_by_what_its_prompt_does_not_share(templates, words, names):
    assert aspect_names(templates, words) == names


# Weights


@pytest.mark.parametrize(
    "words, weights",
    [
        (["1,2,.5"], [1, 2, 0.5]),
        (["1,2,3,"], [1, 2, 3]),
        (["1", "2", "3e-1"], [1, 2, 0.3]),
        (["color=2"], [2, 1, 1]),
        (["Main action=0.5,3=-1"], [1, 0.5, -1]),
        (["color=2", "3=0"], [2, 1, 0]),
    ],
)
def test_weights_by_order_name_or_number(words, weights):
    for queries in ([], ["a dog"], ["a dog", "1"], ["E=mc2 on a blackboard"], ["nan bread", "infinity"]):
        assert split_off([*words, *queries]) == (words, queries)
    assert read_weights(words, NAMES) == weights


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["1,2"],
            r"--weights 1,2: 2 numbers for 3 aspects \(1 color, 2 main action, 3 place\): give a number for each .*1,1,1, or",
        ),
        (["1", "1", "1", "1984"], "4 numbers for 3 aspects .* If a query that follows is a number, join the weights by commas"),
        (["size=2"], r"no aspect 'size'; this model has 1 color, 2 main action, 3 place: .*color=1\.5"),
        (["4=2"], "no aspect '4'"),
    ],
)
def test_weights_that_fit_no_aspect(words, message):
    with pytest.raises(ValueError, match=message):
        read_weights(words, NAMES)


# Files


TEXT = "a dog\r\n\r\nzwei Hunde für Zoë ☃\r\n\r\n \r\n"


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode(),
        TEXT.replace("\r\n", "\n").rstrip().encode(),
        TEXT.replace("\r\n", "\r").encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF8 + b"a dog\n" + codecs.BOM_UTF8 + TEXT.split("\r\n", 2)[2].encode(),  # two files, joined
    ],
    ids=["notepad", "utf-8", "unix", "mac", "utf-16-le", "utf-16-be", "joined"],
)
def test_queries_in_a_file_of_any_editor(tmp_path, content):
    (tmp_path / "queries.txt").write_bytes(content)
    assert read_queries(tmp_path / "queries.txt") == ["a dog", "zwei Hunde für Zoë ☃"]


def test_line_separators_within_a_query_are_no_new_lines(tmp_path):
    (tmp_path / "queries.txt").write_text("a dog\x0b\u2028\x85 and a cat\n", encoding="utf-8")
    assert read_queries(tmp_path / "queries.txt") == ["a dog\x0b\u2028\x85 and a cat"]


@pytest.mark.parametrize("content", [TEXT.encode("latin-1", "ignore"), TEXT.encode("utf-16-le")], ids=["latin-1", "no mark"])
def test_other_encodings_are_refused_by_name(tmp_path, content):
    (tmp_path / "queries.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"queries\.txt.* Save the file as UTF-8"):
        read_queries(tmp_path / "queries.txt")


# The command


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A checkpoint whose training gave its prompts words, and an index of it."""
    folder, tokenizer = tmp_path_factory.mktemp("named"), make_tokenizer()
    make_model(num_prompts=3, tokenizer=tokenizer).save_pretrained(folder / "model")
    make_processor(tokenizer).save_pretrained(folder / "model")
    (folder / "model/training.json").write_text(json.dumps({"ModelArguments": {"adaptive_init": ["color", "<i>", "place"]}}))
    for i in range(2):
        add_picture(folder / f"photos/{i}.png", i)
    shutil.copy(folder / "photos/0.png", folder / "photos/copy.png")
    build_index(str(folder / "model"), str(folder / "photos"), folder / "index")
    return folder


def ask(named, *arguments: str) -> list[dict]:
    main(["query", "--index", str(named / "index"), "--device", "cpu", "--json", str(named / "found.json"), *arguments])
    return json.loads((named / "found.json").read_text())


@pytest.mark.parametrize("weights", [["2,1,0.5"], ["2", "1", "0.5"], ["color=2", "3=0.5"], ["color=2,place=0.5"]])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_query_after_weights_is_a_query(named, weights, place):
    texts = ["a dog", "the red mat"]
    words = [*texts, "--weights", *weights] if place == "before" else ["--weights", *weights, *texts]
    answers = ask(named, *words)
    assert [answer["text"] for answer in answers] == texts and answers[0]["weights"] == [2, 1, 0.5]


@pytest.mark.parametrize(
    "words, message", [(["a dog", "1,2,3"], "--weights 'a dog': expected numbers"), (["1,2"], "2 numbers for 3")]
)
def test_wrong_weights_end_in_one_line(named, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        ask(named, "--weights", *words)
    line = str(ended.value) if ended.value.code != 2 else capsys.readouterr().err.splitlines()[-1]
    assert message in line and "\n" not in line


def test_results_and_page_say_which_prompt_is_which(named, capsys):
    html = named / "found.html"
    (answer,) = ask(named, "a dog", "--weights", "place=3", "--html", str(html))
    assert answer["aspect_names"] == ["color", "<i>", "place"]
    assert {tuple(hit["also"]) for hit in answer["hits"]} == {("copy.png",), ()}
    printed = capsys.readouterr().out
    assert "weights color 1, <i> 1, place 3" in printed and "\naspects: 1 color, 2 <i>, 3 place\n" in printed
    assert "0.png (+1)" in printed
    page = html.read_text(encoding="utf-8")
    assert (
        "Bars, from left to right: color, &lt;i&gt;, place" in page and "aspects weighted color 1, &lt;i&gt; 1, place 3" in page
    )
    assert "<title>&lt;i&gt;: " in page and "<i>" not in page and "0.png = copy.png" in page


def test_a_model_without_prompts_has_no_names_to_show(named, tmp_path):
    tokenizer = make_tokenizer()
    make_model(num_prompts=1, text_pooling="mean", templates=[], tokenizer=tokenizer).save_pretrained(tmp_path / "model")
    make_processor(tokenizer).save_pretrained(tmp_path / "model")
    assert len(QueryEncoder(str(tmp_path / "model")).names) == 1
