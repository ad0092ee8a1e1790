"""The kinds of map of a prompt's segment. All but gradient are on the grid of vision tokens.

occlusion   What the score of segment k loses if the pooling does without the tokens around a place (ours).
value       What each token says about the text: the token alone is pooled, as if it had all the weight, and projected; the
            resulting segment k is multiplied with the text's segment k. MaskCLIP (arXiv 2112.01071) does the same with the last
            attention of CLIP; doing it with our pooling is ours.
attention   How much the pooling query of segment k weighs each token. It does not depend on the text.
gradient    How much each place of an inner layer of the vision encoder moves the score of segment k: gradient times
            activation (gradients.py). Its grid is finer.

A map sums to no particular number; only places within a map are to be compared. Values and occlusions may be negative.
"""

import torch
from torch import Tensor

from modeling_mpclip.clip_frames import with_frame_position
from modeling_mpclip.segments import normalized
from modeling_mpclip.tower_inputs import masked_mean

from .gradients import gradient_maps
from .seen import Seen

NO_PLACES = (
    "image_pooling='cls' reads the class token alone, so its patches have no values. Take the kind 'gradient', or a model with "
    "the pooling 'attention_per_prompt', 'attention' or 'mean'."
)


def attention_maps(model, seen: Seen, text_segments: Tensor | None = None) -> Tensor:
    """The weights of the attention pooling, averaged over the heads.

    Args:
        model: [`MPCLIPModel`] with the image_pooling "attention" or "attention_per_prompt".
        seen: of B pictures or clips of T frames.
        text_segments: not used; the weights do not depend on the text.

    Returns:
        (B, T, K, h, w) float32. Over the tokens of all frames, class tokens and padding included, weights sum to 1. If the
        pooling queries are not one per prompt, those that fill segment k are averaged.

    Raises:
        ValueError: the model has no attention pooling.
    """
    with torch.no_grad():
        weights = seen.features(model).pooling_attentions  # (B, Q, heads, T*N)
    if weights is None:
        raise ValueError(
            f"image_pooling={model.config.image_pooling!r} has no attention weights to draw: take another kind of map, or a "
            "model with 'attention' or 'attention_per_prompt'."
        )
    of_queries = weights.float().mean(dim=2).unflatten(-1, (seen.tokens.shape[1], -1))  # (B, Q, T, N)
    of_queries = of_queries[..., -seen.grid[0] * seen.grid[1] :]
    filled = _filled_by(model.config.num_prompts, weights.shape[1]).to(of_queries)  # (K, Q)
    return torch.einsum("kq,bqtn->btkn", filled, of_queries).unflatten(-1, seen.grid)


@torch.no_grad()
def occlusion_maps(model, seen: Seen, text_segments: Tensor) -> Tensor:
    """What the part of each segment in the cosine loses without the tokens around a place.

    Left out are the token and its neighbours, in windows of about 3/7 of the picture's sides. A single token would do little:
    its neighbours have seen the same object.

    Args:
        model: [`MPCLIPModel`] with another image_pooling than "cls".
        seen: of B pictures or clips. Of a clip, tokens of one frame at a time are left out.
        text_segments: (B, K, d), the segments of a text for each of them, normalised as a whole.

    Returns:
        (B, T, K, h, w) float32.

    Raises:
        ValueError: the pooling is "cls".
    """
    if model.config.image_pooling == "cls":
        raise ValueError(NO_PLACES)
    (B, T), (h, w) = seen.frame_mask.shape, seen.grid
    tokens, mask = _placed(model, seen).to(model.image_projection.weight), seen.frame_mask  # (B, T, N, C), (B, T)
    words = text_segments.to(tokens)
    if model.config.image_tokens == "patches":
        tokens = tokens[:, :, seen.leading :]
    if seen.clip and model.config.clip_pooling == "mean":  # each frame is pooled alone
        tokens, mask, words = tokens.flatten(0, 1)[:, None], mask.flatten()[:, None], words.repeat_interleave(T, dim=0)
    frames, N = tokens.shape[1:3]
    around = _windows(h, w).to(tokens.device)  # (h*w, h*w), True in the window of a place
    around = torch.nn.functional.pad(around, (N - h * w, 0))  # (h*w, N): class tokens stay
    counted = mask[..., None].expand(-1, -1, N)  # (B, frames, N)

    def scores(counted: Tensor) -> Tensor:  # -> (B, K), the parts in the cosine
        flat, kept = tokens.flatten(1, 2), counted.flatten(1, 2)
        pooling = model.image_pooling
        vectors = masked_mean(flat, kept)[:, None] if pooling is None else pooling(flat, kept)[0]  # (B, Q, W)
        return (normalized(model.image_projection(vectors)).unflatten(1, words.shape[1:]) * words).sum(dim=-1)

    whole, lost = scores(counted), []
    for frame in range(frames):
        here = torch.arange(frames, device=tokens.device)[:, None] == frame  # (frames, 1)
        lost += [whole - scores(counted & ~(here & window)) for window in around]  # (B, K) each
    maps = torch.stack(lost, dim=-1).unflatten(-1, (frames, h, w)).transpose(1, 2)  # (B, frames, K, h, w)
    maps = maps.reshape(B, T, -1, h, w).float()
    return maps * seen.frame_mask[..., None, None, None]


