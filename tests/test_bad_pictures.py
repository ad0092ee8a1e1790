"""Pictures that cannot be read, that lie elsewhere or that have odd modes: named, skipped, refused or converted."""

import io
import json
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pandas
import PIL.Image
import pytest
from tiny_pictures import picture, records, write_folder

from mpclip.data.image_text import load_image_text, to_rgb

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
