"""Pictures as parts of the page: thumbnails, and maps over what the model sees."""

import base64
from dataclasses import dataclass

import numpy as np
import PIL.Image

from mpclip.search.pictures import thumbnail

SMALL, LARGE = 176, 288  # longer side of a thumbnail, in pixels


@dataclass
class Map:
    """A map of a picture and a caption.

    Attributes:
        source: the picture in pale grey with the map over it, as `inline` gives it.
        part: of the cosine: of all prompts, or of one.
    """

    source: str
    part: float


@dataclass
class Maps:
    """The maps of one picture and its caption.

    Attributes:
        caption: the text.
        picture: as the model sees it, as `inline` gives it.
        whole: the sum of the maps of all prompts.
        prompts: K maps, in the prompts' order; none for a single prompt, whose map is `whole`.
    """

    caption: str
    picture: str
    whole: Map
    prompts: list[Map]


def inline(image: PIL.Image.Image | np.ndarray, side: int = SMALL) -> str:
    """A picture as the address of an `<img>`, the picture itself being in the address.

    Args:
        image: a PIL image, or floats (H, W, 3) in 0..1.
        side: longer side, in pixels.
    """
    if not isinstance(image, PIL.Image.Image):
        image = PIL.Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(image.convert("RGB"), side)).decode()


def maps_of(encoder, caption: str, image: PIL.Image.Image) -> Maps:
    """The maps of a picture and a caption, of the kind that wins the pointing game.

    Args:
        encoder: a `ModelEncoder`.
        caption: the text.
        image: the picture.

    Raises:
        ValueError: the model has no such maps.
    """
    from mpclip.maps.drawing import colour_scale, heat_over
    from mpclip.maps.prompt_maps import prompt_maps

    found = prompt_maps(encoder.model, encoder.processor, caption, image=image)
    picture, maps = found.pictures[0], found.maps[0]  # (H, W, 3), (K, H, W)
    summed, scale = maps.sum(axis=0), colour_scale(maps)
    alone = [
        Map(inline(heat_over(picture, one, *scale)), float(part))
        for one, part in zip(maps, found.shares, strict=True)
        if len(maps) > 1
    ]
    whole = Map(inline(heat_over(picture, summed, *colour_scale(summed))), found.score)
    return Maps(caption, inline(picture), whole, alone)
