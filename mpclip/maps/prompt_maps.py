"""The maps of one picture or clip and one text: what each prompt sees, in arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeling_mpclip.segments import normalized

from . import BEST, KINDS
from .kinds import MAPS
from .seen import see


@dataclass
class PromptMaps:
    """What `prompt_maps` found. K is the number of prompts, T that of frames, 1 for a picture.

    Attributes:
        kind: one of `KINDS`.
        text: the text.
        pictures: (T, H, W, 3) float32 in 0..1, the frames as the model sees them: resized and cropped.
        maps: (T, K, H, W) float32, a map for each prompt, enlarged to the pictures by bilinear interpolation.
        grid: (h, w), the map's own rows and columns. It shows nothing finer than these.
        score: the cosine of picture and text.
        shares: (K,) float32, the part of each prompt in the score; they sum to it.
        prompts: K names, the prompts' templates.
    """

    kind: str
    text: str
    pictures: np.ndarray
    maps: np.ndarray
    grid: tuple[int, int]
    score: float
    shares: np.ndarray
    prompts: list[str]


def prompt_maps(
    model, processor, text: str, image: Any = None, clip: Sequence | str | None = None, kind: str = BEST
) -> PromptMaps:
    """Find where in a picture or clip each prompt's segment comes from.

    Args:
        model: [`MPCLIPModel`]. Its training mode is restored.
        processor: its [`MPCLIPProcessor`].
        text: what to look for.
        image: a picture, as the processor takes it: a PIL image, an array or a path.
        clip: a list of frames or the path of a video file, in place of the picture.
        kind: one of `mpclip.maps.KINDS`; see `mpclip.maps.kinds`.

    Raises:
        ValueError: there is no such kind; the model's pooling has no such map; both or none of image and clip are given.
        OSError: a file is not found. ImportError: a video file needs av.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; expected one of {', '.join(KINDS)}.")
    if (image is None) == (clip is None):
        raise ValueError("Give exactly one of image and clip.")
    was_training = model.training
    model.eval()
    try:
        seen = see(model, processor, *([image], None) if clip is None else (None, [clip]))
        with torch.no_grad():
            words = processor(text=[text], truncation=True).to(model.device)
            texts = model(input_ids=words["input_ids"], attention_mask=words["attention_mask"]).text_embeds  # (1, D)
            of_text = texts.unflatten(1, (model.config.num_prompts, -1))  # (1, K, d)
            of_picture = normalized(seen.features(model).prompt_embeds).unflatten(1, of_text.shape[1:])  # (1, K, d)
            shares = (of_text * of_picture).sum(dim=-1)[0]  # (K,)
        maps = MAPS[kind](model, seen, of_text)[0]  # (T, K, h, w)
    finally:
        model.train(was_training)
    return PromptMaps(
        kind=kind,
        text=text,
        pictures=seen.pictures[0],
        maps=enlarged(maps, seen.pictures.shape[2:4]).cpu().numpy(),
        grid=tuple(maps.shape[-2:]),
        score=float(shares.sum()),
        shares=shares.cpu().numpy(),
        prompts=prompt_names(model.config),
    )


def prompt_names(config) -> list[str]:
    """A name for each of the K segments: the template of its prompt, or its number where it has no prompt of its own."""
    templates, K = list(config.templates), config.num_prompts
    own = len(templates) == K and not config.joint_projection
    return templates if own else [f"segment {k + 1}" for k in range(K)]


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps at the resolution of the picture, by bilinear interpolation: (B, K, h, w) -> (B, K, H, W) float32.

    Places beyond the centres of the outermost tokens have the values of the nearest ones.
    """
    return torch.nn.functional.interpolate(maps.float(), tuple(size), mode="bilinear", align_corners=False)


def highest_places(maps: torch.Tensor) -> torch.Tensor:
    """Where each map is highest: (..., H, W) -> (..., 2) float32 row and column, in pixels.

    If several pixels share the maximum, their mean. So a flat map points at the middle.
    """
    H, W = maps.shape[-2:]
    flat = maps.flatten(-2).float()  # (..., H*W)
    highest, lowest = flat.amax(dim=-1, keepdim=True), flat.amin(dim=-1, keepdim=True)
    top = (flat >= highest - 1e-5 * (highest - lowest)).float()  # interpolation rounds
    top /= top.sum(dim=-1, keepdim=True)
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=-1).to(top)  # (H*W, 2)
    return top @ places
