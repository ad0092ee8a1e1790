"""Ranks of right answers, in both directions of retrieval, from embeddings alone.

Scores are inner products: cosines, if the embeddings are L2-normalised. Queries with weighted segments need not be normalised.

**A tie counts against the model.** The rank of a right answer is 1 + the number of wrong answers that score at least as high.
If only higher scores counted, a model whose embeddings are all equal would reach a recall of 100%; here it gets 0%. Scores are
equal if they differ by no more than the rounding error of fp32, because a matrix product may round equal rows differently.

"Image" stands for whatever a text describes: a picture or a clip.
"""

import numpy as np
import torch
from torch import Tensor

CHUNK = 4096  # scores are computed for CHUNK x CHUNK pairs at a time
FEW = 8  # right answers per query up to which they are counted one after the other, which is then faster


def retrieval_ranks(
    image_embeds: Tensor | np.ndarray,
    text_embeds: Tensor | np.ndarray,
    caption_image: Tensor | np.ndarray,
    chunk: int = CHUNK,
) -> tuple[np.ndarray, np.ndarray]:
    """For every text the rank of its image, and for every image the rank of its best text; 1 is best.

    Args:
        image_embeds: (I, D), any float type, numpy or torch. Scores are computed in fp32 on its device.
        text_embeds: (T, D), likewise.
        caption_image: (T,) int, the image that each text describes. If an image has several texts, it is found when any of
            them is found, and none of them is a wrong answer for it.
        chunk: scores are computed for chunk x chunk pairs at a time, never for all I x T.

    Returns:
        text_ranks (T,) int64: 1 + the number of other images that score at least as high for a text as its own image.
        image_ranks (I,) int64: 1 + the number of other images' texts that score at least as high for an image as its best text.

    Raises:
        ValueError: shapes do not match, values are not finite, or an image has no text.
    """
    images, texts, owner = validated(image_embeds, text_embeds, caption_image)
    of_text, of_image = pair_ranks(images, texts, torch.arange(len(texts), device=images.device), owner, chunk)
    return of_text, best_ranks(of_image, owner.cpu().numpy(), len(images))


def best_ranks(ranks: np.ndarray, query: np.ndarray, queries: int) -> np.ndarray:
    """The rank of each query's best right answer.

    Args:
        ranks: (P,) int, of right answers.
        query: (P,) int, the query that each belongs to; every query has at least one.
        queries: number of queries.

    Returns:
        (queries,) int64.
    """
    best = np.full(queries, np.iinfo(np.int64).max)
    np.minimum.at(best, query, ranks)
    return best


