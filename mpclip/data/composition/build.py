"""Sets of choices that are built from pictures with captions, by the rules of scene_rules.py or caption_rules.py."""

import random
import warnings

from mpclip.data.composition.caption_rules import RULES, texts_of_captions, things_shown
from mpclip.data.composition.choices import Choice, ChoiceSet
from mpclip.data.composition.scene_rules import texts_of_scene

KINDS = (*RULES, "absent_object")


def build_choices(rows, seed: int = 0) -> ChoiceSet:
    """Build a set: at most one choice of each kind per picture.

    Args:
        rows: a table with `image` and `captions`, as from `load_image_text`. If it has the column `scene` of OpenMoji
            scenes, the texts are made from the scenes, else from the captions.
        seed: of the draws. A picture's texts depend on the seed, on its captions, and on which things other pictures show.

    Raises:
        ValueError: no rule applies to any picture.
    """
    scenes = rows["scene"][:] if "scene" in rows.column_names else None
    captions = rows.with_format(None)["captions"][:]
    if scenes is not None:
        shown = [[thing["name"] for thing in scene["objects"]] for scene in scenes]
    else:
        shown = [[thing.name for thing in things_shown(texts)] for texts in captions]
    everywhere = [name for names in shown for name in names]
    by_kind: dict[str, list[Choice]] = {kind: [] for kind in KINDS}
    for row, texts in enumerate(captions):
        rng = random.Random(f"{seed} {row} {texts[0]}")
        if scenes is not None:
            made = texts_of_scene(scenes[row], everywhere, rng)
        else:
            made = texts_of_captions(texts, everywhere, rng)
        for kind, (right, wrong) in made.items():
            by_kind[kind].append(Choice(kind, row, right, (wrong,)))
    choices = [choice for kind in KINDS for choice in by_kind[kind]]
    if not choices:
        raise ValueError(f"no rule applies to the captions of these {len(rows)} pictures, such as {captions[0][0]!r}")
    if missing := [kind for kind, made in by_kind.items() if not made]:
        warnings.warn(f"no picture of {len(rows)} has a text of the kinds {', '.join(missing)}", stacklevel=2)
    return ChoiceSet(rows, choices, units=[choice.picture for choice in choices])
