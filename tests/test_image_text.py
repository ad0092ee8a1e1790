"""Opening image-text data of every form, with its faults; and the items made of it for training."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pandas
import PIL.Image
import pytest
import torch

from mpclip.data.image_sources import open_table
from mpclip.data.image_text import ImageTextDataset, load_image_text, to_rgb


@pytest.fixture(autouse=True)
def cache_in_tmp(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(i: int, mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> PIL.Image.Image:
    """A picture of one colour, which `i` sets."""
    return PIL.Image.new("RGB", size, (20 * i % 256, 100, 200 - i)).convert(mode)


def write_folder(folder: Path, records: list[dict], metadata: str = "metadata.jsonl") -> Path:
    """A folder with a picture for every file name and the metadata beside them."""
    for i, name in enumerate(dict.fromkeys(record["file_name"] for record in records)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
    if metadata.endswith("csv"):
        pandas.DataFrame(records).to_csv(folder / metadata, index=False)
    else:
        (folder / metadata).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def records(count: int = 4, split: str | None = None) -> list[dict]:
    added = {"split": split} if split else {}
    return [{"file_name": f"images/{i}.png", "captions": [f"a {i}", f"b {i}"], "label": i} | added for i in range(count)]


def embedded(count: int = 4, image: str = "image", caption: str = "captions") -> datasets.Dataset:
    """A table that holds its pictures."""
    columns = {image: [picture(i) for i in range(count)], caption: [[f"a {i}", f"b {i}"] for i in range(count)]}
    return datasets.Dataset.from_dict(columns).cast_column(image, datasets.Image())


def check_rows(rows: datasets.Dataset, count: int) -> None:
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows.features["captions"] == datasets.List(datasets.Value("string"))
    assert rows["captions"][:] == [[f"a {i}", f"b {i}"] for i in range(count)]
    for i, row in enumerate(rows):
        assert row["image"].mode == "RGB"
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(picture(i)))


# Sources


def test_folder_with_jsonl_and_split_column(tmp_path):
    both = records(3, "train") + [record | {"file_name": f"other/{i}.png"} for i, record in enumerate(records(2, "test"))]
    write_folder(tmp_path, both)
    check_rows(load_image_text(tmp_path, "train"), 3)
    rows = load_image_text(str(tmp_path), "test")
    assert rows["file_name"][:] == ["other/0.png", "other/1.png"]
    assert rows["label"][:] == [0, 1]  # other columns are kept


def test_folder_with_split_folders(tmp_path):
    write_folder(tmp_path / "train", records(3))
    write_folder(tmp_path / "validation", records(2))
    check_rows(load_image_text(tmp_path, "train"), 3)
    check_rows(load_image_text(tmp_path, "validation"), 2)
    with pytest.raises(ValueError, match=r"no split 'test'.*\['train', 'validation'\]"):
        load_image_text(tmp_path, "test")


def test_csv_rows_of_one_file_become_one_row(tmp_path):
    rows = [{"file_name": f"{i}.png", "caption": f"{word} {i}", "n": i} for word in "ab" for i in range(3)]
    loaded = load_image_text(write_folder(tmp_path, rows, "metadata.csv"), "train")
    check_rows(loaded, 3)
    assert loaded["n"][:] == [0, 1, 2]


def test_csv_keeps_captions_that_look_like_missing_values(tmp_path):
    rows = [{"file_name": "0.png", "caption": "none"}, {"file_name": "1.png", "caption": "NA"}]
    assert load_image_text(write_folder(tmp_path, rows, "metadata.csv"), "train")["captions"][:] == [["none"], ["NA"]]


def test_saved_dataset_and_dict(tmp_path):
    embedded(3).save_to_disk(tmp_path / "one")
    check_rows(load_image_text(tmp_path / "one", "train"), 3)
    datasets.DatasetDict({"train": embedded(3), "test": embedded(2)}).save_to_disk(tmp_path / "two")
    check_rows(load_image_text(tmp_path / "two", "test"), 2)
    with pytest.raises(ValueError, match=r"no split 'dev'.*\['test', 'train'\]"):
        load_image_text(tmp_path / "two", "dev")


def test_parquet_file_pattern_and_folder(tmp_path):
    embedded(3).to_parquet(tmp_path / "flickr-train-0.parquet")
    embedded(2).to_parquet(tmp_path / "flickr-val-0.parquet")
    check_rows(load_image_text(tmp_path / "flickr-train-0.parquet", "train"), 3)
    check_rows(load_image_text(f"{tmp_path}/*.parquet", "validation"), 2)
    check_rows(load_image_text(tmp_path, "train"), 3)
    with pytest.raises(ValueError, match=r"no split 'train'.*'validation'"):
        load_image_text(tmp_path / "flickr-val-0.parquet", "train")


def test_split_column_of_a_single_table(tmp_path):
    """As Flickr30k has it on the Hub: all in one part named test."""
    embedded(4).add_column("split", ["train", "train", "train", "test"]).to_parquet(tmp_path / "test.parquet")
    check_rows(load_image_text(tmp_path / "test.parquet", "train"), 3)
    assert len(load_image_text(tmp_path / "test.parquet", "test")) == 1


def test_hub_id_goes_to_datasets(monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda source: ["train", "test"])
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: embedded(2, "jpg", "sentences"))
    check_rows(load_image_text("owner/name", "test"), 2)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        load_image_text(tmp_path / "absent", "train")
    with pytest.raises(FileNotFoundError, match="no parquet file"):
        load_image_text(tmp_path / "absent.parquet", "train")
    with pytest.raises(FileNotFoundError, match=r"nothing at absent\.csv: expected a folder, a file"):
        load_image_text("absent.csv", "train")
    (tmp_path / "notes.doc").write_text("")
    with pytest.raises(FileNotFoundError, match=r"something else at .*notes\.doc"):
        load_image_text(tmp_path / "notes.doc", "train")


# Columns


@pytest.mark.parametrize("image", ["img", "jpg"])
@pytest.mark.parametrize("caption", ["caption", "text", "sentences", "raw"])
def test_usual_column_names(tmp_path, image, caption):
    embedded(2, image, caption).save_to_disk(tmp_path)
    check_rows(load_image_text(tmp_path, "train"), 2)


def test_other_column_names_must_be_given(tmp_path):
    embedded(2, "photo", "description").save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"\['photo', 'description'\]. Set image_column"):
        load_image_text(tmp_path, "train")
    with pytest.raises(ValueError, match=r"no column 'words'.*Set caption_column"):
        load_image_text(tmp_path, "train", image_column="photo", caption_column="words")
    check_rows(load_image_text(tmp_path, "train", image_column="photo", caption_column="description"), 2)


def test_captions_that_are_not_needed(tmp_path, recwarn):
    embedded(2).remove_columns("captions").save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no column is named captions.*Set caption_column to one of these, or rename one"):
        load_image_text(tmp_path / "none", "train")
    rows = load_image_text(tmp_path / "none", "train", need_captions=False)
    assert rows["captions"][:] == [[], []] and rows[1]["image"].mode == "RGB"

    some = [{"file_name": "a.png", "captions": ["a"]}, {"file_name": "b.png", "captions": []}]
    rows = load_image_text(write_folder(tmp_path / "some", some), "train", need_captions=False)
    assert rows["captions"][:] == [["a"], []] and not [w for w in recwarn if "skipped" in str(w.message)]
    with pytest.raises(ValueError, match="no column 'words'"):
        load_image_text(tmp_path / "some", "train", need_captions=False, caption_column="words")


def test_image_column_of_metadata(tmp_path):
    write_folder(tmp_path, records(2))
    renamed = [{"where" if key == "file_name" else key: value for key, value in row.items()} for row in records(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    with pytest.raises(ValueError, match=r"file_name is None.*'where'.*set image_column"):
        load_image_text(tmp_path, "train")
    check_rows(load_image_text(tmp_path, "train", image_column="where"), 2)


@pytest.mark.parametrize(
    "cells",
    [
        ["one", "two"],
        [["one"], ["two"]],
        ['["one"]', '["two"]'],
        [[{"raw": "one"}], [{"raw": "two"}]],
        [{"raw": ["one"]}, {"raw": ["two"]}],
        [["one", "", None, "  "], ["two"]],
    ],
)
def test_forms_of_captions(tmp_path, cells):
    rows = datasets.Dataset.from_dict({"image": [picture(0), picture(1)], "captions": cells})
    rows.save_to_disk(tmp_path)
    assert load_image_text(tmp_path, "train")["captions"][:] == [["one"], ["two"]]


def test_captions_of_a_wrong_type(tmp_path):
    datasets.Dataset.from_dict({"image": [picture(0)], "captions": [7]}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"7 \(int\), expected a str"):
        load_image_text(tmp_path, "train")


# Faults


def spoil(folder: Path) -> Path:
    """Six pictures: 1 is corrupt, 2 truncated, 3 missing, 4 a decompression bomb; 0 and 5 are good."""
    write_folder(folder, records(6))
    (folder / "images/1.png").write_bytes(b"no picture")
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(folder / "whole.jpg")
    (folder / "images/2.png").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    (folder / "images/3.png").unlink()
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)  # over Pillow's limit, not twice over
    bomb = (folder / "images/4.png").read_bytes()
    (folder / "images/4.png").write_bytes(bomb[:12] + header + struct.pack(">I", zlib.crc32(header)) + bomb[33:])
    return folder


def test_bad_images_are_named_and_skipped(tmp_path):
    with pytest.warns(UserWarning) as caught:
        rows = load_image_text(spoil(tmp_path), "train")
    assert rows["label"][:] == [0, 5]
    [message] = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert "4 of 6 rows with an image that cannot be decoded" in message
    assert "images/1.png (not an image)" in message
    assert "images/2.png (" in message and "truncated" in message
    assert "images/3.png (no such file)" in message
    assert "images/4.png (" in message and "100 megapixels" in message


def test_bad_images_fail_where_asked(tmp_path):
    with pytest.raises(ValueError, match=r"4 of 6 rows.*images/1.png.*images/4.png"):
        load_image_text(spoil(tmp_path), "train", bad_images="fail")
    with pytest.raises(ValueError, match="use one of 'skip', 'fail'"):
        load_image_text(tmp_path, "train", bad_images="ignore")


def test_only_the_first_bad_images_are_named(tmp_path):
    write_folder(tmp_path, records(40))
    for i in range(30):
        (tmp_path / f"images/{i}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"30 of 40 .*images/19.png \(not an image\) and 10 more"):
        assert len(load_image_text(tmp_path, "train")) == 10


def test_bad_embedded_images(tmp_path):
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    cells = [{"bytes": buffer.getvalue(), "path": None}, {"bytes": b"no", "path": None}, None]
    rows = datasets.Dataset.from_dict(
        {"image": cells, "captions": [["a"], ["b"], ["c"]]},
        features=datasets.Features({"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}),
    )
    rows.to_parquet(tmp_path / "train.parquet")
    with pytest.warns(UserWarning, match=r"row 1 \(not an image\), row 2 \(no image\)"):
        assert len(load_image_text(tmp_path / "train.parquet", "train")) == 1


def test_rows_without_captions(tmp_path):
    rows = records(3)
    rows[1]["captions"] = ["", "  "]
    write_folder(tmp_path, rows)
    with pytest.warns(UserWarning, match=r"1 of 3 rows without a caption: images/1.png"):
        assert load_image_text(tmp_path, "train")["label"][:] == [0, 2]
    with pytest.raises(ValueError, match="without a caption"):
        load_image_text(tmp_path, "train", bad_images="fail")


def test_nothing_left(tmp_path):
    write_folder(tmp_path, [{"file_name": "0.png", "captions": []}])
    with pytest.warns(UserWarning, match="without a caption"), pytest.raises(ValueError, match="none of its 1 rows"):
        load_image_text(tmp_path, "train")


@pytest.mark.parametrize("name", ["../0.png", "images/../../0.png", "/etc/0.png", "C:\\0.png", "..\\0.png", "\\\\host\\0"])
def test_paths_out_of_the_folder_are_refused(tmp_path, name):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "captions": ["a"]}))
    with pytest.raises(ValueError, match=r"row 1: refused .* must lie within"):
        load_image_text(tmp_path, "train")


def test_paths_out_of_a_table_are_refused(tmp_path):
    picture(0).save(tmp_path / "secret.png")
    cell = {"bytes": None, "path": str(tmp_path / "secret.png")}
    pandas.DataFrame({"image": [cell], "captions": [["a"]]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"refused the image path .*secret.png"):
        load_image_text(tmp_path / "train.parquet", "train")
    pandas.DataFrame({"image": [cell["path"]], "captions": [["a"]]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="'image' holds text, expected pictures"):
        load_image_text(tmp_path / "train.parquet", "train")
    mended = datasets.Dataset.from_dict({"image": [cell], "captions": [["a"]]}).cast_column("image", datasets.Image())
    mended.save_to_disk(tmp_path / "mended")  # as the message says
    assert load_image_text(tmp_path / "mended", "train")[0]["image"].size == picture(0).size


def test_metadata_that_is_not_json(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(json.dumps(records(1)[0]) + "\n{broken\n")
    with pytest.raises(ValueError, match="line 2: not JSON"):
        load_image_text(tmp_path, "train")


def test_limit(tmp_path):
    write_folder(tmp_path, records(4))
    check_rows(load_image_text(tmp_path, "train", limit=2), 2)
    check_rows(load_image_text(tmp_path, "train", limit=99), 4)
    with pytest.raises(ValueError, match="limit=0"):
        load_image_text(tmp_path, "train", limit=0)


# Image modes


def test_modes_become_rgb(tmp_path):
    """Golden pixels: what each mode of file must look like."""
    grey16 = PIL.Image.fromarray(np.full((8, 12), 0x8000, dtype=np.uint16))  # mode I;16
    clear = PIL.Image.new("RGBA", (12, 8), (255, 0, 0, 0))
    palette = PIL.Image.new("P", (12, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    clear_palette = palette.copy()
    clear_palette.info["transparency"] = 1
    images = {
        "cmyk.jpg": (PIL.Image.new("CMYK", (12, 8), (0, 255, 255, 0)), (255, 0, 0)),
        "grey.png": (PIL.Image.new("L", (12, 8), 77), (77, 77, 77)),
        "grey16.png": (grey16, (128, 128, 128)),
        "binary.png": (PIL.Image.new("1", (12, 8), 1), (255, 255, 255)),
        "clear.png": (clear, (255, 255, 255)),
        "grey_alpha.png": (PIL.Image.new("LA", (12, 8), (0, 0)), (255, 255, 255)),
        "palette.png": (palette, (10, 20, 30)),
        "clear_palette.png": (clear_palette, (255, 255, 255)),
    }
    for name, (image, _) in images.items():
        image.save(tmp_path / name)
    rows = [{"file_name": name, "captions": ["a"]} for name in images]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row, (_, colour) in zip(load_image_text(tmp_path, "train", bad_images="fail"), images.values(), strict=True):
        assert row["image"].mode == "RGB", row["file_name"]
        off = np.abs(np.asarray(row["image"], dtype=int) - colour).max()
        assert off <= 2, row["file_name"]  # JPEG rounds


def test_exif_rotation_and_odd_shapes(tmp_path):
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6  # turn by 90 degrees to see it upright
    write_folder(tmp_path, records(2))
    picture(0, size=(12, 8)).save(tmp_path / "images/0.png", exif=exif)
    picture(0, size=(1, 5000)).save(tmp_path / "images/1.png")
    assert [row["image"].size for row in load_image_text(tmp_path, "train", bad_images="fail")] == [(8, 12), (1, 64)]


def test_to_rgb_of_half_transparent_red():
    assert to_rgb(PIL.Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)


# Items for training


@pytest.fixture
def rows(tmp_path):
    captions = [[f"{word} {i}" for word in "abcde"] for i in range(20)]
    return load_image_text(
        write_folder(tmp_path, [{"file_name": f"{i}.png", "captions": row} for i, row in enumerate(captions)]), "train"
    )


def drawn(examples: ImageTextDataset) -> list[str]:
    """The caption of each item."""
    items = [examples[i] for i in range(len(examples))]
    assert all(len(item["captions"]) == 1 for item in items)
    return [item["captions"][0] for item in items]


def test_items(rows):
    item = ImageTextDataset(rows)[3]
    assert item["index"] == 3 and item["image"].mode == "RGB"
    assert len(item["captions"]) == 1 and item["captions"][0] in rows[3]["captions"]
    assert ImageTextDataset(rows, captions="all")[3]["captions"] == rows[3]["captions"]


def test_random_caption_depends_on_seed_epoch_and_index_alone(rows):
    examples, again = ImageTextDataset(rows, seed=1), ImageTextDataset(rows, seed=1)
    first = drawn(examples)
    assert len({caption[0] for caption in first}) > 2  # a, b, c, d or e
    assert drawn(again)[::-1] == first[::-1] == [again[i]["captions"][0] for i in range(19, -1, -1)]
    assert drawn(ImageTextDataset(rows, seed=2)) != first
    examples.set_epoch(1)
    assert drawn(examples) != first
    again.set_epoch(5)
    again.set_epoch(1)  # as after a resume
    assert drawn(again) == drawn(examples)


def test_crops_are_drawn_anew_and_alike_after_a_resume(folder):
    rows = load_image_text(str(folder / "data"), "train")
    whole = ImageTextDataset(rows)[0]["image"]
    examples, again = (ImageTextDataset(rows, seed=1, smallest_crop=0.5) for _ in range(2))
    sizes = set()
    for epoch in range(40):
        examples.set_epoch(epoch)
        crop = examples[0]["image"]
        sizes.add(crop.size)
        assert crop.width <= whole.width and crop.height <= whole.height
        assert crop.width * crop.height >= 0.45 * whole.width * whole.height  # whole pixels
        assert 0.7 < crop.width / crop.height < 1.4
    assert len(sizes) > 20
    again.set_epoch(39)
    assert again[0]["image"].tobytes() == crop.tobytes()


def test_epoch_reaches_running_workers(rows):
    examples = ImageTextDataset(rows, with_images=False)
    loader = torch.utils.data.DataLoader(examples, None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        examples.set_epoch(epoch)
        assert [item["captions"][0] for item in loader] == drawn(examples)


def test_without_images_no_file_is_read(rows, tmp_path):
    for file in tmp_path.glob("*.png"):
        file.unlink()
    item = ImageTextDataset(rows, with_images=False)[0]
    assert set(item) == {"index", "captions"}
    with pytest.raises(FileNotFoundError, match=r"\.png"):
        ImageTextDataset(rows)[0]


def test_wrong_arguments(rows):
    with pytest.raises(ValueError, match="expected 'random' or 'all'"):
        ImageTextDataset(rows, captions="first")
    with pytest.raises(ValueError, match=r"no column \['captions'\].*load_image_text"):
        ImageTextDataset(rows.remove_columns("captions"))


# Real photographs


def shared_data(name: str) -> Path:
    given = os.environ.get("MPCLIP_SHARED_DATA")
    places = [Path(given)] if given else [parent / "shared/data" for parent in Path(__file__).resolve().parents]
    for place in places:
        if (place / name).is_dir():
            return place / name
    pytest.skip(f"{name} is not there: put it in shared/data beside the repository, or set MPCLIP_SHARED_DATA")


def test_flickr8k():
    folder = shared_data("flickr8k")
    validation = load_image_text(folder, "validation", limit=20)
    assert len(validation) == 20 and validation[0]["image"].size == (224, 224)
    assert all(len(captions) == 5 for captions in validation["captions"][:])
    with pytest.raises(ValueError, match=r"\['train', 'validation'\]"):
        load_image_text(folder, "test")
    # Without the check, which would decode every photograph.
    assert {split: len(open_table(str(folder), split)[1]) for split in ("train", "validation")} == {
        "train": 6000,
        "validation": 1000,
    }


def test_part_of_a_split(tmp_path):
    folder = write_folder(tmp_path, records(4, "train") + [{**row, "split": "validation"} for row in records(4)][:2])
    assert load_image_text(folder, "train[:50%]")["captions"][:] == load_image_text(folder, "train")["captions"][:2]
    assert len(load_image_text(folder, "train[50%:]")) == 2 and len(load_image_text(folder, "train[1:2]")) == 1
    with pytest.raises(ValueError, match="splits found"):
        load_image_text(folder, "test[:50%]")