def pair_ranks(images: Tensor, texts: Tensor, text: Tensor, image: Tensor, chunk: int = CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """The rank of every right pair of a text and an image among the wrong answers, in both directions; 1 is best.

    Other right answers of a query are neither wrong answers nor in the way: two right answers may have the same rank.

    Args:
        images, texts: (I, D) and (T, D) fp32 on one device, as from `validated`.
        text, image: (P,) int64 on the same device, the right pairs. No pair is given twice.
        chunk: scores are computed for chunk x chunk pairs at a time.

    Returns:
        of_text (P,) int64: 1 + the number of wrong images that score at least as high for the pair's text as its image.
        of_image (P,) int64: 1 + the number of wrong texts that score at least as high for the pair's image as its text.
    """
    # The rounding error of an inner product is a few units in the last place of the largest possible product.
    tolerance = 8 * torch.finfo(torch.float32).eps * images.norm(dim=1).max() * texts.norm(dim=1).max()
    limits = torch.cat(  # (P,) what a wrong answer must reach to stand before the pair
        [(images[image[at : at + chunk]] * texts[text[at : at + chunk]]).sum(dim=1) for at in range(0, len(text), chunk)]
    ).sub_(tolerance)
    by_text, by_image = _Thresholds(text, limits, len(texts)), _Thresholds(image, limits, len(images))
    pairs = by_text.order  # (P,) sorted by text, so that those of a block of texts are neighbours
    sorted_text, sorted_image = text[pairs], image[pairs]
    for t in range(0, len(texts), chunk):
        begin, end = torch.searchsorted(sorted_text, torch.tensor([t, t + chunk], device=text.device)).tolist()
        row, column = sorted_text[begin:end] - t, sorted_image[begin:end]
        for i in range(0, len(images), chunk):
            scores = texts[t : t + chunk] @ images[i : i + chunk].T  # (t, i)
            here = (column >= i) & (column < i + chunk)
            scores[row[here], column[here] - i] = -torch.inf  # a right answer is no wrong one, in either direction
            by_text.count(scores, t)
            by_image.count(scores.T, i)
    return by_text.ranks(), by_image.ranks()


class _Thresholds:
    """Counts, for each right answer of each query, the wrong answers that reach its limit.

    Args:
        query: (P,) int64, the query of each right answer.
        limits: (P,) scores to reach.
        queries: number of queries.
    """

    def __init__(self, query: Tensor, limits: Tensor, queries: int):
        by_limit = limits.argsort(stable=True)
        self.order = by_limit[query[by_limit].argsort(stable=True)]  # (P,) by query, and by limit within a query
        self.query = query[self.order]  # (P,)
        self.first = torch.searchsorted(self.query, torch.arange(queries + 1, device=query.device))  # (queries + 1,)
        self.limits = limits[self.order]  # (P,)
        self.counts = torch.zeros_like(self.query)  # (P,)

    def count(self, scores: Tensor, start: int) -> None:
        """Add the wrong answers of a block.

        Args:
            scores: (q, a) of the queries from `start` on with some answers; right answers have -inf.
            start: number of the first query.
        """
        begin, end = int(self.first[start]), int(self.first[start + len(scores)])
        row = self.query[begin:end] - start  # (p,)
        place = torch.arange(begin, end, device=row.device) - self.first[self.query[begin:end]]  # (p,) within its query
        width = int(place.max()) + 1
        limits = scores.new_full((len(scores), width), torch.inf)  # (q, width) ascending, filled up with inf
        limits[row, place] = self.limits[begin:end]
        if width <= FEW:
            above = [(scores >= limits[:, n, None]).sum(dim=1, dtype=torch.int32) for n in range(width)]
            reached = torch.stack(above, dim=1)  # (q, width)
        else:
            passed = torch.searchsorted(limits, scores.contiguous(), right=True)  # (q, a) how many limits a score reaches
            counted = torch.zeros(len(scores), width + 1, dtype=torch.int64, device=scores.device)
            counted.scatter_add_(1, passed, torch.ones_like(passed))
            reached = counted.flip(1).cumsum(dim=1).flip(1)[:, 1:]  # (q, width) scores that reach at least limit n
        self.counts[begin:end] += reached[row, place]

    def ranks(self) -> np.ndarray:
        """(P,) int64, in the order in which the right answers were given."""
        ranks = torch.empty_like(self.counts)
        ranks[self.order] = self.counts + 1
        return ranks.cpu().numpy()


def top_images(image_embeds: Tensor, text_embeds: Tensor, k: int, chunk: int = CHUNK) -> np.ndarray:
    """The k best images for every text.

    Args:
        image_embeds: (I, D).
        text_embeds: (T, D).
        k: number of images.
        chunk: about chunk x chunk scores are computed at a time.

    Returns:
        (T, min(k, I)) int64, best image first.
    """
    image_embeds, text_embeds = _finite(image_embeds, "image_embeds"), _finite(text_embeds, "text_embeds")
    rows = max(1, chunk * chunk // len(image_embeds))  # texts at a time
    top = [
        (text_embeds[at : at + rows] @ image_embeds.T).topk(min(k, len(image_embeds)), dim=1).indices
        for at in range(0, len(text_embeds), rows)
    ]
    return torch.cat(top).cpu().numpy()


def validated(image_embeds, text_embeds, caption_image) -> tuple[Tensor, Tensor, Tensor]:
    """Images and texts as fp32 tensors and caption_image as int64, on one device; arguments and errors of `retrieval_ranks`."""
    images, texts = _finite(image_embeds, "image_embeds"), _finite(text_embeds, "text_embeds")
    owner = torch.as_tensor(caption_image).to(device=images.device, dtype=torch.int64)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"image_embeds {tuple(images.shape)}, text_embeds {tuple(texts.shape)}: expected one width D")
    if owner.shape != (len(texts),):
        raise ValueError(f"caption_image {tuple(owner.shape)}: expected one image index per text, ({len(texts)},)")
    if owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(
            f"caption_image has values from {int(owner.min())} to {int(owner.max())}, expected 0 to {len(images) - 1}"
        )
    if without := len(images) - len(owner.unique()):
        raise ValueError(
            f"{without} of {len(images)} images have no text: leave them out, because none of their queries has a right answer"
        )
    return images, texts.to(images.device), owner


def _finite(embeds: Tensor | np.ndarray, name: str) -> Tensor:
    """Embeddings as an fp32 tensor of shape (rows, D), with at least one row and no NaN or infinity."""
    embeds = torch.as_tensor(embeds).float()
    if embeds.ndim != 2 or len(embeds) == 0:
        raise ValueError(f"{name} {tuple(embeds.shape)}: expected (rows, D) with at least one row")
    bad = (~torch.isfinite(embeds)).any(dim=1).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"{name}: {len(bad)} of {len(embeds)} rows have values that are not finite, first {bad[:10].tolist()}; "
            "look at the examples of these rows, or check the checkpoint for NaN weights"
        )
    return embeds
