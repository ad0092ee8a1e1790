"""A picture of what each prompt stands for: the pictures that lean most to it, in a row, each with a caption."""

from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from mpclip.contact_sheet import FAINT, ContactSheet, wrap

# Lengths in inches.
CELL = 1.5  # longer side of a picture
WORDS = 0.62  # height of the caption below it
GAP = 0.16
NAME = 1.5  # width of the column of names


def prompt_grid(
    names: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]], captions: Sequence[Sequence[str]], path: str | Path
) -> None:
    """Draw the grid into a PNG file.

    Args:
        names: K names of prompts.
        pictures: those of each row, best first.
        captions: one for each picture.
        path: the file to write; its folder is created.
    """
    columns = max(map(len, pictures))
    sheet = ContactSheet(NAME + columns * (CELL + GAP) + GAP, GAP + len(names) * (CELL + WORDS + GAP))
    for row, (name, some, told) in enumerate(zip(names, pictures, captions, strict=True)):
        top = GAP + row * (CELL + WORDS + GAP)
        sheet.text("\n".join(wrap(name, 16, max_lines=6)), GAP, top, size=11, weight="bold")
        for column, (picture, caption) in enumerate(zip(some, told, strict=True)):
            left = NAME + column * (CELL + GAP)
            scale = CELL / max(picture.size)
            width, height = picture.width * scale, picture.height * scale
            box = (left + (CELL - width) / 2, top + (CELL - height) / 2, width, height)
            sheet.picture(picture, *box)
            sheet.frame(*box)
            sheet.text("\n".join(wrap(caption, 27, max_lines=4)), left, top + CELL + 0.05, size=7, color=FAINT)
    sheet.save(path)
