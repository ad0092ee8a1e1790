"""The contact sheet: what is drawn lies where it was put, in inches from the upper left corner."""

import sys
from subprocess import run

import numpy as np
import PIL.Image
import pytest

from mpclip.contact_sheet import DPI, ContactSheet, wrap


def drawn(sheet, path):
    sheet.save(path)
    return np.asarray(PIL.Image.open(path).convert("RGB")).astype(int)  # (H, W, 3)


@pytest.mark.parametrize("as_array", [False, True])
def test_a_picture_fills_its_box(tmp_path, as_array):
    image = PIL.Image.new("RGB", (30, 10), (200, 100, 50))
    sheet = ContactSheet(width=3, height=2)
    sheet.picture(np.asarray(image) / 255 if as_array else image, 1, 0.5, 1, 0.3)
    pixels = drawn(sheet, tmp_path / "new" / "sheet.png")
    assert pixels.shape == (2 * DPI, 3 * DPI, 3)
    expected = np.full_like(pixels, 255)
    expected[DPI // 2 : round(0.8 * DPI), DPI : 2 * DPI] = 200, 100, 50
    assert (np.abs(pixels - expected).max(axis=2) > 2).sum() == 0
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_a_picture_of_the_page_s_resolution_keeps_its_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (DPI, DPI, 3), dtype=np.uint8)
    sheet = ContactSheet(width=2, height=2)
    sheet.picture(PIL.Image.fromarray(noise), 1, 1, 1, 1)
    np.testing.assert_array_equal(drawn(sheet, tmp_path / "sheet.png")[DPI:, DPI:], noise)


def test_a_frame_lies_around_its_box(tmp_path):
    sheet = ContactSheet(width=2, height=2)
    sheet.frame(0.5, 0.5, 1, 1, color="#ff0000", line=72 / DPI * 4, gap=0.1)  # 4 pixels
    rows, columns = np.nonzero((drawn(sheet, tmp_path / "sheet.png") != 255).any(axis=2))
    for places in (rows, columns):
        assert abs(places.min() - 0.4 * DPI) < 4 and abs(places.max() - 1.6 * DPI) < 4


@pytest.mark.parametrize(("ha", "left", "right"), [("left", 1, 2), ("center", 0.5, 1.5), ("right", 0, 1)])
@pytest.mark.parametrize(("va", "top", "bottom"), [("top", 1, 2), ("center", 0.5, 1.5), ("bottom", 0, 1)])
def test_text_lies_on_its_side_of_the_point(tmp_path, ha, left, right, va, top, bottom):
    sheet = ContactSheet(width=2, height=2)
    sheet.text("two $ of\nthem $", 1, 1, size=10, color="black", ha=ha, va=va)
    rows, columns = np.nonzero((drawn(sheet, tmp_path / "sheet.png") < 128).any(axis=2))
    assert left * DPI - 2 <= columns.min() and columns.max() <= right * DPI + 2
    assert top * DPI - 2 <= rows.min() and rows.max() <= bottom * DPI + 2
    assert np.ptp(columns) > 0.2 * DPI and np.ptp(rows) > 0.2 * DPI


def test_wrapped_lines():
    assert wrap("", 10) == []
    assert wrap("one two three four", 9) == ["one two", "three", "four"]
    assert wrap("one two three four", 9, max_lines=2) == ["one two", "three ..."]


def test_matplotlib_is_loaded_by_the_first_sheet_alone():
    script = "import sys, mpclip.contact_sheet; sys.exit('matplotlib' in sys.modules)"
    assert run([sys.executable, "-c", script]).returncode == 0
