"""Wrong texts of pictures with captions that people wrote, such as Flickr8k's, by rules over the word lists of words.py.

    swap_attribute    two colours swap their nouns: "a red hat and a blue shirt" -> "a blue hat and a red shirt"
    swap_relation     a relation becomes its opposite: "jumps over a log" -> "jumps under a log"
    replace_object    a thing becomes another of its kind: "a dog on a couch" -> "a cat on a couch"
    insert_negation   "a dog is running" -> "a dog is not running", "with a hat" -> "with no hat"

The right text is one of the picture's captions. The wrong text is false as far as all captions of the picture tell: what it
says must be in none of them, under any of the words that may mean it. Where that is doubtful, no text is made. A few wrong
texts may still be true, because captions leave out most of what a picture shows. absences.py makes texts on what is absent.
"""

import random
import re
from collections.abc import Sequence

from mpclip.data.composition.sentences import negated, with_word, words_of
from mpclip.data.composition.words import (
    AFTER,
    BEFORE,
    COLOURED,
    COLOURS,
    MATERIALS,
    OPPOSITES,
    SAME_COLOURS,
    SEVERAL,
    THINGS,
)

_COLOUR = "|".join(COLOURS)
# A colour before its noun, not one of several ("black and white dog") and not a shade ("light blue shirt").
_NOUN = "|".join(sorted(COLOURED, key=len, reverse=True))
_BOUND = re.compile(rf"(?<!and )(?<!light )(?<!dark )(?<!navy )\b({_COLOUR}) (?:(?:{'|'.join(MATERIALS)}) )?({_NOUN})\b(?!-)")
NEAR = 3  # words between a colour and the noun that it may belong to
TOLD = 2  # captions that must name a thing before a text is false that denies it


def things_shown(captions: Sequence[str]) -> list[str]:
    """The names of the things that at least two captions name."""
    said = [set(words_of(caption)) for caption in captions]
    return [thing.name for thing in THINGS if sum(bool({thing.name, f"{thing.name}s"} & words) for words in said) >= TOLD]


def things_possible(captions: Sequence[str]) -> list[str]:
    """The names of the things that a picture may show, as far as its captions tell."""
    said = {word for caption in captions for word in words_of(caption)}
    return [thing.name for thing in THINGS if thing.evidence & said]


def texts_of_captions(captions: Sequence[str], rng: random.Random) -> dict[str, tuple[str, str]]:
    """The right and the wrong text of each kind that a rule makes.

    Args:
        captions: all captions of a picture.
        rng: makes every choice.

    Returns:
        Kind -> (right, wrong).
    """
    order = rng.sample(list(captions), len(captions))
    said = {word for caption in captions for word in words_of(caption)}
    texts = {}
    for kind, rule in RULES.items():
        for caption in order:
            if (wrong := rule(caption, captions, said, rng)) and wrong not in captions:
                texts[kind] = caption, wrong
                break
    return texts


def swap_colours(caption: str, captions: Sequence[str], said: set[str], rng: random.Random) -> str | None:
    """Two colours swap their nouns, unless a caption has such a colour near such a noun."""
    bound = list(_BOUND.finditer(caption))
    pairs = [(one, two) for i, two in enumerate(bound) for one in bound[:i] if _differ(one, two)]
    rng.shuffle(pairs)
    for one, two in pairs:
        if not any(_near(two[1], one[2], other) or _near(one[1], two[2], other) for other in captions):
            changed = with_word(caption, two.start(1), two.end(1), one[1])  # the later one first: places before it stay
            return with_word(changed, one.start(1), one.end(1), two[1])
    return None


def reverse_relation(caption: str, captions: Sequence[str], said: set[str], rng: random.Random) -> str | None:
    """A relation becomes its opposite, unless a caption has a word of the opposite."""
    for pattern, opposite, words in OPPOSITES:
        if (found := re.search(rf"\b{pattern}", caption)) and not said & set(words):
            return caption[: found.start()] + opposite + caption[found.end() :]
    return None


def replace_thing(caption: str, captions: Sequence[str], said: set[str], rng: random.Random) -> str | None:
    """A thing becomes another of its kind, of which no caption has evidence."""
    words = words_of(caption)
    named = [thing for thing in THINGS if words.count(thing.name) == 1 and f"{thing.name}s" not in words]
    for thing in rng.sample(named, len(named)):
        # After "the man and his dog", "the woman and his dog" would be wrong by its grammar alone.
        if thing.kind == "person" and set(words) & {"he", "him", "his", "himself", "she", "her", "herself"}:
            continue
        at = words.index(thing.name)
        if not ({*words[at - 1 : at]} <= BEFORE and {*words[at + 1 : at + 2]} <= AFTER):
            continue
        found = re.search(rf"\b{thing.name}\b", caption, re.IGNORECASE)
        candidates = [other.name for other in THINGS if other.kind == thing.kind and not other.evidence & said]
        if candidates:
            return with_word(caption, found.start(), found.end(), rng.choice(candidates))
    return None


def insert_negation(caption: str, captions: Sequence[str], said: set[str], rng: random.Random) -> str | None:
    """A negation is inserted, unless the captions suggest several things of which one may lack what the text denies."""
    return None if said & SEVERAL else negated(caption)


RULES = {
    "swap_attribute": swap_colours,
    "swap_relation": reverse_relation,
    "replace_object": replace_thing,
    "insert_negation": insert_negation,
}


def _differ(one: re.Match, two: re.Match) -> bool:
    """Whether two colours with their nouns differ in both."""
    alike = one[1] == two[1] or any({one[1], two[1]} <= group for group in SAME_COLOURS)
    return not alike and two[2] not in COLOURED[one[2]] and one[2] not in COLOURED[two[2]]


def _near(colour: str, noun: str, caption: str) -> bool:
    """Whether a caption has a colour at most `NEAR` words before a noun, or before another word for the same thing."""
    words = words_of(caption)
    alike = {colour}.union(*(group for group in SAME_COLOURS if colour in group))
    return any(
        word in COLOURED[noun] and alike & {part for said in words[max(0, i - NEAR - 1) : i] for part in said.split("-")}
        for i, word in enumerate(words)
    )