def _windows(h: int, w: int) -> Tensor:
    """(h*w, h*w) bool: which tokens of a grid are in the window around each place."""
    near = []
    for count in (h, w):
        radius = max(1, round(count / 7)) if count > 3 else 0
        near.append((torch.arange(count)[:, None] - torch.arange(count)).abs() <= radius)  # (count, count)
    return torch.einsum("ab,cd->acbd", near[0].float(), near[1].float()).reshape(h * w, h * w).bool()


def value_maps(model, seen: Seen, text_segments: Tensor) -> Tensor:
    """The product of each token's segment with that of a text, the token being embedded as a picture of one token.

    Args:
        model: [`MPCLIPModel`] with another image_pooling than "cls".
        seen: of B pictures or clips.
        text_segments: (B, K, d), the segments of a text for each of them, normalised as a whole.

    Returns:
        (B, T, K, h, w) float32. Summed over K: the cosine of the token's embedding with the text's.

    Raises:
        ValueError: the pooling is "cls".
    """
    segments = token_segments(model, seen)  # (B, T, N, K, d)
    maps = torch.einsum("btnkd,bkd->btkn", segments, text_segments.to(segments))
    return maps.unflatten(-1, seen.grid)


@torch.no_grad()
def token_segments(model, seen: Seen) -> Tensor:
    """The embedding of each token as if it were the only one: (B, T, h * w, K, d) float32, normalised over K and d."""
    if model.config.image_pooling == "cls":
        raise ValueError(NO_PLACES)
    tokens = _placed(model, seen)[:, :, seen.leading :].to(model.image_projection.weight)  # (B, T, h*w, C)
    alone = tokens.flatten(0, 2)[:, None]  # (B*T*h*w, 1, C), pictures of one token
    vectors = alone if model.image_pooling is None else model.image_pooling(alone)[0]  # (B*T*h*w, Q, W)
    embeds = normalized(model.image_projection(vectors))  # (B*T*h*w, D)
    return embeds.unflatten(1, (model.config.num_prompts, -1)).unflatten(0, tokens.shape[:3])


# Kind of `mpclip.maps.KINDS` -> what makes its maps
MAPS = {
    "occlusion": occlusion_maps,
    "value": value_maps,
    "attention": attention_maps,
    "gradient": gradient_maps,
}


def _placed(model, seen: Seen) -> Tensor:
    """The tokens (B, T, N, C) as the pooling gets them: those of a clip have the code of their frame's time."""
    if seen.clip and model.config.frame_position == "sinusoid" and model.config.clip_pooling == "tokens":
        return with_frame_position(seen.tokens, seen.frame_mask)
    return seen.tokens


def _filled_by(prompts: int, queries: int) -> Tensor:
    """(K, Q): which share of segment k the pooling query q fills. Each of both divides the embedding into equal parts."""
    ends = [torch.arange(count + 1, dtype=torch.float64) / count for count in (prompts, queries)]  # (K+1,), (Q+1,)
    upper = torch.minimum(ends[0][1:, None], ends[1][None, 1:])
    lower = torch.maximum(ends[0][:-1, None], ends[1][None, :-1])
    return (upper - lower).clamp(min=0) * prompts
