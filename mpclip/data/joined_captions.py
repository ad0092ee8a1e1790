"""Several captions of a picture as one text: "A dog runs. A brown dog in the grass."

    joined = JoinedCaptions.of("1-5", draws=2)
    joined.every(captions)   # all texts of a picture: each caption alone, and two texts each of two, three, four and five
    joined.drawn(len(captions), random.Random(0))  # the number of one of them: first how many captions, then which text

Which captions make a text, and in which order, depends on the captions alone: not on a seed, an epoch or the other pictures. So
the texts of a data set are a fixed and finite set, and the states of a frozen LLM can be stored for them.
"""

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import datasets

MOST_JOINED = 20


def sentence(caption: str) -> str:
    """A caption that ends as a sentence does: "a dog runs ." -> "a dog runs."."""
    text = caption.strip()
    return text if re.search(r"[?!]$", text) else f"{text.rstrip(' .,;:')}."


def joined(captions: Sequence[str], count: int, draw: int = 0) -> str:
    """Some captions of a picture as one text.

    Args:
        captions: of the picture.
        count: n, how many of them are joined; all, if there are fewer.
        draw: number of the text. Texts of several numbers differ in which captions they have, or in the order.

    Returns:
        The text; a single caption as it is.
    """
    chosen = random.Random(f"{count} {draw} {captions}").sample(list(captions), min(count, len(captions)))
    return chosen[0] if len(chosen) == 1 else " ".join(map(sentence, chosen))


def with_joined_captions(rows: "datasets.Dataset", count: int) -> "datasets.Dataset":
    """A table with one text in the column `captions` of each row.

    Args:
        rows: as from `load_image_text`.
        count: captions of a text.
    """
    texts = [[joined(captions, count)] for captions in rows.with_format(None)["captions"][:]]
    other = rows.remove_columns("captions").add_column("captions", texts, feature=rows.features["captions"])
    return other.with_format(**rows.format)


class JoinedCaptions(NamedTuple):
    """How captions of a picture are made into texts.

    Attributes:
        least, most: captions in a text.
        draws: texts of each number of captions above 1. Of 1, there are as many as captions.
    """

    least: int = 1
    most: int = 1
    draws: int = 1

    @classmethod
    def of(cls, told: str, draws: int = 1) -> "JoinedCaptions":
        """Read the option `captions_joined`.

        Args:
            told: a number such as "3", or the least and the most, such as "1-5".
            draws: texts of each number.

        Raises:
            ValueError: it is something else.
        """
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", told)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most <= MOST_JOINED:
            raise ValueError(
                f"captions_joined={told!r}: expected how many captions make a text, such as 1, 3 or 1-5 (the least and the "
                f"most, up to {MOST_JOINED})"
            )
        return cls(least, most, draws)

    def every(self, captions: Sequence[str]) -> list[str]:
        """All texts of a picture, those of fewer captions first. A picture with fewer captions than `least` has all in one."""
        return [
            text
            for count, texts in self._sizes(len(captions))
            for text in (captions if count == 1 else [joined(captions, count, draw) for draw in range(texts)])
        ]

    def drawn(self, captions: int, draw: random.Random) -> int:
        """Draw a text: first a number of captions, all equally likely, and then one of its texts.

        Args:
            captions: how many the picture has.
            draw: makes the choice.

        Returns:
            Its place in `every`.
        """
        sizes = self._sizes(captions)
        chosen = draw.choice(range(len(sizes))) if len(sizes) > 1 else 0
        return sum(texts for _, texts in sizes[:chosen]) + draw.choice(range(sizes[chosen][1]))

    def _sizes(self, captions: int) -> list[tuple[int, int]]:
        """(number of captions, number of texts) for each number of captions that a picture with so many can have."""
        counts = sorted({min(count, captions) for count in range(self.least, self.most + 1)})
        return [(count, captions if count == 1 else self.draws) for count in counts]


EACH_ALONE = JoinedCaptions()
