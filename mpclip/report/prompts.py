"""What the prompts of a model do: the pairs that each finds alone, where they disagree, and what weights change."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WEIGHED = 1000  # pictures at most on which weights are varied, if no split is given to fit them on


@dataclass
class Pair:
    """A caption and the picture that a prompt alone finds first for it.

    Attributes:
        caption: its number among all captions.
        row: of the picture.
        right: whether the picture has a caption of the same words.
    """

    caption: int
    row: int
    right: bool


@dataclass
class Alone:
    """What each prompt does without the others.

    Attributes:
        highest: for each prompt, the pairs to which its segment gives the highest cosine; each picture and each caption once.
        only: (K,) how many captions this prompt alone finds their own picture for, where no other prompt alone does.
        disagreements: numbers of captions for which the prompts alone find the most different pictures.
        first: (T, K) the row that each prompt alone finds for each caption.
        whole: (T,) the row that all prompts find together.
    """

    highest: list[list[Pair]]
    only: list[int]
    disagreements: list[int]
    first: np.ndarray
    whole: np.ndarray


def alone(embeds: dict, contents: np.ndarray, K: int, shown: int, disagreeing: int) -> Alone:
    """See what each segment finds.

    Args:
        embeds: as from `encode_dataset`.
        contents: (T,) a number for each caption, equal where the words are.
        K: number of segments, at least 2.
        shown: pairs for each prompt.
        disagreeing: captions to show on which prompts disagree.
    """
    from eval.metrics.ranks import top_images

    owner = np.asarray(embeds["caption_image"])  # (T,)
    says = set(zip(contents.tolist(), owner.tolist(), strict=True))  # which words which picture has
    sides = (_segments(embeds[name], K) for name in ("text_embeds", "image_embeds"))
    first, highest = [], []
    for text, image in zip(*sides, strict=True):  # (T, d), (I, d)
        found = top_images(image, text, 1)[:, 0]  # (T,)
        cosines = (text * image[found]).sum(dim=-1)  # (T,)
        highest.append(_distinct(cosines.argsort(descending=True, stable=True).tolist(), found, contents, shown, says))
        first.append(found)
    rows = np.stack(first, axis=1)  # (T, K)
    hits = np.asarray(
        [[(words, row) in says for row in of_one] for words, of_one in zip(contents.tolist(), rows.tolist(), strict=True)]
    )
    only = [int((hits[:, k] & (hits.sum(axis=1) == 1)).sum()) for k in range(K)]
    different = np.asarray([len(set(of_one)) for of_one in rows.tolist()])  # (T,)
    whole = top_images(embeds["image_embeds"], embeds["text_embeds"], 1)[:, 0]
    disagreements: list[int] = []
    for t in np.argsort(-different, kind="stable").tolist():
        if len(disagreements) < disagreeing and different[t] > 1 and whole[t] not in whole[disagreements]:
            disagreements.append(t)
    return Alone(highest, only, disagreements, rows, whole)


def _segments(embeds: Tensor, K: int) -> Tensor:
    """(B, D) -> (K, B, d), each segment normalised alone."""
    return torch.nn.functional.normalize(embeds.unflatten(1, (K, -1)), dim=-1).transpose(0, 1)


def _distinct(order: Sequence[int], found: np.ndarray, contents: np.ndarray, count: int, says: set) -> list[Pair]:
    """The first `count` captions in an order, without those whose words or whose picture came before."""
    pairs: list[Pair] = []
    words_before: set[int] = set()
    rows_before: set[int] = set()
    for t in order:
        words, row = int(contents[t]), int(found[t])
        if words in words_before or row in rows_before:
            continue
        words_before.add(words)
        rows_before.add(row)
        pairs.append(Pair(t, row, (words, row) in says))
        if len(pairs) == count:
            break
    return pairs


def weight_curves(embeds: dict, K: int) -> tuple[list[list[float]], int]:
    """The mean recall with the weight of one segment changed and the others left at 1.

    Args:
        embeds: as from `encode_dataset`.
        K: number of segments.

    Returns:
        (K, W) for the W values of `eval.weight_search.WEIGHTS`; and the number of pictures, the first of the data.
    """
    from eval.weight_search import retrieval_score, sweep

    pictures = min(len(embeds["image_embeds"]), WEIGHED)
    here = embeds["caption_image"] < pictures  # (T,)
    some = {name: embeds[name][here] for name in ("text_embeds", "caption_image")}
    some["image_embeds"] = embeds["image_embeds"][:pictures]
    return sweep(lambda weights: float(retrieval_score(some, weights).mean()), [1.0] * K), pictures
