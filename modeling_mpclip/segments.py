"""What one can do with an embedding of K segments: normalise it, weight it, exclude from it, keep its first m. The one place.

An embedding is K segments of d = D / K dimensions, one per prompt. Text and image are matched segment by segment:
v . t = sum_k v_k . t_k. So whatever is done to the segments of a query works on any index of inner products.

Segments are (B, m, d) tensors of any length; embeddings are (B, m * d) float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def assembled(
    segments: torch.Tensor, weights: torch.Tensor | None = None, excluded: torch.Tensor | None = None
) -> torch.Tensor:
    """The embedding of some segments: normalised, then without what is excluded, then weighted.

    Args:
        segments: (B, m, d), the first m of K segments; the result is the embedding by the first m prompts.
        weights: (K,) from `checked_weights`, or None.
        excluded: (E, K, d) segments of excluded texts, or None.

    Returns:
        (B, m * d) float32. Its norm is 1 unless weights are given.
    """
    m = segments.shape[1]
    embeds = normalized(segments)
    if excluded is not None:
        embeds = excluding(embeds, normalized(excluded[:, :m]))
    return embeds if weights is None else weighted(embeds, weights[:m])


def normalized(segments: torch.Tensor) -> torch.Tensor:
    """(B, m, d) -> (B, m * d) float32, L2-normalised as a whole (paper, section 1.3)."""
    return F.normalize(segments.flatten(1).float(), dim=-1)


def weighted(embeds: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scale segment k of normalised embeddings by w_k (paper, section 1.7).

    sum_k w_k v_k . t_k = v . (w * t): it is enough to weight one side, and it should be the query's. The norm is no longer 1.

    Args:
        embeds: (B, m * d).
        weights: (m,).
    """
    return (embeds.unflatten(1, (len(weights), -1)) * weights.to(embeds)[:, None]).flatten(1)


def excluding(embeds: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
    """normalise(t - sum_x x): a query t that excludes texts x (ours).

    A picture loses as much for showing x as it gains for showing t, so a picture of both ranks with those that show neither.
    The negated prompts cannot do this: their loss only asks that a picture of x matches x better than "not x".

    Args:
        embeds: (B, D) normalised queries.
        excluded: (E, D) normalised embeddings of what to exclude; they hold for every query.
    """
    return F.normalize(embeds - excluded.sum(dim=0), dim=-1)


def checked_weights(weights: torch.Tensor | Sequence[float], num_prompts: int) -> torch.Tensor:
    """K aspect weights as (K,) float32.

    Raises:
        ValueError: there are not K of them, or one is not finite.
    """
    weights = torch.as_tensor(weights, dtype=torch.float32)
    if weights.shape != (num_prompts,):
        raise ValueError(
            f"aspect_weights has the shape {tuple(weights.shape)}; expected one number for each of the {num_prompts} prompts."
        )
    if not torch.compiler.is_compiling() and not weights.isfinite().all():
        raise ValueError(f"aspect_weights holds {weights.tolist()}; expected finite numbers.")
    return weights


def checked_count(wanted: int | None, num_prompts: int) -> int:
    """m, the number of first prompts that `wanted` asks for; all K for None.

    Raises:
        ValueError: it is outside 1..K.
    """
    if wanted is not None and not 1 <= wanted <= num_prompts:
        raise ValueError(
            f"num_prompts={wanted}; this model has {num_prompts}, of which the first 1 to {num_prompts} can be used alone."
        )
    return num_prompts if wanted is None else wanted
