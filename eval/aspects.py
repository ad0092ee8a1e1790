"""In what a model errs on OpenMoji scenes: the aspect in which the picture it found differs from the right one."""

import re
from collections import Counter

import datasets
import numpy as np
from torch import Tensor

from eval.metrics import top_images


def count_mistakes(
    image_embeds: Tensor, text_embeds: Tensor, caption_image: Tensor, text_ranks: np.ndarray, rows: datasets.Dataset
) -> dict[str, int]:
    """Sorts the captions that did not find their own image first by what they found instead.

    Args:
        image_embeds, text_embeds, caption_image: (I, D), (T, D), (T,), as from `encode_dataset`.
        text_ranks: (T,), as from `retrieval_ranks`.
        rows: the I scenes, with columns `scene` and `family`.

    Returns:
        "queries", the number of captions T, and the number mistaken per kind, most frequent first: an aspect such as
        "relation" where the best wrong image is of the same family and differs in this alone; "several" where it
        differs in more; "none" where it is described alike; "other_scene" where it is of another family.
    """
    from mpclip.data.openmoji.scenes import differences_between  # other data needs no scenes

    families, scenes = rows["family"][:], rows["scene"][:]
    first, second = top_images(image_embeds, text_embeds, 2).T  # (T,) each
    mistakes: Counter[str] = Counter()
    for text in np.flatnonzero(text_ranks > 1):
        right = int(caption_image[text])
        wrong = int(second[text] if first[text] == right else first[text])  # the right one may be first by a tie
        if families[wrong] != families[right]:
            mistakes["other_scene"] += 1
            continue
        aspects = differences_between(scenes[right], scenes[wrong])
        mistakes["several" if len(aspects) > 1 else next(iter(aspects), "none")] += 1
    return {"queries": len(text_ranks), **dict(mistakes.most_common())}


def says_absence(caption: str) -> bool:
    """Whether a caption says what is not in the picture: "There is no cat.", "... without any cat in sight."."""
    return re.search(r"\b(no|not|without)\b", caption, re.IGNORECASE) is not None
