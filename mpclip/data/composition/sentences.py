"""Changes of a sentence that all rules share: insert a negation, replace a word with its article, tell what is absent."""

import random
import re
from collections.abc import Collection, Sequence

from mpclip.data.composition.words import NEGATIONS
from mpclip.data.openmoji.captions import with_article

ABSENCES = (
    "There is no {} in the picture.",
    "A picture without {}.",
    "There is no {} to be seen.",
    "The picture shows no {}.",
)
# What a negation is inserted in, and how; the first that fits.
_INSERTIONS = (
    (r"\bthere is (?:just |only )?an? ", "there is no "),
    (r"\b(is|was)\b(?! not\b)", r"\1 not"),
    (r"\b(with|wearing|wears|holding|holds|carrying|carries|has) an? (?!very\b|lot\b|bunch\b|group\b)", r"\1 no "),
)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[a-z0-9][a-z0-9'-]*", text.lower())


def negated(text: str) -> str | None:
    """The text with a negation inserted: "a dog is running" -> "a dog is not running", "with a hat" -> "with no hat".

    Returns:
        The text; None if it has a negation already, or no place for one.
    """
    if NEGATIONS & set(words_of(text)):
        return None
    for pattern, replacement in _INSERTIONS:
        changed, count = re.subn(pattern, replacement, text, count=1, flags=re.IGNORECASE)
        if count:
            return changed[0].upper() + changed[1:] if text[0].isupper() else changed
    return None


def with_word(text: str, start: int, end: int, word: str) -> str:
    """The text with another word in place of text[start:end]. An article before it becomes the one that fits."""
    before = text[:start]
    if article := re.search(r"\b([Aa])n? $", before):
        fitting = with_article(word).split()[0]
        before = before[: article.start()] + article[1] + fitting[1:] + " "
    elif not before.strip():
        word = word[0].upper() + word[1:] if text[start].isupper() else word
    return before + word + text[end:]


def absence_texts(
    present: Sequence[str], elsewhere: Sequence[str], evidenced: Collection[str], rng: random.Random
) -> tuple[str, str] | None:
    """A true and a false text on what is not in a picture.

    The absent thing is drawn from what other pictures show, as often as they show it. So over a set the true and the false
    texts name the same things, and a model that does not see the picture has no reason to prefer one.

    Args:
        present: things in the picture.
        elsewhere: things in all pictures, as often as they occur.
        evidenced: things that may be in the picture; none of them is called absent.
        rng: draws the things and the sentence.

    Returns:
        "There is no X", and "There is no Y", where Y is in the picture; None if nothing can be said.
    """
    absent = [name for name in elsewhere if name not in evidenced and " of " not in name]
    if not present or not absent:
        return None
    sentence = rng.choice(ABSENCES)
    named = [rng.choice(absent), rng.choice(present)]
    if "without" in sentence:
        named = [with_article(name) for name in named]
    return sentence.format(named[0]), sentence.format(named[1])
