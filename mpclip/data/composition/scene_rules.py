"""Wrong texts of OpenMoji scenes. A scene's description is exact, so that a text is known to be true or false.

    swap_attribute    two objects swap their sizes: "a big dog left of a small cat" -> "a small dog left of a big cat"
    swap_relation     two objects swap their places
    replace_object    an object is replaced by one that the scene does not have
    insert_negation   a caption with "not" or "no" in it: "the dog is not on the left"

But for the last one, the right text and the wrong one are made by the same sentence pattern with the same words, so that
nothing but the scene tells them apart. absences.py makes texts on what is absent.
"""

import random
from collections.abc import Mapping

from mpclip.data.composition.sentences import negated
from mpclip.data.openmoji.captions import describe
from mpclip.data.openmoji.objects import OBJECTS

Objects = list[tuple[str, str]]  # noun, size
TRIES = 8  # sentence patterns that are tried for a negation


def texts_of_scene(scene: Mapping, rng: random.Random) -> dict[str, tuple[str, str]]:
    """The right and the wrong text of each kind that fits a scene.

    Args:
        scene: `Scene.structure()`, or the column `scene` of `metadata.jsonl`.
        rng: makes every choice.

    Returns:
        Kind -> (right, wrong).
    """
    objects = [(thing["name"], thing["size"]) for thing in scene["objects"]]
    changes = {
        "swap_attribute": _swapped_sizes(objects, rng),
        "swap_relation": _swapped_places(objects, rng),
        "replace_object": _replaced(objects, rng),
    }
    texts = {}
    for kind, changed in changes.items():
        if changed is not None:
            seed = rng.random()  # the same pattern and the same synonyms for both
            right, wrong = (_sentence(scene, of, random.Random(seed)) for of in (objects, changed))
            texts[kind] = right, wrong
    for _ in range(TRIES):
        sentence = _sentence(scene, objects, rng)
        if wrong := negated(sentence):
            texts["insert_negation"] = sentence, wrong
            break
    return texts


def _sentence(scene: Mapping, objects: Objects, rng: random.Random) -> str:
    return describe(scene["layout"], scene["background"], objects, None, 1, rng)[0]


def _swapped_sizes(objects: Objects, rng: random.Random) -> Objects | None:
    """Two objects of different sizes with each other's size; None if all have one size."""
    pairs = [(i, j) for i in range(len(objects)) for j in range(i) if objects[i][1] != objects[j][1]]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    changed = list(objects)
    changed[i], changed[j] = (objects[i][0], objects[j][1]), (objects[j][0], objects[i][1])
    return changed


def _swapped_places(objects: Objects, rng: random.Random) -> Objects | None:
    """Two objects in each other's place; None if there is only one."""
    if len(objects) < 2:
        return None
    i, j = rng.sample(range(len(objects)), 2)
    changed = list(objects)
    changed[i], changed[j] = objects[j], objects[i]
    return changed


def _replaced(objects: Objects, rng: random.Random) -> Objects:
    """One object is another that is not in the scene, of the same size."""
    names = {name for name, _ in objects}
    i = rng.randrange(len(objects))
    changed = list(objects)
    changed[i] = rng.choice([name for name in OBJECTS if name not in names]), objects[i][1]
    return changed
