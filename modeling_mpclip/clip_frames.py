"""The frames of a clip: their place in time, as a code that is added to their tokens, and the mean of their embeddings."""

import torch

from .segments import normalized
from .tower_inputs import masked_mean

FASTEST = 3  # the frequencies run from half a turn to half of 2 ** FASTEST turns per clip


def with_frame_position(tokens: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Add to the tokens of each frame a fixed code of its time (ours).

    Without it the pooling over the tokens of all frames could not tell a clip from its reverse. The time runs from -0.5 to 0.5
    across the clip, whatever the number of its frames. Half of the channels get sin(w t), the other half cos(w t) - 1, so that
    the code is 0 in the middle: a clip of one frame has the tokens of a picture. The code is scaled by the standard deviation
    of each token's channels. After a layer norm it then has the same weight for every encoder.

    Args:
        tokens: (B, T, N, C) vision tokens of T frames.
        frame_mask: (B, T), 0 for padding frames. None: every frame counts.

    Returns:
        (B, T, N, C).
    """
    B, T, _, C = tokens.shape
    mask = torch.ones(B, T, device=tokens.device) if frame_mask is None else frame_mask.to(tokens.device).float()  # (B, T)
    time = (mask.cumsum(dim=1) - 0.5) / mask.sum(dim=1, keepdim=True) - 0.5  # (B, T)
    half = C // 2
    frequency = torch.pi * 2 ** torch.linspace(0, FASTEST, half, device=tokens.device)  # (C/2,) radians per clip
    angle = time[..., None] * frequency  # (B, T, C/2)
    code = torch.cat([angle.sin(), angle.cos() - 1, angle.new_zeros(B, T, C - 2 * half)], dim=-1)  # (B, T, C)
    scale = tokens.std(dim=-1, keepdim=True)  # (B, T, N, 1)
    return tokens + code.to(tokens)[:, :, None] * scale


def mean_of_frames(segments: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """The mean of the normalised embeddings of a clip's frames, as segments.

    Args:
        segments: (B, T, K, d) of T frames, not normalised.
        frame_mask: (B, T), 0 for padding frames.

    Returns:
        (B, K, d).
    """
    B, T, K, _ = segments.shape
    embeds = normalized(segments.flatten(0, 1)).unflatten(0, (B, T))  # (B, T, D) float32
    return masked_mean(embeds, frame_mask).unflatten(1, (K, -1)).to(segments)  # (B, K, d)
