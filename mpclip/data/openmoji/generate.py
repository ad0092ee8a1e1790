"""Inventing OpenMoji scenes: which objects a scene has, where they lie, which twins it gets. Nothing is drawn here.

`generate_scenes` invents the scenes of a data set. `differences_between` says in what two scenes differ. What scenes and
families are is said in `mpclip.data.openmoji.scenes`.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from mpclip.data.openmoji.captions import describe
from mpclip.data.openmoji.objects import OBJECTS

# Pixels of a drawing's longer side. Two large drawings fit side by side with room between them.
SIZES = {"small": (44, 48, 52), "large": (90, 94, 98)}

# Light enough for the black outlines of the drawings, and easy to tell apart by name.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (176, 176, 176),
    "blue": (150, 205, 245),
    "green": (160, 220, 150),
    "yellow": (255, 236, 120),
    "orange": (255, 190, 120),
    "pink": (250, 180, 205),
    "purple": (200, 175, 240),
}


class Layout(NamedTuple):
    """Where objects lie, in pixels: the centre (x, y) of each slot, and how far an object's centre may be from it."""

    slots: tuple[tuple[int, int], ...]
    jitter: tuple[int, int]


LAYOUTS = {
    "centre": Layout(((112, 112),), (8, 8)),
    "top left": Layout(((56, 56),), (5, 5)),
    "top right": Layout(((168, 56),), (5, 5)),
    "bottom left": Layout(((56, 168),), (5, 5)),
    "bottom right": Layout(((168, 168),), (5, 5)),
    "side by side": Layout(((56, 112), (168, 112)), (5, 20)),
    "one above the other": Layout(((112, 56), (112, 168)), (20, 5)),
    "one above two": Layout(((112, 56), (56, 168), (168, 168)), (5, 5)),
    "two above one": Layout(((56, 56), (168, 56), (112, 168)), (5, 5)),
}

# How often a family has one, two or three objects, as weights.
OBJECT_COUNT_WEIGHTS = {1: 1, 2: 6, 3: 1}

# The share of all combinations of objects that belongs to each split.
SPLIT_PERCENT = {"train": 65, "validation": 15, "test": 20}

# The share of scenes with a caption that also says what is not in the picture.
ABSENCE_PROBABILITY = 0.2

# Families invented in search of one that is new, before the search is given up.
MAX_DRAWS = 1000


@dataclass(frozen=True)
class PlacedObject:
    """A drawing in a picture.

    Attributes:
        name: a key of `OBJECTS`.
        size: "small" or "large".
        pixels: length of its longer side.
        x, y: its centre, in pixels from the upper left corner.
    """

    name: str
    size: str
    pixels: int
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn.

    Attributes:
        split: "train", "validation" or "test".
        family: the number of its family, unique over all splits.
        difference: in what it differs from the base of its family: "relation", "position", "background", "size" or
            "object". The base itself has "base".
        layout: a key of `LAYOUTS`.
        background: a key of `BACKGROUNDS`.
        objects: one for each slot of the layout, in the order of the slots.
        absent: an object that a caption says is not in the picture, or None.
        captions: sentences. Each is true of this scene and of no other scene of its split.
    """

    split: str
    family: int
    difference: str
    layout: str
    background: str
    objects: tuple[PlacedObject, ...]
    absent: str | None = None
    captions: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Path of its picture inside the image folder."""
        # The split is not in it: `datasets` reads splits out of file names, and would then ignore metadata.jsonl.
        return f"images/{self.family:05d}-{self.difference}.png"

    def structure(self) -> dict:
        """What is in the picture, as stored in the column `scene` of `metadata.jsonl`."""
        return {
            "layout": self.layout,
            "background": self.background,
            "objects": [asdict(thing) for thing in self.objects],
            "absent": self.absent,
        }


