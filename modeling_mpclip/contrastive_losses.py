"""The losses as pure functions of logits and embeddings: contrastive, diversity, negation (paper, section 1.5).

`total_loss` combines the losses that a config selects. Every loss is computed in float32, whatever the dtype of its inputs, and
returned as a 0-dimensional tensor. `logits[b, j]` is scale * cosine (+ bias) of image b and text j. Image b belongs to text b.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F

from .segments import normalized


def total_loss(
    embeds: Mapping[str, torch.Tensor],
    config,
    to_logits: Callable[[torch.Tensor], torch.Tensor],
    first_prompts: int | None = None,
    caption_ids: torch.Tensor | None = None,
    others: Callable[[torch.Tensor], Iterable[torch.Tensor]] | None = None,
) -> dict[str, torch.Tensor]:
    """The loss that a config selects, and its parts.

    Args:
        embeds: the fields of [`MPCLIPOutput`] by name, for B image-text pairs. Always `logits_per_image` (B, B), or with
            `others` `text_embeds` and `image_embeds` (B, D). For the diversity loss and for `first_prompts`,
            `text_prompt_embeds` and `image_prompt_embeds` (B, K, D / K). For the negation loss, `text_embeds`, `image_embeds`
            and `negated_text_embeds` (B, D), normalised.
        config: [`MPCLIPConfig`]; its losses, weights and margins are used.
        to_logits: similarity -> logit, with the model's scale and bias ([`LogitScale`]).
        first_prompts: m, from `draw_first_prompts`. The contrastive loss is then the mean of two: over all K prompts, and over
            the first m prompts alone (elastic_prompts, ours). None: over all K prompts only.
        caption_ids: (B,) integers, equal for equal captions. A text is then no negative of the images that have the same
            caption. None: all captions differ.
        others: with several processes, a function from a (B, ...) tensor to those of the other processes, one after the other
            and always in the same order; gradients return to where a tensor comes from. The texts and images of all processes
            are then contrasted, and the mean of the losses over the processes is the loss of one process with all pairs.

    Returns:
        `loss`, the weighted sum, and its unweighted parts: `contrastive_loss`, and `diversity_loss` and `negation_loss` if
        their weights are not 0.

    Raises:
        ValueError: the numbers of texts and images differ.
    """
    sigmoid = config.loss == "sigmoid"
    if others is None:
        logits = embeds["logits_per_image"]
        if logits.shape[0] != logits.shape[1]:
            raise ValueError(f"The loss pairs text b with image b; got {logits.shape[1]} texts and {logits.shape[0]} images.")
    no_negatives = _no_negatives(caption_ids, others)

    def contrastive(image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss of normalised embeddings (B, D), and with softmax the logits of images and all texts."""
        if sigmoid:
            return _sigmoid_loss_in_blocks(image, text, to_logits, no_negatives, others), None
        if others is None:
            logits = to_logits(image @ text.T)  # (B, B)
            return softmax_contrastive_loss(logits, no_negatives=no_negatives), logits
        logits = to_logits(image @ torch.cat([text, *others(text)]).T)  # (B, B of all processes), own texts first
        per_text = to_logits(text @ torch.cat([image, *others(image)]).T)  # (B, B of all processes)
        return softmax_contrastive_loss(logits, per_text, no_negatives), logits

    if others is None:
        of_logits = sigmoid_contrastive_loss if sigmoid else softmax_contrastive_loss
        loss = of_logits(logits, no_negatives=no_negatives)
    else:
        loss, logits = contrastive(embeds["image_embeds"], embeds["text_embeds"])
    if first_prompts is not None:
        names = ("image_prompt_embeds", "text_prompt_embeds")
        image, text = (normalized(embeds[name][:, :first_prompts]) for name in names)  # (B, m * D/K) each
        loss = (loss + contrastive(image, text)[0]) / 2
    return with_other_losses(
        loss, embeds, config, to_logits, lambda negated: softmax_negation_loss(logits, negated, no_negatives)
    )


