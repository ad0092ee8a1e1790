"""The three kinds of map of a prompt's segment: attention, value, gradient. All are on the grid of vision tokens.

attention   How much the pooling query of segment k weighs each token. It does not depend on the text.
value       What each token says about the text: the token alone is pooled, as if it had all the weight, and projected; the
            resulting segment k is multiplied with the text's segment k. MaskCLIP (arXiv 2112.01071) does the same with the last
            attention of CLIP; doing it with our pooling is ours.
gradient    What each token contributes to the score of segment k, to first order: gradient times activation, by captum.

A map sums to no particular number; only places within a map are to be compared, and value and gradient may be negative.
"""

import torch
from torch import Tensor

from modeling_mpclip.clip_frames import with_frame_position
from modeling_mpclip.segments import normalized

from .seen import Seen

NO_PLACES = (
    "image_pooling='cls' reads the class token alone, so the pooling shows no places. Maps need a model with the pooling "
    "'attention_per_prompt', 'attention' or 'mean'."
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


def gradient_maps(model, seen: Seen, text_segments: Tensor) -> Tensor:
    """Gradient times activation, by captum: the part of each token in the score of segment k, to first order.

    The activation is what the pooling's layer norm gives; for mean pooling, the token. The token before the norm would
    give zero everywhere: the score does not change if a token is scaled, and gradient times token is the derivative to that
    scale.

    Args:
        model, seen, text_segments: as for `value_maps`.

    Returns:
        (B, T, K, h, w) float32.

    Raises:
        ImportError: captum is not installed.
        ValueError: the pooling is "cls".
    """
    try:
        from captum.attr import InputXGradient, LayerGradientXActivation
    except ImportError as error:
        raise ImportError("Gradient maps need the package captum: pip install captum, or take another kind of map.") from error
    if model.config.image_pooling == "cls":
        raise ValueError(NO_PLACES)

    def scores(tokens: Tensor) -> Tensor:  # (B, T, N, C) -> (B, K), the part of each segment in the cosine
        segments = normalized(seen.features(model, tokens).prompt_embeds).unflatten(1, text_segments.shape[1:])
        return (segments * text_segments.to(segments)).sum(dim=-1)

    tokens = seen.tokens.detach().clone().requires_grad_()
    pooling = model.image_pooling
    method = InputXGradient(scores) if pooling is None else LayerGradientXActivation(scores, pooling.norm)
    maps = []
    with torch.enable_grad():
        for prompt in range(text_segments.shape[1]):
            parts = method.attribute(tokens, target=prompt).detach().float().sum(dim=-1)  # (B, T, N) or (B, T*N)
            parts = parts.reshape(*seen.tokens.shape[:2], -1)[..., -seen.grid[0] * seen.grid[1] :]  # (B, T, h*w)
            maps.append(parts.unflatten(-1, seen.grid))
    return torch.stack(maps, dim=2)


MAPS = {
    "value": value_maps,
    "attention": attention_maps,
    "gradient": gradient_maps,
}  # kind of `mpclip.maps.KINDS` -> (B, T, K, h, w)


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
