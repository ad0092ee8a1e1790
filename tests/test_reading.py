"""The options of reading a data set: the same in training, evaluation and the index, and with effect in each."""

import argparse
import json
from dataclasses import fields

import pytest
import yaml
from tiny_pictures import NAMES, write_pictures

from eval.options import add_common_options
from eval.tasks.differences import Differences
from eval.tasks.retrieval import Retrieval
from modeling_mpclip.model_options import choices
from mpclip.data.image_text import load_image_text
from mpclip.data.reading import READING_NAMES, ReadingOptions, add_reading_options, reading_given, reading_of
from mpclip.search.pictures import open_pictures
from mpclip.training import parse_options
from mpclip.training.options import DataArguments
from mpclip.training.run import open_rows

GIVEN = ["--image_column", "photo", "--caption_column", "en,de", "--caption_separator", "|", "--bad_images", "fail"]


@pytest.fixture
def folder(tmp_path):
    """Three pictures whose table needs options to be read."""
    write_pictures(tmp_path)
    rows = [{"photo": name, "en": f"a {i} | the {i}", "de": f"ein {i}"} for i, name in enumerate(NAMES)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def parsed(*words: str) -> argparse.Namespace:
    add_reading_options(parser := argparse.ArgumentParser())
    return parser.parse_args(words)


def test_training_has_the_options_and_their_defaults():
    declared = {option.name: option for option in fields(DataArguments)}
    for option in fields(ReadingOptions):
        assert declared[option.name].default == option.default
        assert declared[option.name].metadata == option.metadata
        assert choices(DataArguments, option.name) == choices(ReadingOptions, option.name)
    assert reading_of(parsed()) == {name: declared[name].default for name in READING_NAMES}


def test_the_options_are_read_alike_everywhere(folder):
    reading = reading_of(parsed(*GIVEN))
    assert reading == reading_of(parse_options(["--output_dir", "x", *GIVEN]).data)
    expected = [[f"a {i}", f"the {i}", f"ein {i}"] for i in range(3)]
    data = DataArguments(dataset=str(folder), **reading)
    assert open_rows(data, "train")["captions"][:] == expected
    assert Retrieval().load(str(folder), "train", **reading)["captions"][:] == expected
    assert len(open_pictures(str(folder), "train", **reading).stamps) == 3
    with pytest.raises(ValueError, match=r"no column scene|no column 'scene'|no column family"):
        Differences().load(str(folder), "train", **reading)


@pytest.mark.parametrize("given", [["en", "de"], ["en,de"], ["en, de"]])
def test_several_columns_are_a_list_or_have_commas(given, folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"caption_column": given, "image_column": "photo"}))
    reading = reading_of(parse_options([str(tmp_path / "recipe.yaml"), "--output_dir", "x"]).data)
    assert reading == reading_of(parsed("--image_column", "photo", "--caption_column", *given))
    for how in (reading, reading | {"caption_column": given}):
        rows = load_image_text(folder, "train", **how | {"caption_separator": "|"})
        assert rows["captions"][0] == ["a 0", "the 0", "ein 0"]


def test_only_what_was_given_is_recorded():
    assert reading_given(parsed("--follow_links", "--caption_column", "x")) == {"follow_links": True, "caption_column": "x"}
    assert parsed("--follow_links", "false").follow_links is False
    assert reading_given(parsed()) == {}


def test_every_task_takes_the_options():
    add_common_options(parser := argparse.ArgumentParser(), "data")
    given = parser.parse_args(["--model", "m", "--data", "d", "--split", "s", "--json", "j", *GIVEN])
    assert reading_of(given) == reading_of(parsed(*GIVEN))


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"bad_images": "ignore"}, "use one of 'skip', 'fail'"),
        ({"caption_separator": ""}, "caption_separator is empty"),
        ({"class_caption": "a photo"}, r"has no \{\}"),
    ],
)
def test_illegal_values_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        ReadingOptions(**wrong)
    with pytest.raises(ValueError, match=told):
        DataArguments(**wrong)


def test_wrong_words_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        parsed("--follow_links", "perhaps")
    assert "expected true or false" in capsys.readouterr().err
