"""Captions of OpenMoji scenes: sentence patterns, and the words that fill them.

Every caption names all that may differ between two scenes: objects, sizes, places and background. So it is true of one
scene of its split only. The wording varies: the pattern, the synonyms, and which of two objects comes first ("A to the left
of B", "B to the right of A").
"""

import random
from collections.abc import Sequence

SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}

COLOUR_WORDS = {
    "white": ("white", "plain white"),
    "grey": ("grey", "gray"),
    "blue": ("light blue", "sky blue", "pale blue"),
    "green": ("green", "light green"),
    "yellow": ("yellow", "pale yellow"),
    "orange": ("orange", "light orange"),
    "pink": ("pink", "light pink"),
    "purple": ("purple", "lavender", "lilac"),
}

PLACE_WORDS = {
    "centre": ("in the middle", "in the centre", "at the centre"),
    "top left": ("in the top left corner", "at the top left", "in the upper left corner"),
    "top right": ("in the top right corner", "at the top right", "in the upper right corner"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left corner"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the lower right corner"),
}

# Where the first object of a pair is, seen from the second.
_LEFT = ("to the left of", "left of", "on the left of")
_RIGHT = ("to the right of", "right of", "on the right of")
_ABOVE = ("above", "over")
_BELOW = ("below", "under", "beneath", "underneath")

_BACKGROUNDS = ("on {a_colour} background", "against {a_colour} background", "on {colour}", "against {colour}")

# For a big dog {A} is "a big dog", {a} is "dog", {a_a} is "a dog" and {size_a} is "big". {bg} is a phrase such as "on a pink
# background", {colour} is "pink" and {a_colour} is "a pink".
_ONE_OBJECT = (
    "{A} {place} {bg}",
    "{A} {bg}, {place}",
    "{A} is {place}, {bg}",
    "{bg}, there is {A} {place}",
    "{place} there is {A}; the background is {colour}",
    "the picture shows only {A}, {place}, {bg}",
    "there is just {A} {place}, and the background is {colour}",
    "the {a} is {size_a}, it is {place}, and the background is {colour}",
    "{a_colour} background with {A} {place}",
    "a drawing of {A} {place} {bg}",
)

# {rel} says where A is, seen from B ("left of"); {back} says where B is, seen from A ("right of"). {here} is the place of A in
# the picture ("on the left"), {there} is the place of B.
_TWO_OBJECTS = (
    "{A} {rel} {B} {bg}",
    "{A} is {rel} {B} {bg}",
    "{bg}, {A} is {rel} {B}",
    "{bg}, there is {A} {rel} {B}",
    "there is {A} {rel} {B}, and the background is {colour}",
    "{A} {here} and {B} {there}, {bg}",
    "{here} there is {A}, {there} there is {B}, and the background is {colour}",
    "{A} and {B} {bg}, the {a} {rel} the {b}",
    "{A} and {B} {bg}, with the {a} {here}",
    "the picture shows {A} {rel} {B} {bg}",
    "the {a} is {size_a}, the {b} is {size_b}, and the {a} is {rel} the {b} {bg}",
    "{a_colour} background with {A} {rel} {B}",
    "a drawing of {A} with {B} {back} it, {bg}",
    "we see {A} {here} and {B} {there}; the background is {colour}",
    "two things {bg}: {A} {here}, {B} {there}",
)
_TWO_OBJECTS_OF_ONE_SIZE = (
    "two {size_a} things {bg}: {a_a} {here}, {a_b} {there}",
    "{a_a} {rel} {a_b} {bg}, both of them {size_a}",
)

# P is alone in its row, whose place is {apex} ("at the top"). A and B share the other row, {row} ("bottom"). {over} says where
# P is, seen from A and B ("above"); {under} says where they are, seen from P. {side} is the side of A ("left"), {other_side}
# the side of B.
_THREE_OBJECTS = (
    "{A} {rel} {B}, with {P} {over} them both, {bg}",
    "{P} {over} {A} and {B} {bg}, the {a} {rel} the {b}",
    "{P} {apex}, {A} at the {row} {side} and {B} at the {row} {other_side}, {bg}",
    "three things {bg}: {P} {apex}, {A} in the {row} {side} corner and {B} in the {row} {other_side} corner",
    "{P} is {over} two other things, {A} on the {side} and {B} on the {other_side}; the background is {colour}",
    "{bg}, {A} and {B} are side by side {under} {P}, with the {a} on the {side}",
    "{A} is {rel} {B}, {P} is {over} them, and the background is {colour}",
    "{a_colour} background with {P} {apex} and, {under} it, {A} {rel} {B}",
)