def generate_scenes(scene_counts: Mapping[str, int], seed: int = 0, captions_per_scene: int = 2) -> list[Scene]:
    """Invent the scenes of a data set.

    Args:
        scene_counts: number of scenes of each split, by "train", "validation" and "test": 0, or 3 and more, since a family
            has at least three. The scenes of a split do not depend on the numbers of the other splits.
        seed: the same seed gives the same scenes.
        captions_per_scene: sentences per scene, 1 to 8.

    Returns:
        The scenes, family by family. The base of a family comes first.

    Raises:
        ValueError: an unknown split, a number of scenes or captions that cannot be had, or more scenes than there are.
    """
    unknown = set(scene_counts) - set(SPLIT_PERCENT)
    if unknown:
        raise ValueError(f"unknown splits {sorted(unknown)}: the splits are {', '.join(SPLIT_PERCENT)}.")
    scenes = []
    family = 0
    for split in SPLIT_PERCENT:
        rng = random.Random(f"{seed}/{split}")
        taken: set = set()
        for size in _family_sizes(split, scene_counts.get(split, 0), rng):
            members = _new_family(split, family, size, taken, rng)
            taken.update(_description(scene) for scene in members)
            scenes.extend(_with_captions(members, captions_per_scene, rng))
            family += 1
    return scenes


def differences_between(first: Mapping, second: Mapping) -> set[str]:
    """In what two scenes differ.

    Objects are compared with the object of the same name in the other scene, or else with the next one that has no
    namesake either, in the order of the slots. Places are compared only if both scenes have as many objects. Jitter of
    sizes and places does not count, and neither does what a caption says is absent.

    Args:
        first, second: `Scene.structure()`, or the column `scene` of `metadata.jsonl`.

    Returns:
        A subset of {"relation", "position", "background", "size", "object"}; empty if captions describe both alike.
    """
    differences = set()
    if first["background"] != second["background"]:
        differences.add("background")

    slots = [{thing["name"]: slot for slot, thing in enumerate(scene["objects"])} for scene in (first, second)]
    shared = [name for name in slots[0] if name in slots[1]]
    others = [[slot for name, slot in by_name.items() if name not in shared] for by_name in slots]
    if others[0] or others[1]:
        differences.add("object")
    matches = [(slots[0][name], slots[1][name]) for name in shared] + list(zip(*others, strict=False))
    if any(first["objects"][i]["size"] != second["objects"][j]["size"] for i, j in matches):
        differences.add("size")

    moved = first["layout"] != second["layout"] or any(i != j for i, j in matches)
    if moved and len(first["objects"]) == len(second["objects"]):
        differences.add("position" if len(first["objects"]) == 1 else "relation")
    return differences


def _family_sizes(split: str, scenes: int, rng: random.Random) -> Iterator[int]:
    """Sizes of families that sum to `scenes`: four or five each, or three where the sum needs it."""
    if scenes < 0 or scenes in (1, 2):
        raise ValueError(f"{scenes} {split} scenes were asked for: a family has 3 to 5, so ask for 0, or 3 and more.")
    while scenes:
        size = rng.choice([size for size in (4, 5) if scenes == size or scenes - size >= 3] or [3])
        yield size
        scenes -= size


def _new_family(split: str, family: int, size: int, taken: set, rng: random.Random) -> list[Scene]:
    """A base and `size` - 1 twins, none with a description that is `taken`."""
    for _ in range(MAX_DRAWS):
        base = _base_scene(split, family, rng)
        differences = ["position" if len(base.objects) == 1 else "relation", "background", "size", "object"]
        members = [base] + [_twin(base, difference, rng) for difference in rng.sample(differences, size - 1)]
        if not taken.intersection(_description(scene) for scene in members):
            return members
    raise ValueError(
        f"no new {split} scene was found in {MAX_DRAWS} tries after {len(taken)} different ones: ask for fewer scenes."
    )


