"""Captions that find a wrong picture first, those in which it leads by most, and what differs between both captions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Words = list[tuple[str, bool]]  # parts of a text in their order, and whether each is missing in the other text


@dataclass
class Failure:
    """A caption whose own picture is not the first that it finds.

    Attributes:
        caption: the text, with the words marked that `other` does not have.
        other: the caption of the found picture that is nearest to the text, likewise marked.
        wanted, found: rows of the caption's own picture, and of the one that has the highest score.
        rank: of the own picture; 1 would be right.
        wanted_parts, found_parts: (K,) float32, the parts of each segment in the scores of the two pictures.
    """

    caption: Words
    other: Words
    wanted: int
    found: int
    rank: int
    wanted_parts: np.ndarray
    found_parts: np.ndarray


@dataclass
class Failures:
    """All of them in numbers, and some to look at.

    Attributes:
        captions: how many captions find a wrong picture first. A picture that has a caption of the same words is not wrong.
        near: how many of those have their own picture second.
        shown: those with the largest lead of the wrong picture, one for each wanted and each found picture.
    """

    captions: int
    near: int
    shown: list[Failure]


def failures(embeds: dict, captions: Sequence[str], K: int, count: int) -> Failures:
    """Find them.

    Args:
        embeds: as from `encode_dataset`.
        captions: the T captions.
        K: number of segments.
        count: how many to show at most.
    """
    from eval.metrics import contents_of, retrieval_ranks
    from eval.metrics.ranks import top_images

    texts, images = embeds["text_embeds"], embeds["image_embeds"]  # (T, D), (I, D)
    owner, contents = np.asarray(embeds["caption_image"]), contents_of(captions)  # (T,) each
    first = top_images(images, texts, 1)[:, 0]  # (T,)
    says = set(zip(contents.tolist(), owner.tolist(), strict=True))  # which words which picture has
    wrong = np.asarray([(words, row) not in says for words, row in zip(contents.tolist(), first.tolist(), strict=True)])
    ranks, _ = retrieval_ranks(images, texts, owner)
    lead = (texts * (images[first] - images[owner])).sum(dim=-1).numpy()  # (T,)
    shown: list[Failure] = []
    wanted_before: set[int] = set()
    found_before: set[int] = set()
    for t in np.argsort(-np.where(wrong, lead, -np.inf), kind="stable")[: wrong.sum()]:
        wanted, found = int(owner[t]), int(first[t])
        if len(shown) == count:
            break
        if wanted in wanted_before or found in found_before:
            continue
        wanted_before.add(wanted)
        found_before.add(found)
        of_found = np.flatnonzero(owner == found)
        other = captions[of_found[int((texts[of_found] @ texts[t]).argmax())]]
        parts = [(texts[t] * images[row]).unflatten(0, (K, -1)).sum(dim=-1).numpy() for row in (wanted, found)]  # (K,) each
        marked = differing(captions[t], other), differing(other, captions[t])
        shown.append(Failure(*marked, wanted, found, int(ranks[t]), *parts))
    return Failures(int(wrong.sum()), int((ranks[wrong] == 2).sum()), shown)


def differing(text: str, other: str) -> Words:
    """The text in parts: its words, each with whether `other` lacks it, and what stands between them.

    Case makes no difference. The parts joined are the text.
    """
    known = {word.casefold() for word in re.findall(r"\w+", other)}
    return [(part, bool(re.match(r"\w", part)) and part.casefold() not in known) for part in re.findall(r"\w+|\W+", text)]