_ABSENCES = (
    ". There is no {x}",
    ". There is no {x} in the picture",
    ", with no {x} in sight",
    ", without any {x} in sight",
)


def with_article(phrase: str) -> str:
    """`phrase` with "a" or "an", as it is spoken: "an hourglass", "a unicorn", "an orange background"."""
    starts_with_vowel = phrase[0].lower() in "aeiou" and not phrase.startswith("unicorn")
    return f"{'an' if starts_with_vowel or phrase.startswith('hour') else 'a'} {phrase}"


def describe(
    layout: str,
    background: str,
    objects: Sequence[tuple[str, str]],
    absent: str | None,
    count: int,
    rng: random.Random,
) -> tuple[str, ...]:
    """Describe a scene in `count` sentences of different patterns.

    Args:
        layout: a key of `LAYOUTS` in `mpclip.data.openmoji.generate`.
        background: a key of `COLOUR_WORDS`.
        objects: one to three pairs (noun, size), in the order of the layout's slots.
        absent: the noun of an object that is not in the scene. One of the sentences says that it is not there. With None no
            sentence does.
        count: number of sentences.
        rng: makes every choice.

    Returns:
        The sentences.

    Raises:
        ValueError: `count` is less than 1, or there are fewer patterns for this number of objects.
    """
    patterns = {1: _ONE_OBJECT, 2: _TWO_OBJECTS, 3: _THREE_OBJECTS}[len(objects)]
    if len(objects) == 2 and objects[0][1] == objects[1][1]:
        patterns += _TWO_OBJECTS_OF_ONE_SIZE
    if not 1 <= count <= len(patterns):
        raise ValueError(
            f"{count} captions were asked for a scene of {len(objects)} objects, which has {len(patterns)} sentence "
            f"patterns: set captions_per_scene between 1 and {len(_THREE_OBJECTS)}."
        )
    says_absence = rng.randrange(count) if absent else None
    sentences = []
    for number, pattern in enumerate(rng.sample(patterns, count)):
        sentence = pattern.format(**_words(layout, background, objects, rng))
        if number == says_absence:
            sentence += rng.choice(_ABSENCES).format(x=absent)
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return tuple(sentences)


def _words(layout: str, background: str, objects: Sequence[tuple[str, str]], rng: random.Random) -> dict[str, str]:
    """The words for the names in braces of a pattern."""
    colour = rng.choice(COLOUR_WORDS[background])
    words = {"colour": colour, "a_colour": with_article(colour)}
    words["bg"] = rng.choice(_BACKGROUNDS).format(**words)
    # A caption has one word for each size: "a big dog and a huge cat" would mean two sizes.
    size_words = {size: rng.choice(choices) for size, choices in SIZE_WORDS.items()}
    if len(objects) == 1:
        return words | {"place": rng.choice(PLACE_WORDS[layout])} | _object_words("a", objects[0], size_words)
    if len(objects) == 2:
        pair = objects
    elif layout == "one above two":
        apex, *pair = objects
        words |= {"over": "above", "under": rng.choice(_BELOW), "apex": "at the top", "row": "bottom"}
    else:
        *pair, apex = objects
        words |= {"over": rng.choice(_BELOW), "under": "above", "apex": "at the bottom", "row": "top"}
    if len(objects) == 3:
        words |= _object_words("p", apex, size_words)

    if layout == "one above the other":
        ends = [(pair[0], "top", "at the top", _ABOVE), (pair[1], "bottom", "at the bottom", _BELOW)]
    else:
        ends = [(pair[0], "left", "on the left", _LEFT), (pair[1], "right", "on the right", _RIGHT)]
    rng.shuffle(ends)
    (a, side, here, relation), (b, other_side, there, reverse) = ends
    words |= _object_words("a", a, size_words) | _object_words("b", b, size_words)
    words |= {"rel": rng.choice(relation), "side": side, "here": here}
    return words | {"back": rng.choice(reverse), "other_side": other_side, "there": there}


def _object_words(letter: str, thing: tuple[str, str], size_words: dict[str, str]) -> dict[str, str]:
    """The words for one object, named by its letter in the pattern."""
    noun, size = thing
    return {
        letter: noun,
        letter.upper(): with_article(f"{size_words[size]} {noun}"),
        f"a_{letter}": with_article(noun),
        f"size_{letter}": size_words[size],
    }
