"""The losses, as pure functions of logits and embeddings: contrastive, diversity, negation (paper, section 1.5).

`total_loss` puts together what a config asks for. Everything is computed in float32 whatever the inputs' dtype, and returned as
a 0-dimensional tensor. `logits[b, j]` is scale * cosine (+ bias) of image b and text j; image b belongs to text b.
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
    """The loss of a config and its parts.

    Args:
        embeds: as [`MPCLIPOutput`] names them, for B pairs: `logits_per_image` (B, B); `text_prompt_embeds` and
            `image_prompt_embeds` (B, K, D / K) for the diversity loss and `first_prompts`; `text_embeds`, `image_embeds` and
            `negated_text_embeds` (B, D), normalised, for the negation loss.
        config: [`MPCLIPConfig`]; its loss, weights and margins.
        to_logits: similarity -> logit, with the model's scale and bias ([`LogitScale`]).
        first_prompts: m; the contrastive loss is then the mean of that of all prompts and that of the first m alone
            (elastic_prompts, ours). `draw_first_prompts` draws it.

    Returns:
        `loss`, and its parts before weighting: `contrastive_loss`, and where the config has them `diversity_loss` and
        `negation_loss`.

    Raises:
        ValueError: there are not as many texts as images.
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
    """m for `total_loss`: drawn from 1 to K - 1 in every step of training with elastic_prompts, else None."""
    if not (config.elastic_prompts and training):
        return None
    return int(torch.randint(1, config.num_prompts, ()))  # on the CPU, whose generator a resumed run restores


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