def with_other_losses(
    loss: torch.Tensor,
    embeds: Mapping[str, torch.Tensor],
    config,
    to_logits: Callable[[torch.Tensor], torch.Tensor],
    softmax_negation: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Add the diversity and the negation loss that a config asks for to a contrastive loss.

    Args:
        loss: (), the contrastive loss.
        embeds, config, to_logits: as for `total_loss`.
        softmax_negation: (B,) logits of the negated texts -> `softmax_negation_loss`.

    Returns:
        As `total_loss`.
    """
    parts = {"contrastive_loss": loss}
    if config.diversity_weight:
        parts["diversity_loss"] = diversity_loss(embeds["text_prompt_embeds"], config.diversity_margin)
        loss = loss + config.diversity_weight * parts["diversity_loss"]
    if config.negation_weight:
        if config.negation_form == "hinge":
            negation = hinge_negation_loss(embeds["text_embeds"], embeds["negated_text_embeds"], config.negation_margin)
        else:
            negated = to_logits((embeds["image_embeds"] * embeds["negated_text_embeds"]).sum(dim=-1))  # (B,)
            negation = sigmoid_negation_loss(negated) if config.loss == "sigmoid" else softmax_negation(negated)
        parts["negation_loss"] = negation
        loss = loss + config.negation_weight * negation
    return {"loss": loss, **parts}


def _no_negatives(caption_ids: torch.Tensor | None, others: Callable | None) -> torch.Tensor | None:
    """(B, B of all processes) bool: pairs of an image and a text of another pair that has the same caption."""
    if caption_ids is None:
        return None
    everywhere = caption_ids if others is None else torch.cat([caption_ids, *others(caption_ids)])
    same = caption_ids[:, None] == everywhere  # (B, B of all processes)
    return same.fill_diagonal_(False)  # own texts come first


def _sigmoid_loss_in_blocks(image, text, to_logits, no_negatives, others) -> torch.Tensor:
    """`sigmoid_contrastive_loss` of (B, D) images against their texts, and against those of one other process after another."""
    B, loss = len(image), 0.0
    blocks = [text] if others is None else itertools.chain([text], others(text))
    for i, block in enumerate(blocks):  # (B, D) each
        excluded = None if no_negatives is None else no_negatives[:, i * B : (i + 1) * B]
        loss = loss + sigmoid_contrastive_loss(to_logits(image @ block.T), excluded, matching=i == 0)
    return loss


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


def softmax_contrastive_loss(
    logits_per_image: torch.Tensor,
    logits_per_text: torch.Tensor | None = None,
    no_negatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """CLIP's loss: the mean of the image-to-text and the text-to-image cross-entropy.

    Args:
        logits_per_image: (B, N), B images against N >= B texts; text b is that of image b.
        logits_per_text: (B, N), the first B texts against N images. Default: the transpose of `logits_per_image`.
        no_negatives: (B, N) bool, pairs to leave out of both; False for matching pairs. It holds for
            image b and text n, and for text b and image n.
    """
    both = (logits_per_image, logits_per_image.T if logits_per_text is None else logits_per_text)
    target = torch.arange(len(logits_per_image), device=logits_per_image.device)
    return sum(F.cross_entropy(_without(no_negatives, logits.float()), target) for logits in both) / 2


def _without(no_negatives: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    """Logits of which those to leave out are -inf."""
    return logits if no_negatives is None else logits.masked_fill(no_negatives, -torch.inf)


def sigmoid_contrastive_loss(
    logits_per_image: torch.Tensor, no_negatives: torch.Tensor | None = None, matching: bool = True
) -> torch.Tensor:
    """SigLIP's loss: a binary cross-entropy for each of the B * B pairs, summed and divided by B.

    Args:
        logits_per_image: (B, B), bias included.
        no_negatives: (B, B) bool, pairs to leave out; False for matching pairs.
        matching: whether text b is that of image b. If not, no pair matches.
    """
    logits = logits_per_image.float()
    sign = 2 * matching * torch.eye(len(logits), device=logits.device) - 1  # (B, B): +1 for matching pairs, -1 for the others
    losses = -F.logsigmoid(sign * logits)  # (B, B)
    return (losses if no_negatives is None else losses.masked_fill(no_negatives, 0)).sum() / len(logits)


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


def softmax_negation_loss(
    logits_per_image: torch.Tensor, negated_logits: torch.Tensor, no_negatives: torch.Tensor | None = None
) -> torch.Tensor:
    """The increase of `softmax_contrastive_loss` if image b also has the negated text b as a candidate (ours).

    With n_b as one more logit the image-to-text cross-entropy -log(e^s_bb / (sum_j e^s_bj + e^n_b)) grows by
    softplus(n_b - logsumexp_j s_bj). Image-to-text is half of the contrastive loss, so the result is half of the mean.

    Args:
        logits_per_image: (B, N), s.
        negated_logits: (B,), n: image b against the negated text b.
        no_negatives: (B, N) bool, as for `softmax_contrastive_loss`.
    """
    logits = _without(no_negatives, logits_per_image.float())  # (B, N)
    return F.softplus(negated_logits.float() - logits.logsumexp(dim=1)).mean() / 2


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
