"""The losses, as pure functions of logits and embeddings: contrastive, diversity, negation (paper, section 1.5).

Everything is computed in float32 whatever the inputs' dtype, and returned as a 0-dimensional tensor.
`logits[b, j]` is scale * cosine (+ bias) of image b and text j; image b belongs to text b.
"""

import torch
import torch.nn.functional as F


def softmax_contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """CLIP's loss: the mean of image-to-text and text-to-image cross-entropy.

    Args:
        logits_per_image: (B, B).
    """
    logits = logits_per_image.float()
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """SigLIP's loss: every pair is its own binary question; the sum over all pairs, per image.

    Args:
        logits_per_image: (B, B), bias included.
    """
    logits = logits_per_image.float()
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1  # (B, B): +1 for pairs that belong together
    return -F.logsigmoid(sign * logits).sum() / len(logits)


def diversity_loss(prompt_embeds: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Mean over texts and ordered pairs i != j of relu(cos(t_i, t_j) - margin); the hinge is ours.

    Args:
        prompt_embeds: (B, K, D / K) with K >= 2, of any length.
    """
    unit = F.normalize(prompt_embeds.float(), dim=-1)  # (B, K, D/K)
    cosine = unit @ unit.transpose(1, 2)  # (B, K, K)
    K = cosine.shape[1]
    off_diagonal = ~torch.eye(K, dtype=torch.bool, device=cosine.device)
    return F.relu(cosine[:, off_diagonal] - margin).mean()


def softmax_negation_loss(logits_per_image: torch.Tensor, negated_logits: torch.Tensor) -> torch.Tensor:
    """What `softmax_contrastive_loss` grows by when image b's negated text joins its candidates (ours).

    -log(e^s_bb / (sum_j e^s_bj + e^n_b)) is the old cross-entropy plus softplus(n_b - logsumexp_j s_bj); image-to-text being
    half of the loss, so is this.

    Args:
        logits_per_image: (B, B).
        negated_logits: (B,), image b against the negated text b.
    """
    return F.softplus(negated_logits.float() - logits_per_image.float().logsumexp(dim=1)).mean() / 2


def sigmoid_negation_loss(negated_logits: torch.Tensor) -> torch.Tensor:
    """Image b and the negated text b as one more pair that does not belong together (ours).

    Args:
        negated_logits: (B,), bias included.
    """
    return -F.logsigmoid(-negated_logits.float()).mean()


def hinge_negation_loss(text_embeds: torch.Tensor, negated_embeds: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Mean of relu(cos(t_b, t-_b) - margin): a text and its negation lie apart; asks nothing of the image (ours).

    Args:
        text_embeds, negated_embeds: (B, D), of any length.
    """
    return F.relu(F.cosine_similarity(text_embeds.float(), negated_embeds.float(), dim=-1) - margin).mean()
