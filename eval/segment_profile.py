"""What the K segments of an embedding have in common, and which captions and pictures each of them stands for.

Segment k of text t and picture v gives the score t_k . v_k. The score of a pair is the sum over segments.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


def cosines(embeds: Tensor, K: int) -> Tensor:
    """Mean cosine of two segments of one embedding, which the diversity loss lowers (paper, section 1.5).

    Args:
        embeds: (B, D).
        K: number of segments.

    Returns:
        (K, K) float32 with ones on the diagonal.
    """
    segments = normalize(embeds.unflatten(1, (K, -1)), dim=-1)  # (B, K, d)
    return torch.einsum("bkd,bld->kl", segments, segments) / len(segments)


def score_correlations(text_embeds: Tensor, image_embeds: Tensor, K: int) -> Tensor:
    """Pearson correlation of the scores of two segments over all pairs of a text and a picture (ours).

    1: two prompts rank alike. The cosine of two segments does not tell this, because each prompt has a projection of its own.
    The T x I scores are never computed: the sum over pairs of (t_k . v_k) (t_l . v_l) is the inner product of the two (d, d)
    matrices sum_t t_k t_l' and sum_v v_k v_l'.

    Args:
        text_embeds: (T, D).
        image_embeds: (I, D).
        K: number of segments.

    Returns:
        (K, K) float64 with ones on the diagonal; nan where a segment gives all pairs one score.
    """
    text, image = (embeds.double().unflatten(1, (K, -1)).transpose(0, 1) for embeds in (text_embeds, image_embeds))  # (K, T, d)
    mean = (text.mean(dim=1) * image.mean(dim=1)).sum(dim=1)  # (K,) of the scores of each segment
    pairs = text.shape[1] * image.shape[1]
    product = torch.stack(
        [torch.stack([((text[k].T @ text[m]) * (image[k].T @ image[m])).sum() / pairs for m in range(K)]) for k in range(K)]
    )  # (K, K)
    covariance = product - mean[:, None] * mean[None, :]
    deviation = covariance.diagonal().clamp(min=0).sqrt()  # (K,)
    return covariance / (deviation[:, None] * deviation[None, :])


class Leaning(NamedTuple):
    """How much more one prompt says for a caption and its picture than the other prompts do.

    Attributes:
        captions: (T, K) float32.
        pictures: (I, K) float32, the mean over the captions of a picture.
        share: (K,) float32, the mean part of each segment in the score of a caption with its picture; they sum to 1.
    """

    captions: Tensor
    pictures: Tensor
    share: Tensor


def leanings(text_embeds: Tensor, image_embeds: Tensor, caption_image: Tensor, K: int) -> Leaning:
    """Compare the scores that the segments give to captions and their own pictures (ours).

    The scores of each segment are standardised over the captions. The leaning of a caption to prompt k is its standardised
    score minus the mean of those of the other prompts, so that captions which all prompts find easy do not head every list.

    Args:
        text_embeds, image_embeds, caption_image: (T, D), (I, D), (T,), as from `encode_dataset`.
        K: number of segments. With one, the leaning is the standardised score itself.
    """
    text, image = (embeds.unflatten(1, (K, -1)) for embeds in (text_embeds, image_embeds[caption_image]))  # (T, K, d)
    scores = (text * image).sum(dim=-1)  # (T, K)
    standard = (scores - scores.mean(dim=0)) / scores.std(dim=0).clamp(min=1e-12)  # (T, K)
    others = (standard.sum(dim=1, keepdim=True) - standard) / max(K - 1, 1)  # (T, K) mean of the other prompts
    captions = standard - others  # (T, K)
    pictures = torch.zeros(len(image_embeds), K).index_add_(0, caption_image, captions)  # (I, K)
    counted = caption_image.bincount(minlength=len(image_embeds)).clamp(min=1)  # (I,)
    return Leaning(captions, pictures / counted[:, None], scores.mean(dim=0) / scores.mean(dim=0).sum())
