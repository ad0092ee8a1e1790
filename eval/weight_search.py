"""Search for weights of the K segments that raise a metric; to be done on other data than the weights are reported on.

Segment k of the text embedding is scaled by w_k (paper, section 1.7). First, each w_k is varied alone. Then the best single
change is kept and the sweep is repeated, as long as the metric rises (ours).
"""

from collections.abc import Callable

import numpy as np

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # the values that each w_k is set to


def retrieval_score(embeds: dict, weights: list[float]) -> np.ndarray:
    """The mean recall of each image and its captions.

    Args:
        embeds: image_embeds (I, D), text_embeds (T, D), caption_image (T,).
        weights: K weights of the text's segments.

    Returns:
        (I,) float64, in percent.
    """
    import torch

    from eval.metrics import recalls_of_images, retrieval_ranks
    from modeling_mpclip.segments import weighted

    text = weighted(embeds["text_embeds"], torch.tensor(weights))
    ranks = retrieval_ranks(embeds["image_embeds"], text, embeds["caption_image"])
    return recalls_of_images(*ranks, embeds["caption_image"].numpy())


def sweep(score: Callable[[list[float]], float], weights: list[float]) -> list[list[float]]:
    """Vary each weight alone.

    Args:
        score: K weights -> the metric.
        weights: K weights to start from.

    Returns:
        (K, W) the metric with w_k set to each of `WEIGHTS` and the others unchanged.
    """
    return [[score([*weights[:k], w, *weights[k + 1 :]]) for w in WEIGHTS] for k in range(len(weights))]


def choose(score: Callable[[list[float]], float], K: int) -> tuple[list[float], list[list[float]]]:
    """Find weights that no change of a single one improves, by hill climbing from equal weights.

    Args:
        score: K weights -> the metric.
        K: number of weights.

    Returns:
        The K weights, and the first sweep as from `sweep`. Among values with the same metric, the one nearest to 1 is chosen.
    """
    weights, best = [1.0] * K, score([1.0] * K)
    first = curves = sweep(score, weights)
    while (top := max(max(curve) for curve in curves)) > best + 1e-9:
        k = next(k for k, curve in enumerate(curves) if max(curve) == top)
        equals = [w for w, value in zip(WEIGHTS, curves[k], strict=True) if value == top]
        weights[k], best = min(equals, key=lambda w: abs(w - 1)), top
        curves = sweep(score, weights)
    return weights, first
