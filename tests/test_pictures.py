"""Any picture becomes RGB: of every mode, type of numbers, order of channels, shape."""

import io

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch
from conftest import make_tokenizer
from transformers import CLIPImageProcessorPil, EfficientNetImageProcessorPil

from modeling_mpclip import MPCLIPProcessor, pictures
from modeling_mpclip.pictures import LARGEST_ASPECT, to_rgb

PHOTO = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((16, 12))
PIXELS = np.asarray(PHOTO)  # (12, 16, 3)
GREY = PHOTO.convert("L")


def lab() -> PIL.Image.Image:
    srgb, lab = PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB")
    return PIL.ImageCms.profileToProfile(PHOTO, srgb, lab, outputMode="LAB")


def in_16_bits(order: str) -> PIL.Image.Image:
    return PIL.Image.fromarray((np.asarray(GREY).astype(np.uint16) * 257).astype(f"{order}u2"))


def with_alpha(alpha: int = 255, mode: str = "RGBA") -> PIL.Image.Image:
    picture = (PHOTO if mode == "RGBA" else GREY).copy()
    picture.putalpha(alpha)
    return picture


def with_clear_colour(picture: PIL.Image.Image, colour) -> PIL.Image.Image:
    """As of a PNG file in which one colour or palette entry is transparent."""
    picture.save(written := io.BytesIO(), "PNG", transparency=colour)
    return PIL.Image.open(written)


MODES = {
    "RGB": (PHOTO, PHOTO),
    "RGBX": (PHOTO.convert("RGBX"), PHOTO),
    "RGBA": (with_alpha(), PHOTO),
    "RGBa": (with_alpha().convert("RGBa"), PHOTO),
    "CMYK": (PHOTO.convert("CMYK"), PHOTO),
    "YCbCr": (PHOTO.convert("YCbCr"), PHOTO),
    "HSV": (PHOTO.convert("HSV"), PHOTO),
    "LAB": (lab(), PHOTO),
    "L": (GREY, GREY),
    "LA": (with_alpha(mode="LA"), GREY),
    "La": (with_alpha(mode="LA").convert("La"), GREY),
    "P": (GREY.convert("P"), GREY),
    "PA": (GREY.convert("P").convert("PA"), GREY),
    "I": (GREY.convert("I"), GREY),
    "F": (GREY.convert("F"), GREY),
    "F in 0..1": (PIL.Image.fromarray(np.asarray(GREY) / np.float32(255)), GREY),
    "I;16": (in_16_bits("<"), GREY),
    "I;16B": (in_16_bits(">"), GREY),
    "I in 16 bits": (PIL.Image.fromarray(np.asarray(GREY).astype(np.int32) * 257), GREY),
    "1": (PHOTO.convert("1"), PHOTO.convert("1").convert("L")),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_shows_the_same_picture(mode):
    picture, expected = MODES[mode]
    converted = to_rgb(picture)
    assert converted.mode == "RGB" and picture.mode == mode.split(" ")[0]
    off = np.abs(np.asarray(converted).astype(int) - np.asarray(expected.convert("RGB")))
    assert off.mean() < 2 if mode in ("YCbCr", "HSV", "LAB") else off.max() == 0  # 8 bits of them are not exact


def test_what_is_rgb_already_stays_the_same_object():
    assert to_rgb(PHOTO) is PHOTO
    for picture in (with_alpha(100), PHOTO.resize((1000, 2))):
        once = to_rgb(picture)
        assert to_rgb(once) is once


@pytest.mark.parametrize(
    "picture",
    [
        with_alpha(0),
        with_alpha(0).convert("RGBa"),
        with_alpha(0, "LA"),
        with_alpha(0, "LA").convert("La"),
        with_clear_colour(PIL.Image.new("RGB", (4, 4), (9, 9, 9)), (9, 9, 9)),
        with_clear_colour(PIL.Image.new("L", (4, 4), 9), 9),
        with_clear_colour(PIL.Image.new("P", (4, 4), 0), 0),
        np.asarray(with_alpha(0)),
        np.asarray(with_alpha(0, "LA")) / 255.0,
    ],
    ids=lambda picture: getattr(picture, "mode", "array"),
)
def test_what_is_transparent_is_white(picture):
    assert (np.asarray(to_rgb(picture)) == 255).all()


def test_orientation_of_exif_data_is_applied_once():
    exif = PIL.Image.Exif()
    exif[pictures.ORIENTATION] = 6  # turn by 90 degrees to see it upright
    PHOTO.save(written := io.BytesIO(), "PNG", exif=exif)
    turned = to_rgb(PIL.Image.open(written))
    assert np.array_equal(turned, np.rot90(PIXELS, -1)) and to_rgb(turned) is turned
    damaged = PHOTO.copy()
    damaged.info["exif"] = b"Exif\0\0nonsense"
    assert to_rgb(damaged) is damaged


TENSOR = torch.tensor(PIXELS).permute(2, 0, 1)  # (3, 12, 16)
ARRAYS = {
    "channels last": (PIXELS, PIXELS),
    "channels first": (PIXELS.transpose(2, 0, 1), PIXELS),
    "floats from 0 to 1": (PIXELS / 255, PIXELS),
    "floats from 0 to 255": (PIXELS.astype(np.float32), PIXELS),
    "rounded beyond 1": (np.float32(PIXELS / 255 * 1.0000001), PIXELS),
    "ToTensor": (TENSOR / 255, PIXELS),
    "half precision": ((TENSOR / 255).half(), PIXELS),
    "with gradient": ((TENSOR / 255).requires_grad_(), PIXELS),
    "16 bits": (PIXELS.astype(np.uint16) * 257, PIXELS),
    "long": (TENSOR.long(), PIXELS),
    "opaque RGBA": (np.asarray(with_alpha()), PIXELS),
    "grey": (np.asarray(GREY), np.asarray(GREY)),
    "grey with a channel first": (np.asarray(GREY)[None], np.asarray(GREY)),
    "grey with a channel last": (np.asarray(GREY)[..., None] / 255, np.asarray(GREY)),
    "mask": (np.asarray(GREY) > 99, (np.asarray(GREY) > 99) * 255),
}


@pytest.mark.parametrize("form", ARRAYS)
def test_every_array_shows_the_same_picture(form):
    array, expected = ARRAYS[form]
    expected = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)
    assert np.array_equal(to_rgb(array), expected)


