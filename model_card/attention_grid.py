"""Heat maps of the attention pooling over images: what each prompt looks at.

pictures, maps = pooling_maps(model, processor, images)
attention_grid(pictures, maps, titles, "attention.png")
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from mpclip.contact_sheet import FAINT, ContactSheet, wrap
from mpclip.maps.drawing import heat_over
from mpclip.maps.seen import as_seen, token_grid

# Lengths in inches.
CELL = 1.45  # longer side of a picture
GAP = 0.12  # between pictures
TITLE_LINE = 0.155  # height of a line of a column's title
LABEL = 0.22  # height of the line below a picture


def pooling_maps(model, processor, images: Sequence[PIL.Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Run the image tower on a few images and return the weights of its attention pooling.

    Args:
        model: [`MPCLIPModel`] with image_pooling "attention" or "attention_per_prompt". Its training mode is restored.
        processor: its [`MPCLIPProcessor`].
        images: B images, RGB.

    Returns:
        pictures (B, H, W, 3) float32 in 0..1: the images as the model sees them, resized and cropped.
        maps (B, Q, h, w) float32: the weights of the Q pooling queries on the grid of image tokens, averaged over the heads. A
            map sums to 1, or to less if there are special tokens such as a class token, which take the rest.

    Raises:
        ValueError: the model has no attention pooling, or its pictures are no arrays of one size.
    """
    import torch

    from modeling_mpclip.vision_families import leading_tokens

    image_processor = processor.image_processor
    pixels = image_processor(list(images), return_tensors="pt")["pixel_values"]  # (B, 3, H, W)
    if pixels.dim() != 4:
        raise ValueError("Maps of SigLIP 2 NaFlex are not drawn: its pictures have grids of different proportions.")
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        weights = model.get_image_features(pixel_values=pixels.to(model.device)).pooling_attentions  # (B, Q, heads, N)
    model.train(was_training)
    if weights is None:
        raise ValueError(
            f"image_pooling={model.config.image_pooling!r} has no attention weights to draw: give a model with "
            "'attention' or 'attention_per_prompt'."
        )
    special = 0 if model.config.image_tokens == "patches" else leading_tokens(model.config.vision_config)
    h, w = token_grid(weights.shape[-1] - special, *pixels.shape[-2:])
    maps = weights.float().mean(dim=2)[..., special:].unflatten(-1, (h, w))  # (B, Q, h, w)
    return as_seen(pixels, image_processor), maps.cpu().numpy()


def attention_grid(pictures: np.ndarray, maps: np.ndarray, titles: Sequence[str], path: str | Path) -> None:
    """Draw a row for each picture into a PNG file: the picture, then each of its heat maps over the picture in grey.

    Places that weigh more than the map's mean are coloured. The colour is full at the map's highest weight, or at 1.5 times the
    mean if that is more, so that a flat map stays pale. Below a map stands its highest weight, as a multiple of the mean.

    Args:
        pictures: (B, H, W, 3) float in 0..1.
        maps: (B, Q, h, w) weights, not negative.
        titles: Q column titles.
        path: the file to write; its folder is created.

    Raises:
        ValueError: the numbers of pictures, maps and titles do not match.
    """
    B, Q = maps.shape[:2]
    H, W = pictures.shape[1:3]
    if len(pictures) != B or len(titles) != Q:
        raise ValueError(
            f"{len(pictures)} pictures, {B} x {Q} maps, {len(titles)} titles: expected a row of maps for every picture "
            "and a title for every column of maps"
        )
    cell_w, cell_h = CELL * W / max(H, W), CELL * H / max(H, W)  # inches
    wrapped = [wrap(title, 19, max_lines=4) for title in titles]
    head = GAP + TITLE_LINE * max(map(len, wrapped), default=0) + 0.06
    row_height = cell_h + LABEL
    sheet = ContactSheet(width=GAP + (Q + 1) * (cell_w + GAP), height=head + B * (row_height + GAP))

    def draw(row: int, column: int, image: np.ndarray, label: str) -> None:
        left, top = GAP + column * (cell_w + GAP), head + row * (row_height + GAP)
        sheet.picture(image, left, top, cell_w, cell_h)
        sheet.text(label, left + cell_w / 2, top + cell_h + 0.05, size=7.5, color=FAINT, ha="center")

    for column, lines in enumerate(wrapped, start=1):
        middle = GAP + column * (cell_w + GAP) + cell_w / 2
        sheet.text("\n".join(lines), middle, head - 0.06, size=8, ha="center", va="bottom")
    for row in range(B):
        draw(row, 0, pictures[row], "as the model sees it")
        for column, weights in enumerate(maps[row], start=1):
            draw(row, column, heat_over(pictures[row], weights), f"highest {weights.max() / weights.mean():.1f} x mean")
    sheet.save(path)
