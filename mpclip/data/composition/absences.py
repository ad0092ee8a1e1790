"""Texts on what a picture does not show, balanced over pairs of pictures.

Of two pictures, one shows X and no Y, the other Y and no X. "There is no Y" is right of the first and wrong of the second, and
"There is no X" the other way round. So each text is right once and wrong once, and a model that does not see the pictures gets
half of them right, whatever it knows of the world (ours; Winoground is balanced likewise).
"""

import random
from collections.abc import Collection, Sequence

from mpclip.data.openmoji.captions import with_article

SENTENCES = ("There is no {}.", "A picture without {a}.", "There is no {} to be seen.", "The picture shows no {}.")


def absences(shown: Sequence[Collection[str]], possible: Sequence[Collection[str]], seed: int) -> dict[int, tuple[str, str]]:
    """A right and a wrong text of each picture for which a partner is found.

    Args:
        shown: for each picture the things that it certainly shows, in the singular.
        possible: for each picture all things that it may show; the others are absent.
        seed: of the draws.

    Returns:
        Number of a picture -> (right, wrong), in ascending order. The texts of its partner are (wrong, right).
    """
    rng = random.Random(f"absences {seed}")
    waiting = rng.sample(range(len(shown)), len(shown))
    made: dict[int, tuple[str, str]] = {}
    while waiting:
        first = waiting.pop()
        for second in reversed(waiting):
            here = sorted(set(shown[first]) - set(possible[second]))
            there = sorted(set(shown[second]) - set(possible[first]))
            if here and there:
                sentence, x, y = rng.choice(SENTENCES), rng.choice(here), rng.choice(there)
                without_x, without_y = (sentence.format(name, a=with_article(name)) for name in (x, y))
                made |= {first: (without_y, without_x), second: (without_x, without_y)}
                waiting.remove(second)
                break
    return dict(sorted(made.items()))
