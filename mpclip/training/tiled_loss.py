"""The losses of large batches, with a few rows of the logits in memory at a time.

With B pairs there are B x B logits, and several tensors of that size: similarities, logits, their softmax in both directions.
At 32,768 pairs each takes 4 GiB. Here the rows are taken in tiles. What a tile needs for its gradients is computed again in the
backward pass (`torch.utils.checkpoint`), so that one tile is kept at a time. Loss and gradients are those of `total_loss`, up
to the order of sums. The product of all embeddings is computed up to four times instead of once, which is little beside the
towers.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from modeling_mpclip.contrastive_losses import softmax_negation_loss, total_loss, with_other_losses
from modeling_mpclip.segments import normalized

TILED_ABOVE = 2**22  # logits of a process: 2,048 pairs against 2,048, 16 MiB in float32
TILE = 2**20  # logits of a tile
LEAST_ROWS = 64  # of a tile: with fewer, reading the candidates would take longer than multiplying them

Others = Callable[[torch.Tensor], Iterable[torch.Tensor]]


def loss_of_pairs(
    embeds: Mapping[str, torch.Tensor],
    config,
    to_logits: Callable[[torch.Tensor], torch.Tensor],
    first_prompts: int | None = None,
    caption_ids: torch.Tensor | None = None,
    others: Others | None = None,
    processes: int = 1,
) -> dict[str, torch.Tensor]:
    """`total_loss`, in tiles if there are more than `TILED_ABOVE` logits.

    Args:
        embeds, config, to_logits, first_prompts, caption_ids, others: as for `total_loss`, but that `text_embeds` and
            `image_embeds` (B, D) are always there, and `logits_per_image` may be missing.
        processes: number of processes whose batches are contrasted.

    Returns:
        As `total_loss`.
    """
    B = len(embeds["text_embeds"])
    if B * B * processes > TILED_ABOVE:
        return total_loss_in_tiles(embeds, config, to_logits, first_prompts, caption_ids, others)
    if others is None and embeds.get("logits_per_image") is None:
        embeds = {**embeds, "logits_per_image": to_logits(embeds["image_embeds"] @ embeds["text_embeds"].T)}  # (B, B)
    return total_loss(embeds, config, to_logits, first_prompts, caption_ids, others)


def total_loss_in_tiles(
    embeds: Mapping[str, torch.Tensor],
    config,
    to_logits: Callable[[torch.Tensor], torch.Tensor],
    first_prompts: int | None = None,
    caption_ids: torch.Tensor | None = None,
    others: Others | None = None,
    tile: int = TILE,
) -> dict[str, torch.Tensor]:
    """`total_loss` of `text_embeds` and `image_embeds` (B, D), `tile` logits at a time; `logits_per_image` is not needed."""
    sigmoid = config.loss == "sigmoid"
    everywhere = None  # (N,) captions of all processes, own ones first
    if caption_ids is not None:
        everywhere = caption_ids if others is None else torch.cat([caption_ids, *others(caption_ids)])

    def contrastive(image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        of_pairs = _sigmoid_loss if sigmoid else _softmax_loss
        return of_pairs(image, text, to_logits, everywhere, others or (lambda x: ()), tile)

    loss, of_images = contrastive(embeds["image_embeds"], embeds["text_embeds"])
    if first_prompts is not None:
        names = ("image_prompt_embeds", "text_prompt_embeds")
        loss = (loss + contrastive(*(normalized(embeds[name][:, :first_prompts]) for name in names))[0]) / 2
    # The logsumexp of a row's one column is the row's own.
    return with_other_losses(
        loss, embeds, config, to_logits, lambda negated: softmax_negation_loss(of_images[:, None], negated)
    )


def _softmax_loss(image, text, to_logits, everywhere, others, tile) -> tuple[torch.Tensor, torch.Tensor]:
    """`softmax_contrastive_loss` of (B, D) images and texts, and the logsumexp (B,) of each image's logits."""
    (per_image, of_images), (per_text, _) = (
        _rows_against(queries, torch.cat([own, *others(own)]), to_logits, everywhere, tile)
        for queries, own in ((image, text), (text, image))
    )
    return (per_image + per_text) / 2, of_images


def _rows_against(queries, candidates, to_logits, everywhere, tile) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of (B, D) queries among (N, D) candidates, of which the first B match; and (B,) logsumexp."""
    rows = max(LEAST_ROWS, tile // len(candidates))
    candidates = _widened(candidates)
    losses, sums = [], []
    for start in range(0, len(queries), rows):

        def one(part: torch.Tensor, candidates: torch.Tensor, start: int = start) -> tuple[torch.Tensor, torch.Tensor]:
            own = torch.arange(start, start + len(part), device=part.device)
            logits = to_logits(part @ candidates.to(part.dtype).T).float()  # (rows, N)
            if everywhere is not None:
                same = everywhere[own, None] == everywhere  # (rows, N)
                logits = logits.masked_fill(same.scatter(1, own[:, None], False), -torch.inf)
            return F.cross_entropy(logits, own, reduction="sum"), logits.logsumexp(dim=1)

        loss, of_rows = _kept_once(one, queries[start : start + rows], candidates)
        losses.append(loss)
        sums.append(of_rows)
    return torch.stack(losses).sum() / len(queries), torch.cat(sums)


def _sigmoid_loss(image, text, to_logits, everywhere, others, tile) -> tuple[torch.Tensor, None]:
    """`sigmoid_contrastive_loss` of (B, D) images against their texts, and against those of one other process after another."""
    B, losses = len(image), []
    rows = max(LEAST_ROWS, tile // B)
    for number, block in enumerate([text, *others(text)]):  # (B, D) each
        block = _widened(block)
        for start in range(0, B, rows):

            def one(part: torch.Tensor, block: torch.Tensor, start: int = start, number: int = number) -> torch.Tensor:
                own = torch.arange(start, start + len(part), device=part.device)
                matches = torch.zeros(len(part), B, dtype=torch.bool, device=part.device)
                if number == 0:
                    matches.scatter_(1, own[:, None], True)
                logits = to_logits(part @ block.to(part.dtype).T).float()  # (rows, B)
                of_each = -F.logsigmoid(torch.where(matches, logits, -logits))
                if everywhere is not None:
                    same = everywhere[own, None] == everywhere[number * B : (number + 1) * B]  # (rows, B)
                    of_each = of_each.masked_fill(same & ~matches, 0)
                return of_each.sum()

            losses.append(_kept_once(one, image[start : start + rows], block))
    return torch.stack(losses).sum() / B, None


def _widened(candidates: torch.Tensor) -> torch.Tensor:
    """In float32 at least: the gradients of many tiles are summed in this dtype, and bfloat16 would round each sum."""
    return candidates.to(torch.promote_types(candidates.dtype, torch.float32))


def _kept_once(one: Callable, part: torch.Tensor, candidates: torch.Tensor):
    """A tile whose logits are not kept for the backward pass but computed again."""
    return checkpoint(one, part, candidates, use_reentrant=False, preserve_rng_state=False)
