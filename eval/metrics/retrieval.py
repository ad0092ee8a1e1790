"""Metrics of retrieval in both directions, from embeddings or from the ranks of single queries.

    items = retrieval_items(image_embeds, text_embeds, caption_image)
    retrieval_measures(items, np.ones(len(image_embeds), int))  # {"t2i_R@1": ..., "i2t_mAP@R": ..., "mean_recall": ...}

"t2i" is text to image, "i2t" image to text; "image" stands for whatever a text describes, a picture or a clip. The metrics of a
direction, from the rank of the best right answer of each query (ties count against the model, see ranks.py):

    R@1, R@5, R@10   share of queries whose best right answer is among the first k, in percent
    median_rank, mean_rank   of the best right answers; 1 is best
    mAP@R   of a query with R right answers: the precision at each right answer among the first R, summed and divided by R; mean
            over queries in percent. It also asks for the other right answers, where R@k is content with one. With one right
            answer per query it equals R@1. Source: Musgrave et al., "A Metric Learning Reality Check" (2020)

`mean_recall` is the mean of the six recalls.

**Folds.** A test set is divided into folds of consecutive images. Each query searches its fold alone, and every metric is the
mean over folds, as in "COCO 1K" (five folds of 1,000 images).

**Recurring captions.** "Two dogs play in the snow." may be written of two pictures. By the field's rule only the picture it
was written for is right, so that no model reaches 100%. With `contents`, the same recalls and mAP@R are also given with all
pictures of such a caption right, and all captions of the same words right for a picture: `t2i_R@1_recurring_right`, and so on.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .ranks import best_ranks, pair_ranks, validated

RECALLS = (1, 5, 10)
SHORT = {"text_to_image": "t2i", "image_to_text": "i2t"}  # direction -> prefix of the names of its metrics
RECURRING = "_recurring_right"  # behind the names of metrics and items in which recurring captions are right


def retrieval_items(
    image_embeds: Tensor | np.ndarray,
    text_embeds: Tensor | np.ndarray,
    caption_image: Tensor | np.ndarray,
    contents: Sequence[int] | None = None,
    folds: int = 1,
) -> dict[str, np.ndarray]:
    """What is measured of each query; `retrieval_measures` makes metrics of it.

    Args:
        image_embeds, text_embeds, caption_image: (I, D), (T, D), (T,), as in `retrieval_ranks`.
        contents: T numbers, equal for captions that say the same, as from `contents_of`; None leaves recurring captions out.
        folds: number of folds.

    Returns:
        `caption_image` (T,) int32; `text_rank` (T,) and `image_rank` (I,) int32, rank of the best right answer; and
        `image_precision` (I,) float32, AP@R of each image from 0 to 1 (that of a text is 1 if its rank is 1, else 0).
        With several folds `fold` (I,) int32. If a caption recurs, also `recurring` (T,) bool, whether other images of the fold
        have a caption of the same content, and `text_rank_recurring_right`, `image_rank_recurring_right`,
        `text_precision_recurring_right`, `image_precision_recurring_right`.

    Raises:
        ValueError: as `retrieval_ranks`, or more folds than images.
    """
    images, texts, owner = validated(image_embeds, text_embeds, caption_image)
    owners = owner.cpu().numpy()  # (T,)
    fold = folds_of(len(images), folds)  # (I,)
    items = {"caption_image": owners.astype(np.int32)} | ({"fold": fold} if folds > 1 else {})
    own = np.stack([np.arange(len(texts)), owners])  # (2, T) pairs of a text and its image
    of_text, of_image = _ranks_by_fold(images, texts, own, fold)
    items["text_rank"] = of_text.astype(np.int32)
    items["image_rank"] = best_ranks(of_image, owners, len(images)).astype(np.int32)
    items["image_precision"] = average_precision(of_image, owners, len(images))
    pairs = own if contents is None else pairs_of_contents(contents, owners, fold)  # (2, P)
    if pairs.shape == own.shape:  # no caption recurs
        return items
    items["recurring"] = np.bincount(pairs[0]) > 1
    for name, ranks, query in zip(("text", "image"), _ranks_by_fold(images, texts, pairs, fold), pairs, strict=True):
        queries = len(texts) if name == "text" else len(images)
        items[f"{name}_rank{RECURRING}"] = best_ranks(ranks, query, queries).astype(np.int32)
        items[f"{name}_precision{RECURRING}"] = average_precision(ranks, query, queries)
    return items


def retrieval_measures(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
    """The metrics, if each image and its captions count as often as it was drawn.

    Only the queries are drawn; what they search stays as it is. So an interval of such draws says how much a metric depends
    on the choice of queries. It does not say what it would be in a larger collection.

    Args:
        items: as from `retrieval_items`.
        counts: (I,) int. Ones give the metrics themselves. A fold of which nothing is drawn is left out of the mean.

    Returns:
        Name -> value: for both directions R@1, R@5, R@10, median_rank, mean_rank and mAP@R, then `mean_recall`; and the same
        without ranks with recurring captions right, if the items have these.
    """
    owner = items["caption_image"]
    fold = items.get("fold", np.zeros(len(counts), np.int32))
    of_fold = []
    for number in range(fold.max() + 1):
        weights = np.where(fold == number, counts, 0)  # (I,)
        if weights.any():
            of_fold.append(_measures(items, {"t2i": weights[owner], "i2t": weights}))
    return {name: float(np.mean([measured[name] for measured in of_fold])) for name in of_fold[0]}


def _measures(items: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> dict[str, float]:
    """The metrics of one fold. `weights` has how often each query of a direction counts: (T,) for t2i, (I,) for i2t."""
    result: dict[str, float] = {}
    for suffix in ("", RECURRING) if f"text_rank{RECURRING}" in items else ("",):
        recalls = []
        for way, query in (("t2i", "text"), ("i2t", "image")):
            ranks = items[f"{query}_rank{suffix}"]
            precision = items.get(f"{query}_precision{suffix}", ranks == 1)
            measured = query_measures(ranks, precision, weights[way])
            recalls += [measured[f"R@{k}"] for k in RECALLS]
            result |= {f"{way}_{name}{suffix}": x for name, x in measured.items() if not (suffix and name.endswith("_rank"))}
        result[f"mean_recall{suffix}"] = float(np.mean(recalls))
    return result


def query_measures(ranks: np.ndarray, precision: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The metrics of one direction.

    Args:
        ranks: (Q,) int, of each query's best right answer.
        precision: (Q,) AP@R of each query, 0 to 1.
        weights: (Q,) int, how often each query counts; not all 0.

    Returns:
        R@1, R@5, R@10 and mAP@R in percent, median_rank, mean_rank.
    """
    total = int(weights.sum())
    at = np.bincount(ranks, weights, minlength=max(RECALLS) + 1)  # (largest rank + 1,) queries of each rank
    within = at.cumsum()  # queries of at most this rank
    middle = np.searchsorted(within, [(total + 1) // 2, total // 2 + 1])  # the two middle ranks, or twice the middle one
    return {
        **{f"R@{k}": 100.0 * float(within[k]) / total for k in RECALLS},
        "median_rank": float(middle.mean()),
        "mean_rank": float((at * np.arange(len(at))).sum()) / total,
        "mAP@R": 100.0 * float((precision * weights).sum(dtype=np.float64)) / total,
    }


def average_precision(ranks: np.ndarray, query: np.ndarray, queries: int) -> np.ndarray:
    """AP@R of each query.

    Args:
        ranks: (P,) int, of right answers among the wrong ones, as from `pair_ranks`.
        query: (P,) int, the query that each belongs to; every query has at least one.
        queries: number of queries.

    Returns:
        (queries,) float32, 0 to 1.
    """
    order = np.lexsort((ranks, query))
    query, ranks = query[order], ranks[order]
    right = np.bincount(query, minlength=queries)  # (queries,) R
    nth = np.arange(len(query)) - (right.cumsum() - right)[query] + 1  # (P,) 1 for the best right answer of a query, ...
    place = ranks + nth - 1  # (P,) among all answers
    precision = np.where(place <= right[query], nth / place, 0.0)  # (P,)
    return (np.bincount(query, precision, minlength=queries) / right).astype(np.float32)


def contents_of(texts: Sequence[str]) -> np.ndarray:
    """A number for each text, equal where the words are: case, punctuation and spaces make no difference.

    Args:
        texts: T texts.

    Returns:
        (T,) int64.
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(_words(text), len(numbers)) for text in texts], np.int64)


def _words(text: str) -> str:
    """The text without case and punctuation; as it is, if nothing else is in it."""
    plain = "".join(" " if unicodedata.category(letter).startswith("P") else letter for letter in text.casefold())
    return " ".join(plain.split()) or text.strip()


def pairs_of_contents(contents: Sequence[int], caption_image: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """All right pairs, if a caption is right for every image of its fold that has a caption of the same content.

    Args:
        contents: T numbers, equal for captions that say the same.
        caption_image: (T,) int.
        fold: (I,) int, the fold of each image.

    Returns:
        (2, P) int64, the texts and their images; sorted by text, none twice. P is T if no caption recurs.
    """
    contents = np.asarray(contents, np.int64)
    if contents.shape != caption_image.shape:
        raise ValueError(f"contents {contents.shape}: expected a number per text, {caption_image.shape}")
    # A caption and its fold are one content: texts of other folds are not searched.
    contents = contents * (int(fold.max()) + 1) + fold[caption_image]
    having = np.unique(np.stack([contents, caption_image]), axis=1)  # (2, U) contents and their images, sorted
    first, last = (np.searchsorted(having[0], contents, side) for side in ("left", "right"))
    count = last - first  # (T,) images of each text's content
    text = np.repeat(np.arange(len(contents)), count)  # (P,)
    nth = np.arange(len(text)) - np.repeat(count.cumsum() - count, count)  # (P,)
    return np.stack([text, having[1][first[text] + nth]])


def folds_of(images: int, folds: int) -> np.ndarray:
    """The fold of each image; folds are consecutive and differ by at most one image in size.

    Args:
        images: number of images.
        folds: number of folds.

    Returns:
        (images,) int32, from 0.

    Raises:
        ValueError: a fold would be empty.
    """
    if not 1 <= folds <= images:
        raise ValueError(f"{folds} folds of {images} images: expected 1 to {images} folds")
    parts = np.array_split(np.arange(images), folds)
    return np.repeat(np.arange(folds, dtype=np.int32), [len(part) for part in parts])


def _ranks_by_fold(images: Tensor, texts: Tensor, pairs: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`pair_ranks`, with each query searching its own fold.

    Args:
        images, texts: (I, D), (T, D), as from `validated`.
        pairs: (2, P) texts and their images; the pairs of a text are all of one fold.
        fold: (I,) the fold of each image.
    """
    of_text, of_image = np.empty((2, pairs.shape[1]), np.int64)
    for number in range(fold.max() + 1):
        here = np.flatnonzero(fold[pairs[1]] == number)  # (p,) pairs of the fold
        # The texts of the fold, and which of them belongs to each pair; likewise the images.
        (text, of_pair), (image, in_pair) = (np.unique(side, return_inverse=True) for side in pairs[:, here])
        text, image, of_pair, in_pair = (torch.from_numpy(x).to(images.device) for x in (text, image, of_pair, in_pair))
        of_text[here], of_image[here] = pair_ranks(images[image], texts[text], of_pair, in_pair)
    return of_text, of_image