def _base_scene(split: str, family: int, rng: random.Random) -> Scene:
    (count,) = rng.choices(list(OBJECT_COUNT_WEIGHTS), weights=list(OBJECT_COUNT_WEIGHTS.values()))
    layout = rng.choice([name for name, layout in LAYOUTS.items() if len(layout.slots) == count])
    names = rng.sample(list(OBJECTS), count)
    while split_of(names) != split:
        names = rng.sample(list(OBJECTS), count)
    objects = []
    for name, (x, y) in zip(names, _centres(layout, rng), strict=True):
        size = rng.choice(list(SIZES))
        objects.append(PlacedObject(name, size, rng.choice(SIZES[size]), x, y))
    return Scene(split, family, "base", layout, rng.choice(list(BACKGROUNDS)), tuple(objects))


def _twin(base: Scene, difference: str, rng: random.Random) -> Scene:
    """`base` with this one difference. Everything else stays, jitter included."""
    objects = list(base.objects)
    layout, background = base.layout, base.background
    which = rng.randrange(len(objects))
    changed = objects[which]
    if difference == "relation":
        i, j = rng.sample(range(len(objects)), 2)
        first, second = objects[i], objects[j]
        objects[i] = replace(second, x=first.x, y=first.y)
        objects[j] = replace(first, x=second.x, y=second.y)
    elif difference == "position":
        layout = rng.choice([name for name, other in LAYOUTS.items() if len(other.slots) == 1 and name != base.layout])
        ((x, y),) = _centres(layout, rng)
        objects[which] = replace(changed, x=x, y=y)
    elif difference == "background":
        background = rng.choice([name for name in BACKGROUNDS if name != base.background])
    elif difference == "size":
        size = "large" if changed.size == "small" else "small"
        objects[which] = replace(changed, size=size, pixels=rng.choice(SIZES[size]))
    else:
        kept = [thing.name for thing in objects if thing is not changed]
        candidates = [name for name in OBJECTS if name != changed.name and name not in kept]
        own = [name for name in candidates if split_of([*kept, name]) == base.split]
        objects[which] = replace(changed, name=rng.choice(own))
    return replace(base, difference=difference, layout=layout, background=background, objects=tuple(objects))


def _centres(layout: str, rng: random.Random) -> list[tuple[int, int]]:
    """A place near each slot."""
    slots, (most_x, most_y) = LAYOUTS[layout]
    return [(x + rng.randint(-most_x, most_x), y + rng.randint(-most_y, most_y)) for x, y in slots]


def split_of(names: Sequence[str]) -> str:
    """The split to which a combination of objects belongs. Its hash decides, so the seed and the order do not matter."""
    digest = hashlib.sha256("+".join(sorted(names)).encode()).digest()
    draw = int.from_bytes(digest[:8], "big") % 100
    for split, percent in SPLIT_PERCENT.items():
        if draw < percent:
            return split
        draw -= percent
    raise AssertionError(f"SPLIT_PERCENT sums to less than 100: {SPLIT_PERCENT}")


def _with_captions(members: Sequence[Scene], captions_per_scene: int, rng: random.Random) -> Iterator[Scene]:
    """The scenes of a family with their captions."""
    for scene in members:
        present = [thing.name for thing in scene.objects]
        absent = None
        if rng.random() < ABSENCE_PROBABILITY:
            # An object of a twin is best, since its absence tells the two apart. "No pair of socks" would be poor English.
            in_twins = [thing.name for twin in members for thing in twin.objects if thing.name not in present]
            anywhere = [name for name in OBJECTS if name not in present]
            absent = rng.choice([n for n in in_twins if " of " not in n] or [n for n in anywhere if " of " not in n])
        objects = [(thing.name, thing.size) for thing in scene.objects]
        captions = describe(scene.layout, scene.background, objects, absent, captions_per_scene, rng)
        yield replace(scene, absent=absent, captions=captions)


def _description(scene: Scene) -> tuple:
    """All that a caption says of a scene, by which scenes are compared."""
    return scene.layout, scene.background, tuple((thing.name, thing.size) for thing in scene.objects)
