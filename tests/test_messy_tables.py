"""Metadata files as people have them: read rightly, or refused in one line with file, row, what was found and what to write."""

import json
import re

import pytest
from tiny_pictures import write_pictures

from mpclip.data.image_text import load_image_text

TWO = '{"file_name": "a.jpg", %s}\n{"file_name": "b.jpg", %s}\n'


def write(folder, name: str, content: str | bytes):
    write_pictures(folder)
    write_pictures(folder / "pics")
    content = content.replace("HERE", str(folder)) if isinstance(content, str) else content
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


READ = {  # name -> file, content, captions
    "lists of Python": ("metadata.csv", "file_name,captions\na.jpg,\"['x', 'y']\"\nb.jpg,\"['z']\"\n", [["x", "y"], ["z"]]),
    "str and list": ("metadata.jsonl", TWO % ('"captions": "x"', '"captions": ["y", "z"]'), [["x"], ["y", "z"]]),
    "one JSON array": ("metadata.jsonl", '[{"file_name": "a.jpg",\n"caption": "x"}]', [["x"]]),
    "digits": ("metadata.csv", "file_name,caption\na.jpg,7\nb.jpg,03\n", [["7"], ["03"]]),
    "mixed ids": ("metadata.jsonl", TWO % ('"caption": "x", "id": 1', '"caption": "y", "id": "2b"'), [["x"], ["y"]]),
    "half an emoji elsewhere": ("metadata.jsonl", TWO % ('"caption": "x", "by": "\\ud83d"', '"caption": "y"'), [["x"], ["y"]]),
    "a whole emoji": ("metadata.jsonl", TWO % ('"caption": "\\ud83d\\ude00"', '"caption": "y"'), [["😀"], ["y"]]),
    "byte order mark, JSON": (
        "metadata.jsonl",
        ("\ufeff" + TWO % ('"caption": "x"', '"caption": "y"')).encode(),
        [["x"], ["y"]],
    ),
    "byte order mark, CSV": ("metadata.csv", b"\xef\xbb\xbffile_name,caption\na.jpg,x\n", [["x"]]),
    "UTF-16": ("metadata.csv", "file_name\tcaption\r\na.jpg\tcafé\r\n".encode("utf-16"), [["café"]]),
    "absolute path inside": ("metadata.jsonl", '{"file_name": "HERE/a.jpg", "caption": "x"}', [["x"]]),
    "Windows path": ("metadata.jsonl", '{"file_name": "pics\\\\c.jpg", "caption": "x"}', [["x"]]),
    "semicolons of a spreadsheet": ("metadata.csv", 'file_name;caption\na.jpg;"a; b, c"\n', [["a; b, c"]]),
    "a quote in a caption": ("metadata.csv", 'file_name,caption\na.jpg,"Stop" says a sign\n', [["Stop says a sign"]]),
    "spaces in the header": ("metadata.csv", "file_name, caption\na.jpg,x\n", [["x"]]),
    "cells beyond the header that are empty": ("metadata.csv", "file_name,caption\na.jpg,x,,\n", [["x"]]),
    "blank rows": ("metadata.csv", "file_name,caption\na.jpg,x\n,\n\nb.jpg,y\n,\n", [["x"], ["y"]]),
    "an index of pandas": ("metadata.csv", ",file_name,caption\n0,a.jpg,x\n", [["x"]]),
    "a separator that Excel says": ("metadata.csv", "sep=;\r\nfile_name;caption\r\na.jpg;x\r\n", [["x"]]),
    "a space behind the name": ("metadata.csv", "file_name,caption\na.jpg ,x\n", [["x"]]),
    "a caption over two lines": ("metadata.csv", 'file_name,caption\r\na.jpg,"x\r\ny"\r\nb.jpg,z\r\n', [["x\r\ny"], ["z"]]),
}


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_read(name, tmp_path, recwarn):
    file, content, captions = READ[name]
    assert load_image_text(write(tmp_path, file, content), "train")["captions"][:] == captions
    assert not [warning for warning in recwarn if warning.category is UserWarning]


