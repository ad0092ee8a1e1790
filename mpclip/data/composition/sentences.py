"""Changes of a sentence that all rules share: insert a negation, replace a word with its article."""

import re

from mpclip.data.composition.words import NEGATIONS
from mpclip.data.openmoji.captions import with_article

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
