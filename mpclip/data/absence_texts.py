"""Texts that say what a picture does not show, for training: "a dog without a ball" (ours).

    absences = AbsenceTexts(things_of(rows))
    pair = absences.draw(index, epoch=0)     # something that the picture shows, and something that it does not
    absences.text(pair)                      # "a dog without a ball"
    absences.true_of([pair], [3, 8, 5])      # of which of these pictures it is true

What pictures show is known of OpenMoji's scenes, and told by the captions of photos (`exclusion_queries.py`). What is absent
is drawn as often as it stands beside the other thing elsewhere, so that there are pictures of which the text is false.
"""

import random
from collections.abc import Sequence

import numpy as np

from mpclip.data.exclusion_queries import INSEPARABLE, Things

Pair = tuple[int, int]


class AbsenceTexts:
    """The texts "X without Y" of a table, and of which of its pictures they are true.

    Args:
        things: what its I pictures show, of N things; as from `things_of`.
        seed: of the draws.

    Raises:
        ValueError: no picture shows two things, so that nothing is known to stand beside another.
    """

    def __init__(self, things: Things, seed: int = 0):
        self.names, self.shown, self.seed = things.names, things.shown, seed
        shown = things.shown.astype(np.float32)  # (I, N)
        self.together = shown.T @ shown  # (N, N) pictures that show both
        np.fill_diagonal(self.together, 0)
        numbers = {name: i for i, name in enumerate(things.names)}
        for one, other in (tuple(pair) for pair in INSEPARABLE):
            if one in numbers and other in numbers:
                self.together[numbers[one], numbers[other]] = self.together[numbers[other], numbers[one]] = 0
        if not self.together.any():
            raise ValueError(
                "without_weight needs pictures that show several things, and the captions name none of those that "
                "mpclip/data/exclusion_queries.py lists together. Leave without_weight out."
            )

    def text(self, pair: Pair) -> str:
        """ "a dog without a ball" for the numbers of both."""
        return f"{self.names[pair[0]]} without {self.names[pair[1]]}"

    def every(self) -> list[str]:
        """All texts that can be drawn; a finite number, so that their states can be stored."""
        return [self.text((x, y)) for x, y in np.argwhere(self.together > 0).tolist()]

    def draw(self, index: int, epoch: int) -> Pair | None:
        """Draw a text that is true of a picture. None if it shows nothing that stands beside something else elsewhere.

        Args:
            index: of the picture.
            epoch: each draws anew.
        """
        here = self.shown[index]  # (N,)
        weights = self.together[here] * ~here  # (things shown, N)
        drawn = random.Random(f"without {self.seed} {epoch} {index}")
        of_shown = [i for i, row in enumerate(weights) if row.any()]
        if not of_shown:
            return None
        row = drawn.choice(of_shown)
        (absent,) = drawn.choices(range(len(self.names)), weights[row].tolist())
        return int(np.flatnonzero(here)[row]), absent

    def true_of(self, pairs: Sequence[Pair], indices: Sequence[int]) -> np.ndarray:
        """(T, B) bool: whether text t is true of picture b, which then shows its X and not its Y."""
        shown = self.shown[list(indices)].T  # (N, B)
        wanted, unwanted = np.array(pairs).T  # (T,) each
        return shown[wanted] & ~shown[unwanted]