REFUSED = {  # name -> file, content, what the message has
    "Latin-1": (
        "metadata.csv",
        "file_name,caption\na.jpg,café\n".encode("latin-1"),
        "line 2: not UTF-8, found the byte 0xe9 in",
    ),
    "UTF-16 without its mark": (
        "metadata.csv",
        "file_name,caption\n".encode("utf-16-le"),
        "zero bytes.*Save the file as UTF-8",
    ),
    "a comma in one caption": (
        "metadata.csv",
        "file_name,caption\na.jpg,x\nb.jpg,a dog, running\n",
        r"row 2 \(line 3\): 3 cells, but the header has 2 \(file_name, caption\): found 'b.jpg,a dog, running'.*double quotes",
    ),
    "a comma in every caption": ("metadata.csv", "file_name,caption\na.jpg,a cat, sitting\n", r"row 1 \(line 2\): 3 cells"),
    "a quote that does not end": ("metadata.csv", 'file_name,caption\na.jpg,"x\nb.jpg,y\n', "row 1: a cell .* does not end"),
    "half an emoji": ("metadata.jsonl", TWO % ('"caption": "y"', '"caption": "hi \\ud83d"'), "row 2: .*half a character"),
    "a number": (
        "metadata.jsonl",
        TWO % ('"caption": "y"', '"caption": 7'),
        r"row 2: a caption cell is 7 \(int\), expected a str",
    ),
    "a number in a list": ("metadata.jsonl", TWO % ('"caption": "y"', '"caption": ["x", 7]'), r"row 2: a caption is 7 \(int\)"),
    "an object": ("metadata.jsonl", TWO % ('"caption": "y"', '"caption": {"en": "x"}'), r"row 2: .*\{'en': 'x'\} \(dict\)"),
    "not an object": (
        "metadata.jsonl",
        '{"file_name": "a.jpg", "caption": "x"}\n["b.jpg", "y"]',
        "line 2: found .*one object per",
    ),
    "an object over lines": ("metadata.jsonl", '{\n"file_name": "a.jpg"}', "line 1: not JSON .*one object per line"),
    "lists in lists": ("metadata.jsonl", '{"a":' * 100_000, "line 1: not JSON"),
    "a number without end": ("metadata.jsonl", '{"file_name": "a.jpg", "n": ' + "1" * 5000 + "}", "line 1: not JSON"),
    "no header": ("metadata.csv", "a.jpg,x\nb.jpg,y\n", "row 1: file_name is None"),
    "a comma too many": ("metadata.jsonl", TWO % ('"caption": "y"', ""), "line 2: not JSON"),
    "a row without its picture": (
        "metadata.jsonl",
        TWO.split("\n")[0] % '"caption": "y"' + '\n{"caption": "x"}',
        "row 2: file_name is None",
    ),
    "an empty name": ("metadata.csv", "file_name,caption\na.jpg,x\n,y\n", "row 2: file_name is ''"),
    "an address": ("metadata.csv", "image,caption\nhttp://x.org/a.jpg,x\n", "row 1: found the address .*download the images"),
    "absolute path elsewhere": ("metadata.csv", "file_name,caption\n/x/a.jpg,x\n", "row 1: refused '/x/a.jpg'.*relative to it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_file_and_row(name, tmp_path):
    file, content, told = REFUSED[name]
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / file))}.*{told}"):
        load_image_text(write(tmp_path, file, content), "train")


def test_missing_captions_are_counted(tmp_path):
    write(tmp_path, "metadata.jsonl", TWO % ('"caption": "x"', '"caption": NaN') + '{"file_name": "c.jpg"}\n')
    with pytest.warns(UserWarning, match=r"2 of 3 rows without a caption: b.jpg \(no caption\), c.jpg"):
        assert load_image_text(tmp_path, "train")["captions"][:] == [["x"]]


def test_other_columns_keep_their_types(tmp_path):
    write(tmp_path, "metadata.csv", "file_name,caption,n,share,good,mixed,gap\na.jpg,x,1,.5,True,1,\nb.jpg,y,2,2,False,b,3\n")
    rows = load_image_text(tmp_path, "train").with_format(None).remove_columns(["image", "captions", "file_name"])
    assert rows[0] == {"n": 1, "share": 0.5, "good": True, "mixed": "1", "gap": ""}
    write(tmp_path / "json", "metadata.jsonl", TWO % ('"caption": "x", "id": {"a": 1}', '"caption": "y", "id": [2]'))
    assert load_image_text(tmp_path / "json", "train")["id"][:] == ['{"a": 1}', "[2]"]


@pytest.mark.parametrize("empty", ["", ', "split": null', ', "split": ""', ', "split": NaN'])
def test_rows_without_split_are_counted(empty, tmp_path):
    write(tmp_path, "metadata.jsonl", TWO % ('"caption": "x", "split": "train"', '"caption": "y"' + empty))
    with pytest.warns(UserWarning, match="1 of 2 rows have an empty `split` and are in no split: b.jpg. Write train"):
        assert load_image_text(tmp_path, "train")["captions"][:] == [["x"]]
    with pytest.warns(UserWarning, match="empty"), pytest.raises(ValueError, match=r"no split 'test'.*found.*\['train'\]"):
        load_image_text(tmp_path, "test")


def test_two_metadata_files(tmp_path):
    write(tmp_path, "metadata.jsonl", json.dumps({"file_name": "a.jpg", "caption": "x"}))
    write(tmp_path, "metadata.csv", "file_name,caption\na.jpg,y\n")
    with pytest.warns(UserWarning, match=r"metadata.jsonl is read, and .*metadata.csv beside it is not: remove"):
        assert load_image_text(tmp_path, "train")["captions"][:] == [["x"]]


def test_parts_beyond_the_end(tmp_path):
    write(tmp_path, "metadata.csv", "file_name,caption\na.jpg,x\nb.jpg,y\n")
    assert len(load_image_text(tmp_path, "train[:6000]")) == 2  # as `datasets` reads it
    for part in ("train[5000:6000]", "train[2:]", "train[:10%]"):
        with pytest.raises(ValueError, match=rf"'{re.escape(part)}' holds no picture, since 'train' has 2"):
            load_image_text(tmp_path, part)
    for part in ("train[a]", "train[:200%]", "train[:"):
        with pytest.raises(ValueError, match=r"expected a part such as 'train\[:90%\]'"):
            load_image_text(tmp_path, part)
