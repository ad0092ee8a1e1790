"""Drawing OpenMoji scenes: the picture of one scene, and a sheet of families with their captions."""

import os
from collections import defaultdict
from collections.abc import Sequence

from PIL import Image

from mpclip.contact_sheet import DPI, ContactSheet, wrap
from mpclip.data.openmoji.generate import BACKGROUNDS, Scene
from mpclip.data.openmoji.objects import Drawings

PICTURE_PIXELS = 224

# The contact sheet, in inches. All are whole pixels, so the sheet shows pictures pixel by pixel.
CELL = PICTURE_PIXELS / DPI
GAP = 12 / DPI
TITLE = 26 / DPI  # from a picture to its caption
LINE = 18 / DPI  # from a line of a caption to the next
CAPTION_CHARACTERS = 29  # of a line


def render_scene(scene: Scene, drawings: Drawings) -> Image.Image:
    """Draw a scene: an RGB picture of 224 x 224."""
    picture = Image.new("RGB", (PICTURE_PIXELS, PICTURE_PIXELS), BACKGROUNDS[scene.background])
    for thing in scene.objects:
        drawing = drawings.get(thing.name, thing.pixels)
        picture.paste(drawing, (thing.x - drawing.width // 2, thing.y - drawing.height // 2), mask=drawing)
    return picture


def contact_sheet(scenes: Sequence[Scene], drawings: Drawings, path: str | os.PathLike) -> None:
    """Draw four families into a PNG file, a row each: below a picture its difference from the base and its first caption.

    Shown are the first families of five scenes with two objects side by side, two above each other, three objects, and one.
    There are fewer rows if `scenes` has no such family.

    Args:
        scenes: as from `generate_scenes`.
        drawings: the drawings to compose them of.
        path: the file to write; its folder is made.
    """
    rows = _families_shown(scenes)
    captions = [[wrap(scene.captions[0], CAPTION_CHARACTERS) for scene in family] for family in rows]
    heights = [CELL + TITLE + LINE * max(map(len, row)) + 2 * GAP for row in captions]
    sheet = ContactSheet(width=5 * (CELL + GAP) + GAP, height=sum(heights) + GAP)
    top = GAP
    for family, row, height in zip(rows, captions, heights, strict=True):
        for column, (scene, lines) in enumerate(zip(family, row, strict=True)):
            left = GAP + column * (CELL + GAP)
            sheet.picture(render_scene(scene, drawings), left, top, CELL, CELL)
            sheet.frame(left, top, CELL, CELL)
            title = "base" if scene.difference == "base" else f"difference: {scene.difference}"
            sheet.text(title, left, top + CELL + 0.05, size=8.5, color="firebrick")
            sheet.text("\n".join(lines), left, top + CELL + TITLE, size=7.5)
        top += height
    sheet.save(path)


def _families_shown(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """The first family of five scenes of each of four kinds."""
    families = defaultdict(list)
    for scene in scenes:
        families[scene.family].append(scene)
    first: dict[str | int, list[Scene]] = {"side by side": [], "one above the other": [], 3: [], 1: []}
    for family in families.values():
        kind = family[0].layout if len(family[0].objects) == 2 else len(family[0].objects)
        if len(family) == 5 and not first[kind]:
            first[kind] = family
    return [family for family in first.values() if family]
