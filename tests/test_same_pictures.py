"""One row per picture: rows of equal bytes are merged, parts of a split share no picture, and two splits that do are told."""

import logging
import warnings

import datasets
import pytest
from conftest import arguments
from tiny_pictures import CAPTIONS, NAMES, contents, jpeg, write_pictures

from mpclip.data.image_text import load_image_text
from mpclip.data.same_pictures import shared_pictures, warn_of_shared_pictures
from mpclip.training import build_trainer, parse_options

pytestmark = pytest.mark.usefixtures("datasets_cache")

FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})


def table(numbers: list[int], folder) -> str:
    """A parquet file with a row per caption and the pictures in it; row i shows the picture `numbers[i]`."""
    rows = {
        "image": [{"bytes": jpeg(number), "path": f"{i}.jpg"} for i, number in enumerate(numbers)],
        "caption": [f"{number} {i}" for i, number in enumerate(numbers)],
    }
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=FEATURES).to_parquet(folder / "train.parquet")
    return str(folder / "train.parquet")


def test_rows_of_one_picture_in_the_table_become_one(tmp_path, recwarn):
    rows = load_image_text(table([2, 0, 2, 1, 0, 2], tmp_path), "train")
    assert contents(rows) == [(jpeg(2), ["2 0", "2 2", "2 5"]), (jpeg(0), ["0 1", "0 4"]), (jpeg(1), ["1 3"])]
    assert not [warning for warning in recwarn if warning.category is UserWarning]  # the usual form of such a table


def test_parts_share_no_picture(tmp_path):
    file = table([i % 3 for i in range(15)], tmp_path)
    first, second = (load_image_text(file, part) for part in ("train[:67%]", "train[67%:]"))
    assert [len(first), len(second)] == [2, 1] and shared_pictures(first, second) == 0
    assert len(first[0]["captions"]) == 5


def test_a_picture_that_splits_share_stays_in_both(tmp_path):
    rows = datasets.load_dataset("parquet", data_files=table([0, 1, 0], tmp_path), split="train")
    rows.add_column("split", ["train", "train", "test"]).to_parquet(tmp_path / "train.parquet")
    train, test = (load_image_text(tmp_path / "train.parquet", split) for split in ("train", "test"))
    assert contents(train) == [(jpeg(0), ["0 0"]), (jpeg(1), ["1 1"])] and contents(test) == [(jpeg(0), ["0 2"])]
    with pytest.warns(UserWarning, match=r"1 of 1 pictures of 'test' are also in 'train\[:9%\]'"):
        warn_of_shared_pictures(train, test, "train[:9%]", "test")


def test_equal_files_are_one_picture_and_told(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "copy.jpg").write_bytes(jpeg(1))
    lines = [f"{name},{captions[0]!r}" for name, captions in zip(NAMES, [["x"], ["y"], ["z"]], strict=True)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,caption", *lines, "copy.jpg,again"]))
    with pytest.warns(UserWarning, match=r"1 files show a picture that another file shows \(copy.jpg = b.jpg\)"):
        rows = load_image_text(tmp_path, "train")
    assert rows["captions"][:] == [["'x'"], ["'y'", "again"], ["'z'"]] and rows["file_name"][:] == NAMES


def test_only_pictures_of_equal_size_are_read(tmp_path, monkeypatch):
    write_pictures(tmp_path)
    for i, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(jpeg(i) + bytes(5 * i))  # bytes after the end of a JPEG do not matter
    (tmp_path / "copy.jpg").write_bytes(jpeg(1) + bytes(5))
    rows = [f"{name},x" for name in [*NAMES, "copy.jpg"]]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
    assert len({(tmp_path / name).stat().st_size for name in NAMES}) == 3
    read = []
    monkeypatch.setattr("mpclip.data.same_pictures.xxh128_file", lambda path: read.append(path.name) or path.read_bytes())
    with pytest.warns(UserWarning, match="copy.jpg = b.jpg"):
        load_image_text(tmp_path, "train")
    assert sorted(read) == ["b.jpg", "copy.jpg"]


def test_missing_and_empty_files_are_not_equal(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.jpg,x\nb.jpg,y\nc.jpg,z\nd.jpg,z\ngood.jpg,g\n")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "good.jpg").write_bytes(jpeg(0))
    with pytest.warns(UserWarning, match="4 of 5 rows with an image that cannot be decoded"):
        assert len(load_image_text(tmp_path, "train")) == 1


def test_files_and_cells_are_compared_across_tables(tmp_path):
    write_pictures(tmp_path)
    lines = [f"{name},{captions[1]}" for name, captions in zip(NAMES, CAPTIONS, strict=True)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,caption", *lines]))
    files, cells = load_image_text(tmp_path, "train"), load_image_text(table([1, 1, 5], tmp_path / "other"), "train")
    assert shared_pictures(files, cells) == shared_pictures(cells, files) == 1


def test_row_numbers_of_two_tables_are_not_compared():
    """Pictures of different sizes are told apart without hashing them; their rows have the same number."""
    rows = [datasets.Dataset.from_list([{"image": {"bytes": jpeg(1) + tail}}]) for tail in (b"", b"longer")]
    first, second = (table.cast_column("image", datasets.Image()) for table in rows)
    assert shared_pictures(first, second) == 0 and shared_pictures(first, first) == 1


def test_a_run_warns_of_pictures_that_its_splits_share(folder, tmp_path):
    given = arguments(folder, tmp_path, "--train_split", "train[:6]", "--eval_split")
    with pytest.warns(UserWarning, match=r"2 of 4 pictures of 'train\[4:8\]' are also in 'train\[:6\]'"):
        build_trainer(parse_options([*given, "train[4:8]"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build_trainer(parse_options([*given, "validation"]))


def test_the_number_of_pictures_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "mpclip.data.same_pictures"):
        load_image_text(table([0, 0, 1], tmp_path), "train")
    assert "3 rows of 2 pictures" in caplog.text
