"""Any picture -> RGB. Every way into the model converts its pictures with this one function.

    image = to_rgb(picture)  # PIL, numpy or torch -> PIL, mode RGB

The result is upright (the EXIF orientation is applied), has white where the picture is transparent, and has a bounded shape. A
picture that is upright, opaque, RGB and within the bounds is returned as it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import is_vision_available

if is_vision_available():  # transformers imports Pillow on this condition too; a text-only model runs without it
    import PIL.Image
    import PIL.ImageOps

# An image processor scales the shorter side to a few hundred pixels. A line of 3000 x 1 pixels would become 672,000 x 224.
LARGEST_ASPECT = 64  # of the sides; no real panorama reaches it
LARGEST_AREA = 89_478_485  # pixels; from here on Pillow warns that a file may be a decompression bomb
CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGBA
ROUNDING = 1e-3  # a float may leave its range by this much
ORIENTATION = 0x0112  # the EXIF tag


def to_rgb(picture, channel_axis: str | None = None) -> "PIL.Image.Image":
    """Convert a picture to RGB (ours).

    Args:
        picture: a PIL image of any mode, or a numpy array or torch tensor of any number type: (H, W) grey, or with 1 (grey),
            2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels, which come first or last. 16-bit values keep their upper 8 bits.
            Other integers are 8-bit values if none exceeds 255, otherwise 16-bit values. Floats range from 0 to 1 or from 0
            to 255. Modes I and F of PIL are read like arrays.
        channel_axis: "channels_first" or "channels_last" for an array whose shape allows both, such as (3, 40, 3).

    Returns:
        A PIL image of mode RGB. If one side is more than 64 times as long as the other, it is shortened to 64 times. A
        picture of more than 89,478,485 pixels is scaled down to that area.

    Raises:
        ValueError: the values or the shape are not those of a picture. The message says what was found and expected.
    """
    if not isinstance(picture, PIL.Image.Image):
        picture = _from_array(_as_numpy(picture), channel_axis)
    if 0 in picture.size:
        raise ValueError(f"The picture has {picture.width} x {picture.height} pixels; expected at least one.")
    return _bounded(_opaque(_upright(picture)))


def rgb_pictures(pictures: Any, channel_axis: str | None = None) -> list["PIL.Image.Image"]:
    """Convert one picture or several; see `to_rgb`.

    Args:
        pictures: a picture, an array of pictures (B, ...), or a sequence of both, also nested.
        channel_axis: as for `to_rgb`.

    Returns:
        B PIL images of mode RGB.

    Raises:
        ValueError: as `to_rgb`; the message has the number of the picture.
    """
    converted = []
    for item in flat(pictures):
        # The range of floats is decided once for the frames of a clip, of which one may be all dark.
        several = eight_bit(_as_numpy(item)) if getattr(item, "ndim", 0) == 4 else [item]
        for picture in several:
            try:
                converted.append(to_rgb(picture, channel_axis))
            except ValueError as error:
                raise ValueError(f"Picture {len(converted)}: {error}") from error
    return converted


def flat(pictures: Any) -> list:
    """One picture or nested sequences of pictures as a list. An array of several pictures stays one item."""
    if isinstance(pictures, Sequence) and not isinstance(pictures, (str, bytes)):
        return [picture for item in pictures for picture in flat(item)]
    return [pictures]


def in_unit_range(picture) -> bool:
    """Whether a picture is an array of floats that range from 0 to 1."""
    if not (isinstance(picture, torch.Tensor) or hasattr(picture, "dtype")):
        return False
    array = _as_numpy(picture)
    return array.dtype.kind == "f" and array.size > 0 and array.max() <= 1 + ROUNDING


def eight_bit(values: np.ndarray) -> np.ndarray:
    """Numbers of any type and shape as uint8 of the same shape, by the ranges that `to_rgb` describes.

    Raises:
        ValueError: a value is not finite or out of range, or floats end between the two ranges.
    """
    what = f"The picture of shape {values.shape} and type {values.dtype}"
    if values.size == 0 or values.dtype.kind not in "buif":
        raise ValueError(f"{what} has no pixels; expected numbers of shape (H, W), (H, W, C) or (C, H, W).")
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{what} holds NaN or infinite values; expected 0 to 1 or 0 to 255.")
    if values.dtype.kind in "ui":
        if low < 0 or high > 65535:
            raise ValueError(f"{what} holds values from {low} to {high}; expected 0 to 255, or 0 to 65535 for 16 bits.")
        return (values >> 8 if high > 255 else values).astype(np.uint8)
    unit = high <= 1 + ROUNDING
    if low < -ROUNDING or high > 255 + ROUNDING or (not unit and high < 2):
        raise ValueError(
            f"{what} holds values from {low:.4g} to {high:.4g}; expected floats from 0 to 1 or from 0 to 255. Clip values that "
            "lie outside, as after bicubic scaling, and pass a picture before it is normalised by mean and standard deviation."
        )
    return np.rint(np.clip(values.astype(np.float32) * (255 if unit else 1), 0, 255)).astype(np.uint8)


def _as_numpy(picture) -> np.ndarray:
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu()
        return (picture.float() if picture.is_floating_point() else picture).numpy()  # numpy has no bfloat16
    if not hasattr(picture, "__array__"):
        raise ValueError(f"Got {type(picture).__name__}; expected a picture: a PIL image, a numpy array or a torch tensor.")
    return np.asarray(picture)


def _from_array(array: np.ndarray, channel_axis: str | None) -> "PIL.Image.Image":
    values = eight_bit(array)
    if values.ndim == 3:
        values = np.moveaxis(values, _axis_of_channels(values.shape, channel_axis), -1)  # (H, W, C)
        values = values[..., 0] if values.shape[-1] == 1 else values
    elif values.ndim != 2:
        raise ValueError(f"The picture has the shape {array.shape}; expected (H, W), (H, W, C) or (C, H, W).")
    return PIL.Image.fromarray(np.ascontiguousarray(values))  # L, LA, RGB or RGBA, by the number of channels


def _axis_of_channels(shape: tuple[int, ...], channel_axis: str | None) -> int:
    """0 or 2: where a picture of this shape has its channels."""
    if channel_axis is not None:
        axis = {"channels_first": 0, "channels_last": 2}.get(getattr(channel_axis, "value", channel_axis))
        if axis is None or shape[axis] not in CHANNELS:
            raise ValueError(
                f"The picture has the shape {shape}, and its channels are said to stand by {channel_axis!r}; expected "
                "'channels_first' or 'channels_last', and 1 to 4 channels there."
            )
        return axis
    found = [axis for axis in (0, 2) if shape[axis] in CHANNELS]
    if len(found) == 2:
        raise ValueError(
            f"The picture has the shape {shape}: its channels may come first or last. Give a PIL image, or say "
            "input_data_format='channels_first' or 'channels_last'."
        )
    if not found:
        raise ValueError(f"The picture has the shape {shape}; expected (H, W, C) or (C, H, W) with 1 to 4 channels C.")
    return found[0]


def _upright(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Turned as its EXIF orientation says."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF data, for which Pillow raises errors of several types: they do not say what is up
        return image
    return PIL.ImageOps.exif_transpose(image) if turned else image


def _opaque(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """In RGB, with white under what is transparent."""
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion would clip every value above 255 to white
        image = PIL.Image.fromarray(eight_bit(np.asarray(image)))
    elif image.has_transparency_data:  # dropping the alpha channel alone would show whatever colour lies under it
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _bounded(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Scaled down to the largest aspect ratio and area. Each new pixel is the mean of those that it replaces."""
    scale = min(1.0, (LARGEST_AREA / (image.width * image.height)) ** 0.5)
    width, height = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    size = min(width, LARGEST_ASPECT * height), min(height, LARGEST_ASPECT * width)
    return image if size == image.size else image.resize(size, PIL.Image.Resampling.BOX)
