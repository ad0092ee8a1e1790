"""OpenMoji drawings with class labels, for zero-shot classification. They are made on your machine and nothing is downloaded.

    python -m mpclip.data.openmoji.categories --out runs/openmoji_categories
    mpclip eval zero_shot --model runs/demo/multi_prompt --data runs/openmoji_categories --split test --json zero_shot.json
    mpclip search build --model runs/demo/multi_prompt --data runs/openmoji_categories/images --index runs/drawings

A picture of 224 x 224 pixels shows one drawing, in the middle of a white background. There is one picture of each drawing. The
command writes an image folder:

    images/*.png        the pictures
    metadata.jsonl      {"file_name", "split", "label", "noun"} of each picture; the split is "test"
    ATTRIBUTION.md      OpenMoji's licence, CC BY-SA 4.0, and the drawings used

`label` is one of nine categories, such as "animal". With --label_column noun, every drawing is a class of its own.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mpclip.command import start
from mpclip.data.openmoji.generate import PlacedObject, Scene
from mpclip.data.openmoji.objects import CATEGORIES, Drawings
from mpclip.data.openmoji.pictures import PICTURE_PIXELS, render_scene
from mpclip.data.openmoji.scenes import attribution
from mpclip.files import aside, write_text

PIXELS = 160  # of a drawing's longer side


def write_categories(folder: str | os.PathLike) -> Path:
    """Write the image folder that this module's docstring describes. What is there already is written anew.

    Args:
        folder: created if it does not exist.

    Returns:
        `folder`.

    Raises:
        FileExistsError: `folder` holds a metadata.jsonl that this command has not written.
    """
    folder, scenes, records = Path(folder), [], []
    for category, nouns in CATEGORIES.items():
        for noun, hexcode in nouns.items():
            thing = PlacedObject(noun, "large", PIXELS, PICTURE_PIXELS // 2, PICTURE_PIXELS // 2)
            scenes.append(Scene("test", len(scenes), "base", "centre", "white", (thing,)))
            label = re.sub(r"\ban? ", "", category)  # templates have an article of their own
            records.append({"file_name": f"images/{hexcode}.png", "split": "test", "label": label, "noun": noun})
    metadata = "".join(json.dumps(record) + "\n" for record in records)
    there = folder / "metadata.jsonl"
    if there.exists() and there.read_text(encoding="utf-8") != metadata:
        raise FileExistsError(f"{there} is not what this command writes: choose another folder, or move that one away.")
    drawings = Drawings()
    for scene, record in zip(scenes, records, strict=True):
        with aside(folder / record["file_name"]) as written:
            render_scene(scene, drawings).save(written, format="PNG")
    write_text(there, metadata)
    write_text(folder / "ATTRIBUTION.md", attribution(scenes))
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.data.openmoji.categories",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="image folder to write")
    folder = write_categories(parser.parse_args(arguments).out)
    print(f"{sum(map(len, CATEGORIES.values()))} drawings of {len(CATEGORIES)} categories in {folder}")


if __name__ == "__main__":
    start(main)
