"""The losses as pure functions of logits and embeddings: contrastive, diversity, negation (paper, section 1.5).

`total_loss` combines the losses that a config selects. Every loss is computed in float32, whatever the dtype of its inputs, and
returned as a 0-dimensional tensor. `logits[b, j]` is scale * cosine (+ bias) of image b and text j. Image b belongs to text b.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from .segments import normalized


def total_loss(
    embeds: Mapping[str, torch.Tensor],
    config,
    to_logits: Callable[[torch.Tensor], torch.Tensor],
    first_prompts: int | None = None,
) -> dict[str, torch.Tensor]:
    """The loss that a config selects, and its parts.

    Args:
        embeds: the fields of [`MPCLIPOutput`] by name, for B image-text pairs. Always `logits_per_image` (B, B). For the
            diversity loss and for `first_prompts`, `text_prompt_embeds` and `image_prompt_embeds` (B, K, D / K). For the
            negation loss, `text_embeds`, `image_embeds` and `negated_text_embeds` (B, D), normalised.
        config: [`MPCLIPConfig`]; its losses, weights and margins are used.
        to_logits: similarity -> logit, with the model's scale and bias ([`LogitScale`]).
        first_prompts: m, from `draw_first_prompts`. The contrastive loss is then the mean of two: over all K prompts, and over
            the first m prompts alone (elastic_prompts, ours). None: over all K prompts only.

    Returns:
        `loss`, the weighted sum, and its unweighted parts: `contrastive_loss`, and `diversity_loss` and `negation_loss` if
        their weights are not 0.

    Raises:
        ValueError: the numbers of texts and images differ.
    """
    logits = embeds["logits_per_image"]
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(f"The loss pairs text b with image b; got {logits.shape[1]} texts and {logits.shape[0]} images.")
    sigmoid = config.loss == "sigmoid"
    contrastive_loss = sigmoid_contrastive_loss if sigmoid else softmax_contrastive_loss
    parts = {"contrastive_loss": contrastive_loss(logits)}
    if first_prompts is not None:
        image, text = (
            normalized(embeds[name][:, :first_prompts]) for name in ("image_prompt_embeds", "text_prompt_embeds")
        )  # (B, m * D/K) each
        parts["contrastive_loss"] = (parts["contrastive_loss"] + contrastive_loss(to_logits(image @ text.T))) / 2
    loss = parts["contrastive_loss"]
    if config.diversity_weight:
        parts["diversity_loss"] = diversity_loss(embeds["text_prompt_embeds"], config.diversity_margin)
        loss = loss + config.diversity_weight * parts["diversity_loss"]
    if config.negation_weight:
        if config.negation_form == "hinge":
            negation = hinge_negation_loss(embeds["text_embeds"], embeds["negated_text_embeds"], config.negation_margin)
        else:
            negated = to_logits((embeds["image_embeds"] * embeds["negated_text_embeds"]).sum(dim=-1))  # (B,)
            negation = sigmoid_negation_loss(negated) if sigmoid else softmax_negation_loss(logits, negated)
        parts["negation_loss"] = negation
        loss = loss + config.negation_weight * negation
    return {"loss": loss, **parts}


def draw_first_prompts(config, training: bool) -> int | None:
    """Draw m for `total_loss`.

    Args:
        config: [`MPCLIPConfig`].
        training: whether the model is in training mode.

    Returns:
        With elastic_prompts and in training, a number from 1 to K - 1, all equally likely. Otherwise None.
    """
    if not (config.elastic_prompts and training):
        return None
    return int(torch.randint(1, config.num_prompts, ()))  # on the CPU: a resumed run restores its generator


def softmax_contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """CLIP's loss: the mean of the image-to-text and the text-to-image cross-entropy.

    Args:
        logits_per_image: (B, B).
    """
    logits = logits_per_image.float()
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """SigLIP's loss: a binary cross-entropy for each of the B * B pairs, summed and divided by B.

    Args:
        logits_per_image: (B, B), bias included.
    """
    logits = logits_per_image.float()
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1  # (B, B): +1 for matching pairs, -1 for the others
    return -F.logsigmoid(sign * logits).sum() / len(logits)


def diversity_loss(prompt_embeds: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Mean of relu(cos(t_i, t_j) - margin) over texts and ordered pairs i != j of prompts. The margin is ours.

    Args:
        prompt_embeds: (B, K, D / K) with K >= 2, of any norm.
        margin: cosine up to which a pair costs nothing.
    """
    unit = F.normalize(prompt_embeds.float(), dim=-1)  # (B, K, D/K)
    cosine = unit @ unit.transpose(1, 2)  # (B, K, K)
    K = cosine.shape[1]
    off_diagonal = ~torch.eye(K, dtype=torch.bool, device=cosine.device)
    return F.relu(cosine[:, off_diagonal] - margin).mean()


def softmax_negation_loss(logits_per_image: torch.Tensor, negated_logits: torch.Tensor) -> torch.Tensor:
    """The increase of `softmax_contrastive_loss` if image b also has the negated text b as a candidate (ours).

    With n_b as one more logit the image-to-text cross-entropy -log(e^s_bb / (sum_j e^s_bj + e^n_b)) grows by
    softplus(n_b - logsumexp_j s_bj). Image-to-text is half of the contrastive loss, so the result is half of the mean.

    Args:
        logits_per_image: (B, B), s.
        negated_logits: (B,), n: image b against the negated text b.
    """
    return F.softplus(negated_logits.float() - logits_per_image.float().logsumexp(dim=1)).mean() / 2


def sigmoid_negation_loss(negated_logits: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of image b and the negated text b as one more pair that does not match, averaged over b (ours).

    Args:
        negated_logits: (B,), image b against the negated text b, bias included.
    """
    return -F.logsigmoid(-negated_logits.float()).mean()


def hinge_negation_loss(text_embeds: torch.Tensor, negated_embeds: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Mean of relu(cos(t_b, n_b) - margin): pushes text t_b and its negation n_b apart, without the image (ours).

    Args:
        text_embeds, negated_embeds: (B, D), of any norm.
        margin: cosine up to which a pair costs nothing.
    """
    return F.relu(F.cosine_similarity(text_embeds.float(), negated_embeds.float(), dim=-1) - margin).mean()
