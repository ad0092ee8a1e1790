"""Sets of choices that are built from pictures with captions, by scene_rules.py or caption_rules.py, and by absences.py."""

import random
import warnings

from mpclip.data.composition.absences import absences
from mpclip.data.composition.caption_rules import RULES, texts_of_captions, things_possible, things_shown
from mpclip.data.composition.choices import Choice, ChoiceSet
from mpclip.data.composition.scene_rules import texts_of_scene

KINDS = (*RULES, "absent_object")


def build_choices(rows, seed: int = 0) -> ChoiceSet:
    """Build a set: at most one choice of each kind per picture.

    Args:
        rows: a table with `image` and `captions`, as from `load_image_text`. If it has the column `scene` of OpenMoji
            scenes, the texts are made from the scenes, else from the captions.
        seed: of the draws. A picture's texts depend on the seed, its row and its captions; for absent_object on all pictures.

    Raises:
        ValueError: no rule applies to any picture.
    """
    scenes = rows["scene"][:] if "scene" in rows.column_names else None
    captions = rows.with_format(None)["captions"][:]
    made: dict[str, dict[int, tuple[str, str]]] = {kind: {} for kind in KINDS}  # kind -> row -> right, wrong
    for row, texts in enumerate(captions):
        rng = random.Random(f"{seed} {row} {texts[0]}")
        found = texts_of_captions(texts, rng) if scenes is None else texts_of_scene(scenes[row], rng)
        for kind, pair in found.items():
            made[kind][row] = pair
    if scenes is None:
        made["absent_object"] = absences([things_shown(c) for c in captions], [things_possible(c) for c in captions], seed)
    else:
        names = [[thing["name"] for thing in scene["objects"]] for scene in scenes]
        countable = [[name for name in shown if " of " not in name] for shown in names]  # "no pair of socks" is poor English
        made["absent_object"] = absences(countable, names, seed)
    choices = [Choice(kind, row, right, (wrong,)) for kind in KINDS for row, (right, wrong) in made[kind].items()]
    if not choices:
        raise ValueError(f"no rule applies to the captions of these {len(rows)} pictures, such as {captions[0][0]!r}")
    if missing := [kind for kind in KINDS if not made[kind]]:
        warnings.warn(f"no picture of {len(rows)} has a text of the kinds {', '.join(missing)}", stacklevel=2)
    return ChoiceSet(rows, choices, units=[choice.picture for choice in choices])
