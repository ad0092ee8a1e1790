"""Maps by gradients: how much each place of an inner layer of the vision encoder moves the score of a prompt's segment.

The sum over channels of |gradient x activation| (the terms that captum's LayerGradientXActivation gives), averaged over windows
of about two vision tokens. Two choices are ours, and were made by the pointing game:

* An inner layer. The last tokens of a CNN have seen almost the whole picture, so an object is found beside its place. And
  before a layer norm the terms of a token sum to 0: a score that does not change if a token is scaled has no derivative
  along it.
* The absolute value. With their signs, the terms of an object largely cancel.
"""

import torch
from torch import Tensor

from modeling_mpclip.segments import normalized
from modeling_mpclip.vision_families import leading_tokens

from .seen import Seen, token_grid

FINER = 4  # rows of the inner layer for each row of vision tokens, at least, where the encoder has such a layer
AT_ONCE = 8  # pictures or clips whose inner layers are kept in memory


def gradient_maps(model, seen: Seen, text_segments: Tensor) -> Tensor:
    """|gradient x activation| of an inner layer, for the part of each segment in the cosine.

    Args:
        model: [`MPCLIPModel`], of any image_pooling.
        seen: of B pictures or clips of T frames.
        text_segments: (B, K, d), the segments of a text for each of them, normalised as a whole.

    Returns:
        (B, T, K, h, w) float32, on the grid of the inner layer. None is negative.

    Raises:
        ValueError: the vision encoder shows no layer whose places are known.
    """
    chunks = [range(start, min(start + AT_ONCE, len(text_segments))) for start in range(0, len(text_segments), AT_ONCE)]
    return torch.cat([_maps(model, seen[chunk], text_segments[chunk.start : chunk.stop]) for chunk in chunks])


def _maps(model, seen: Seen, text_segments: Tensor) -> Tensor:
    config, size = model.config.vision_config, seen.pixels.shape[-2:]
    with torch.enable_grad():
        # Frozen weights start no graph: the pixels do.
        output = seen.features(model, seen.pixels.to(model.device).requires_grad_(), output_hidden_states=True)
        state = inner_state(output.hidden_states, seen.grid, config, size)
        segments = normalized(output.prompt_embeds).unflatten(1, text_segments.shape[1:])  # (B, K, d)
        scores = (segments * text_segments.to(segments)).sum(dim=(0, 2))  # (K,), sums over independent pictures
        gradients = [torch.autograd.grad(score, state, retain_graph=True)[0] for score in scores]  # of the state's shape
    terms = [as_grid((gradient * state).detach(), config, size) for gradient in gradients]  # (B*T, C, h, w) each
    maps = torch.stack([term.float().abs().sum(dim=1) for term in terms], dim=1)  # (B*T, K, h, w)
    radius = round(maps.shape[-2] / seen.grid[0]) if maps.shape[-2] > seen.grid[0] else 0
    maps = torch.nn.functional.avg_pool2d(maps, 2 * radius + 1, stride=1, padding=radius)
    return maps.unflatten(0, seen.frame_mask.shape) * seen.frame_mask[..., None, None, None]


def inner_state(states, grid: tuple[int, int], vision_config, size: tuple[int, int]) -> Tensor:
    """The layer that the maps are made of, one of the encoder's hidden states.

    It is the last one with `FINER` times as many rows as there are rows of vision tokens. A plain transformer has none:
    there it is the middle one.

    Args:
        states: hidden states, or None.
        grid: rows and columns of the vision tokens.
        vision_config: config of the encoder.
        size: height and width of the pictures.

    Raises:
        ValueError: there is no hidden state whose places are known.
    """
    placed = []
    for state in states or ():
        try:
            placed.append((state, as_grid(state, vision_config, size).shape[-2]))
        except ValueError:  # such as a sequence that is no grid
            continue
    if not placed:
        raise ValueError(
            f"A vision encoder of type {vision_config.model_type!r} shows no inner layer whose places are known. Take another "
            "kind of map: value or attention."
        )
    finer = [state for state, rows in placed if rows >= FINER * grid[0]]
    return finer[-1] if finer else placed[len(placed) // 2][0]


def as_grid(state: Tensor, vision_config, size: tuple[int, int]) -> Tensor:
    """A hidden state, (B, N, C) or (B, C, h, w), as (B, C, h, w). Class tokens and registers are left out.

    Raises:
        ValueError: its places are not known.
    """
    if state.dim() == 4:
        return state
    if state.dim() != 3:
        raise ValueError(f"a hidden state of shape {tuple(state.shape)} is no grid")
    places = state[:, leading_tokens(vision_config) :]  # (B, h*w, C)
    return places.transpose(1, 2).unflatten(2, token_grid(places.shape[1], *size))