def test_bfloat16_is_read_with_its_own_precision():
    assert np.abs(np.asarray(to_rgb((TENSOR / 255).bfloat16())).astype(int) - PIXELS).max() <= 1


UNIT = PIXELS / 255
REFUSED = {
    "NaN": (np.where(UNIT > 0.9, np.nan, UNIT), "holds NaN or infinite values"),
    "infinite": (np.where(UNIT > 0.9, np.inf, UNIT), "holds NaN or infinite values"),
    "normalised": ((UNIT - 0.5) / 0.3, r"values from -1\.\d+ to .* before it is normalised"),
    "between the ranges": (UNIT * 1.3, r"values from 0.* to 1\.3; expected floats from 0 to 1 or from 0 to 255"),
    "above 255": (PIXELS * 1.5, "expected floats from 0 to 1 or from 0 to 255"),
    "below 0": (PIXELS.astype(int) - 300, "values from -300 to .*; expected 0 to 255, or 0 to 65535"),
    "above 16 bits": (PIXELS.astype(int) * 1000, "expected 0 to 255, or 0 to 65535"),
    "complex": (UNIT.astype(complex), "expected numbers"),
    "five channels": (np.zeros((9, 9, 5)), r"shape \(9, 9, 5\); expected .* with 1 to 4 channels"),
    "ambiguous": (np.zeros((3, 9, 3)), r"shape \(3, 9, 3\): its channels may come first or last.*input_data_format"),
    "flat": (np.zeros(9), r"shape \(9,\); expected \(H, W\)"),
    "empty": (np.zeros((0, 9, 3)), r"shape \(0, 9, 3\).* has no pixels"),
    "empty PIL": (PIL.Image.new("RGB", (0, 3)), "0 x 3 pixels"),
    "bytes": (b"abc", "Got bytes; expected a picture"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_picture_is_refused_in_words(fault):
    picture, message = REFUSED[fault]
    with pytest.raises(ValueError, match=message):
        to_rgb(picture)
    with pytest.raises(ValueError, match="Picture 1: "):
        pictures.rgb_pictures([PHOTO, picture])


def test_frames_of_a_clip_have_one_range():
    dark = np.stack([PIXELS, PIXELS * 0 + 1]).astype(np.float32)  # alone, the second would be white
    assert [np.asarray(frame).max() for frame in pictures.rgb_pictures(dark)] == [PIXELS.max(), 1]
    assert len(pictures.rgb_pictures([dark, [PHOTO, [GREY]]])) == 4


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (70000, 3), (65, 1)])
def test_thin_pictures_stay_small_in_clips_processor(size):
    """It scales the shorter side to 32 before it crops: 3000 x 1 pixels would become 96,000 x 32."""
    largest = []

    class Recording(CLIPImageProcessorPil):
        def resize(self, image, *args, **kwargs):
            resized = super().resize(image, *args, **kwargs)
            largest.append(max(image.shape[-1] * image.shape[-2], resized.shape[-1] * resized.shape[-2]))
            return resized

    clips = Recording(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = MPCLIPProcessor(clips, make_tokenizer())(images=PIL.Image.new("RGB", size, "red"))["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32) and max(largest) <= LARGEST_ASPECT * 32 * 32


def test_large_pictures_are_scaled_to_a_bounded_area(monkeypatch):
    assert to_rgb(wide := PHOTO.resize((640, 10))) is wide  # 64 : 1 is within the bounds
    monkeypatch.setattr(pictures, "LARGEST_AREA", 100)
    small = to_rgb(PHOTO)
    assert small.size == (11, 8) and to_rgb(small) is small
    assert np.abs(np.asarray(small).mean(axis=(0, 1)) - PIXELS.mean(axis=(0, 1))).max() < 10


def test_processors_that_convert_nothing_take_a_mixed_batch():
    """EfficientNet's and ViT's leave the mode as it is."""
    efficient = EfficientNetImageProcessorPil(size={"height": 32, "width": 32})
    mixed = [picture for picture, _ in MODES.values()]
    pixels = MPCLIPProcessor(efficient, make_tokenizer())(images=mixed)["pixel_values"]
    expected = efficient([to_rgb(picture) for picture in mixed], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, expected)
