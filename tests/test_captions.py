"""Where captions stand: in several columns, in a list that is written as text, behind a separator."""

import json

import datasets
import pytest
from tiny_pictures import CAPTIONS, NAMES, check, jpeg, write_pictures

from mpclip.data.image_text import load_image_text

pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_captions_in_several_columns(tmp_path):
    wide = {f"caption_{i}": [row[i] for row in CAPTIONS] for i in (1, 0)}  # the number decides, not the place
    rows = datasets.Dataset.from_dict({"image": [{"bytes": jpeg(i), "path": None} for i in range(3)]} | wide)
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "test.parquet")
    check(load_image_text(tmp_path, "test"))
    check(load_image_text(tmp_path, "test", caption_column="caption_1,caption_0"), [row[::-1] for row in CAPTIONS])
    check(load_image_text(tmp_path, "test", caption_column="caption_1"), [row[1:] for row in CAPTIONS])
    with pytest.raises(ValueError, match=r"no column 'caption_7'; it has .*'caption_1', 'caption_0'"):
        load_image_text(tmp_path, "test", caption_column="caption_0,caption_7")


def test_numbered_columns_of_a_csv(tmp_path):
    write_pictures(tmp_path)
    table = "image,caption,caption\n" + "".join(f'{n},"{a}",{b}\n' for n, (a, b) in zip(NAMES, CAPTIONS, strict=True))
    (tmp_path / "metadata.csv").write_text(table)  # two columns of one name, as spreadsheets allow
    check(load_image_text(tmp_path, "train"))
    (tmp_path / "metadata.csv").write_text(table.replace("caption,caption", "sentence1,sentence2"))
    check(load_image_text(tmp_path, "train"))


@pytest.mark.parametrize(
    "cell, captions",
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("""["it's", 'two "b"']""", ["it's", 'two "b"']),
        ("['a' 'b']", ["a", "b"]),  # numpy, written by pandas
        ("['a'\n 'b']", ["a", "b"]),
        ("('a', 'b')", ["a", "b"]),
        ("['a', None]", ["a"]),
        ("['a', __import__('os')]", ["['a', __import__('os')]"]),  # nothing is run
        ("['Stop' says a sign]", ["['Stop' says a sign]"]),
        ("('Stop')", ["('Stop')"]),
        ("['it is cut", ["['it is cut"]),
        ("[laughs] a man", ["[laughs] a man"]),
        ("a; b", ["a; b"]),
    ],
)
def test_lists_as_text(cell, captions, tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "captions": cell}))
    check(load_image_text(tmp_path, "train"), [captions])


def test_separators_are_read_by_an_option_and_refused_without(tmp_path):
    write_pictures(tmp_path)
    rows = [f'{name},"{a} ; {b}"\n' for name, (a, b) in zip(NAMES, CAPTIONS, strict=True)]
    (tmp_path / "metadata.csv").write_text("file_name,caption\n" + "".join(rows))
    with pytest.raises(ValueError, match=r"3 of 3 captions have a ';'.*caption_separator=';'.*'none'"):
        load_image_text(tmp_path, "train")
    check(load_image_text(tmp_path, "train", caption_separator=";"))
    whole = [[f"{a} ; {b}"] for a, b in CAPTIONS]
    check(load_image_text(tmp_path, "train", caption_separator="none"), whole)
    check(load_image_text(tmp_path, "train", need_captions=False), whole)  # an index only shows them
    rows[0] = "a.jpg,a dog\n"  # captions with a semicolon now and then
    (tmp_path / "metadata.csv").write_text("file_name,caption\n" + "".join(rows))
    check(load_image_text(tmp_path, "train"), [["a dog"], *whole[1:]])
