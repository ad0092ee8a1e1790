"""Operations on embeddings of K segments: normalise, weight, exclude texts, keep the first m.

An embedding consists of K segments of d = D / K dimensions, one per prompt. Text and image are compared segment by segment:
v . t = sum_k v_k . t_k. So a query whose segments were changed here works with any index that searches by inner product.

Segments are (B, m, d) tensors of any norm. Embeddings are (B, m * d) float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

LEAST_REST = 0.01  # distance of a query from what it excludes; a smaller one is that of rounding errors
EXCLUSION = 0.7  # how much an excluded text counts beside the query (docs/evaluation/exclusion.md)


def assembled(
    segments: torch.Tensor, weights: torch.Tensor | None = None, excluded: torch.Tensor | None = None
) -> torch.Tensor:
    """Make an embedding of segments: normalise, then exclude texts, then weight.

    Args:
        segments: (B, m, d), the first m of K segments.
        weights: (K,) from `checked_weights`, or None.
        excluded: (E, K, d), the segments of E texts to exclude, or None.

    Returns:
        (B, m * d) float32, the embedding by the first m prompts. Its norm is 1 unless weights are given.
    """
    m = segments.shape[1]
    embeds = normalized(segments)
    if excluded is not None:
        embeds = excluding(embeds, normalized(excluded[:, :m]))
    return embeds if weights is None else weighted(embeds, weights[:m])


def normalized(segments: torch.Tensor) -> torch.Tensor:
    """Join segments to an embedding: (B, m, d) -> (B, m * d) float32, L2-normalised as a whole (paper, section 1.3)."""
    return F.normalize(segments.flatten(1).float(), dim=-1)


def weighted(embeds: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scale segment k of normalised embeddings by w_k (paper, section 1.7).

    sum_k w_k v_k . t_k = v . (w * t), so one side is weighted: that of the queries.

    Args:
        embeds: (B, m * d).
        weights: (m,).

    Returns:
        (B, m * d). The norm is no longer 1.
    """
    return (embeds.unflatten(1, (len(weights), -1)) * weights.to(embeds)[:, None]).flatten(1)


def with_segment_of(embeds: torch.Tensor, others: torch.Tensor, segment: int, num_prompts: int) -> torch.Tensor:
    """Embeddings with one segment taken from others, such as a scene with the background of another picture (ours).

    It finds what is meant where a segment stands for one aspect alone; `mpclip eval segments` tells which does.

    Args:
        embeds, others: (B, D) each, embeddings by all prompts.
        segment: k, numbered from 0.
        num_prompts: K.

    Returns:
        (B, D) float32, normalised.

    Raises:
        ValueError: there is no segment of that number.
    """
    if not 0 <= segment < num_prompts:
        raise ValueError(f"segment={segment}; expected one of 0 to {num_prompts - 1}, as there are {num_prompts} prompts.")
    kept, taken = (side.unflatten(1, (num_prompts, -1)) for side in (embeds, others))  # (B, K, d) each
    return normalized(torch.cat([kept[:, :segment], taken[:, segment : segment + 1], kept[:, segment + 1 :]], dim=1))


def excluding(embeds: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
    """normalise(t - EXCLUSION * sum_x (x - (x . t) t)): a query t that excludes texts x (ours).

    Of each x, only what it does not share with t is subtracted. So pictures of t lose nothing of what t finds in them, however
    many texts are excluded and however similar they are, and pictures of x lose. The formula was chosen among those in
    docs/evaluation/exclusion.md. The negated prompts cannot be used for this: their loss only demands that a picture of x
    matches x better than "not x".

    Args:
        embeds: (B, D) normalised queries.
        excluded: (E, D) normalised embeddings of the texts to exclude. All of them apply to every query.

    Returns:
        (B, D), normalised.

    Raises:
        ValueError: a query has the same embedding as an excluded text.
    """
    shared = embeds @ excluded.T  # (B, E)
    if not torch.compiler.is_compiling() and (shared > 1 - LEAST_REST**2 / 2).any():  # |t - x|^2 = 2 - 2 t.x
        raise ValueError(
            "A query and what it excludes have the same embedding, so nothing is left to search for. Exclude something else."
        )
    apart = excluded.sum(dim=0) - shared.sum(dim=1, keepdim=True) * embeds  # (B, D), orthogonal to each query
    return F.normalize(embeds - EXCLUSION * apart, dim=-1)


def refuse_excluding_itself(queries: Sequence, excluded: Sequence) -> None:
    """Refuse queries that exclude themselves.

    Args:
        queries: texts; anything else among them is passed over.
        excluded: texts that all queries exclude.

    Raises:
        ValueError: a query equals an excluded text, apart from spaces around it; the message names both.
    """
    unwanted = {text.strip() for text in excluded if isinstance(text, str)}
    for query in queries:
        if isinstance(query, str) and query.strip() in unwanted:
            raise ValueError(
                f"The query {query!r} is also among the excluded texts {list(excluded)}, so nothing is left to search for. "
                "Leave it out on one side."
            )


def checked_weights(weights: torch.Tensor | Sequence[float], num_prompts: int) -> torch.Tensor:
    """Check the aspect weights of a user.

    Args:
        weights: K numbers.
        num_prompts: K.

    Returns:
        (K,) float32.

    Raises:
        ValueError: there are not K weights, or one is not finite.
    """
    weights = torch.as_tensor(weights, dtype=torch.float32)
    if weights.shape != (num_prompts,):
        raise ValueError(
            f"aspect_weights has the shape {tuple(weights.shape)}; expected one number for each of the {num_prompts} prompts."
        )
    if not torch.compiler.is_compiling() and not weights.isfinite().all():
        raise ValueError(f"aspect_weights holds {weights.tolist()}; expected finite numbers.")
    return weights


def checked_count(wanted: int | None, num_prompts: int, joint: bool = False) -> int:
    """Check how many of the first prompts a user wants.

    Args:
        wanted: m, or None for all.
        num_prompts: K.
        joint: whether every segment reads all prompts (joint_projection).

    Returns:
        m; K for None.

    Raises:
        ValueError: `wanted` is outside 1..K, or less than K where segments need all prompts.
    """
    if wanted is not None and not 1 <= wanted <= num_prompts:
        raise ValueError(
            f"num_prompts={wanted}; this model has {num_prompts}, of which the first 1 to {num_prompts} can be used alone."
        )
    if joint and wanted not in (None, num_prompts):
        raise ValueError(
            f"num_prompts={wanted}: every segment of this model reads all {num_prompts} prompts (joint_projection=True), so "
            "the first ones cannot be used alone. Leave num_prompts out, or use a model without joint_projection."
        )
    return num_prompts if wanted is None else wanted
