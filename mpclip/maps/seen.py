"""What a model sees: its vision tokens of pictures or of clips, where they lie, and the pictures as they were given to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modeling_mpclip.vision_families import leading_tokens


@dataclass
class Seen:
    """Vision tokens of B pictures, or of B clips of T frames. A picture counts as T = 1.

    Attributes:
        pixels: (B, T, 3, H, W), as the vision encoder takes them.
        tokens: (B, T, N, C) on the model's device. Class tokens and registers come first.
        frame_mask: (B, T) bool, False for padding frames.
        clip: whether these are clips, which the model embeds by `get_video_features`.
        leading: how many of the N tokens belong to no place.
        grid: (h, w), rows and columns of the other tokens.
        pictures: (B, T, H, W, 3) float32 in 0..1, resized and cropped as the model sees them.
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    frame_mask: torch.Tensor
    clip: bool
    leading: int
    grid: tuple[int, int]
    pictures: np.ndarray

    def features(self, model, pixels: torch.Tensor | None = None, **asked):
        """Pool and project the tokens: the `MPCLIPImageOutput` of the B pictures or clips.

        Args:
            model: the model.
            pixels: as `pixels`; the vision encoder is then run again, and gradients reach it.
            asked: for `get_image_features` or `get_video_features`, such as `output_hidden_states`.
        """
        if self.clip:
            given = {"pixel_values_videos": pixels} if pixels is not None else {"vision_hidden_states": self.tokens}
            return model.get_video_features(**given, frame_mask=self.frame_mask, **asked)
        given = {"pixel_values": pixels[:, 0]} if pixels is not None else {"vision_hidden_states": self.tokens[:, 0]}
        return model.get_image_features(**given, **asked)

    def __getitem__(self, chosen: Sequence[int]) -> "Seen":
        """Some of the pictures or clips, by their numbers; a number may come several times."""
        rows = torch.as_tensor(list(chosen))
        here = rows.to(self.tokens.device)
        pixels, pictures = self.pixels[rows], self.pictures[rows.numpy()]
        return Seen(pixels, self.tokens[here], self.frame_mask[here], self.clip, self.leading, self.grid, pictures)


def see(model, processor, images: Sequence | None = None, clips: Sequence | None = None) -> Seen:
    """Run the vision encoder on pictures or on clips.

    Args:
        model: [`MPCLIPModel`] in evaluation mode.
        processor: its [`MPCLIPProcessor`].
        images: B pictures, as `processor` takes them.
        clips: B clips in place of pictures: lists of frames, or paths of video files.

    Raises:
        ValueError: none or both are given, the model embeds texts alone, or its tokens form no grid.
    """
    if (images is None) == (clips is None):
        raise ValueError("Give exactly one of images and clips.")
    if model.config.text_only:
        raise ValueError("This text-only checkpoint has no image side, so there is nothing to draw. Use its original.")
    if clips is None:
        pixels = torch.as_tensor(processor(images=list(images))["pixel_values"])  # (B, 3, H, W)
        if pixels.dim() != 4:
            raise ValueError("Maps of SigLIP 2 NaFlex are not drawn: its pictures have grids of different proportions.")
        pixels, mask = pixels[:, None], torch.ones(len(pixels), 1, dtype=torch.bool)  # (B, 1, 3, H, W), (B, 1)
    else:
        batch = processor(videos=list(clips))
        pixels, mask = batch["pixel_values_videos"], batch["frame_mask"].bool()  # (B, T, 3, H, W), (B, T)
    with torch.no_grad():
        tokens = model.vision_tokens(pixels.flatten(0, 1).to(model.device))  # (B*T, N, C)
    leading = leading_tokens(model.config.vision_config)
    grid = token_grid(tokens.shape[1] - leading, *pixels.shape[-2:])
    pictures = as_seen(pixels.flatten(0, 1), processor.image_processor).reshape(*mask.shape, *pixels.shape[-2:], 3)
    tokens = tokens.unflatten(0, mask.shape)  # (B, T, N, C)
    return Seen(pixels, tokens, mask.to(tokens.device), clips is not None, leading, grid, pictures)


def refuse_peer(encoder) -> None:
    """Refuse a model without segments and pooling of ours.

    Args:
        encoder: an `mpclip.encoding.Encoder`.

    Raises:
        ValueError: it is not an MP-CLIP model.
    """
    from mpclip.encoding import ModelEncoder

    if not isinstance(encoder, ModelEncoder):
        raise ValueError(f"{encoder.name} is a {type(encoder.model).__name__}; maps are drawn of MP-CLIP checkpoints alone.")


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the grid that the image tokens form. It has the proportions of the image.

    Args:
        tokens: number of tokens, without class tokens and registers.
        height, width: of the image, in pixels.

    Returns:
        (rows, columns).

    Raises:
        ValueError: the tokens form no grid with the proportions of the image.
    """
    rows = round((tokens * height / width) ** 0.5)
    if rows * (tokens // max(rows, 1)) != tokens:
        raise ValueError(f"{tokens} tokens form no grid with the proportions of an image of {height} x {width} pixels.")
    return rows, tokens // rows


def as_seen(pixels: torch.Tensor, image_processor) -> np.ndarray:
    """Undo the normalisation of pixels: (B, 3, H, W) tensor -> (B, H, W, 3) float32 in 0..1."""
    if getattr(image_processor, "do_normalize", False):
        mean, std = (pixels.new_tensor(getattr(image_processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
        pixels = pixels * std + mean
    return pixels.clamp(0, 1).permute(0, 2, 3, 1).float().numpy()
