"""The folder of a Hugging Face Space: the app with its model, its pictures and the code that it needs.

README.md          front matter that the Hub reads; what the Space shows
app.py             opens the collection and serves the page
requirements.txt   packages at the versions that are installed here
mpclip/ ...        the library, which is on no registry
model/             a copy of the checkpoint, if it is a folder; a Hub id is downloaded by the Space
pictures/          a copy of the pictures, with their captions in metadata.jsonl if they have any
"""

import importlib.metadata
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import SpaceCardData

from mpclip.app.collection import short_names
from mpclip.command import next_steps
from mpclip.data.picture_folder import PICTURE_ENDINGS
from mpclip.encoding import refuse_unfit
from mpclip.files import write_text
from mpclip.search.pictures import open_pictures
from mpclip.search.search import read_settings
from mpclip.training.hub_push import NOT_THE_MODEL, NOT_THE_RUN

PACKAGES = ("modeling_mpclip", "mpclip", "eval")
FOR_THE_APP = ("gradio", "faiss-cpu")  # beside what the library itself needs
SPLIT = "test"  # of the pictures' table in a Space
ABOUT_RIGHTS = ("LICENSE*", "LICENCE*", "ATTRIBUTION*", "NOTICE*")  # files beside pictures that are copied with them

APP = '''"""A Space: search pictures by text, by picture, or both. Written by `mpclip app --space`."""

from pathlib import Path

from mpclip.app.collection import open_collections
from mpclip.app.page import build_page
from mpclip.app.server import serve

HERE = Path(__file__).parent
MODELS = {models!r}  # folders beside this file, or Hub ids
models = [str(HERE / model) if (HERE / model).is_dir() else model for model in MODELS]
demo = build_page(open_collections(models, str(HERE / "pictures"), {split!r}))

if __name__ == "__main__":
    serve(demo, host=None)  # the Space says where
'''

README = """---
{front}
---

# {title}

{count:,} pictures, searched with {models}, a model of [MP-CLIP](https://arxiv.org/abs/2508.02762): type a text, add a picture,
or both. Each prompt of the model has a slider. A click on a picture shows where in it each prompt finds the query.

The index is made when the Space starts. Locally: `pip install -r requirements.txt`, then `python app.py`.
{rights}"""


def write_space(folder: str | Path, models: Sequence[str], images: str, split: str | None = None) -> str:
    """Write a Space.

    Args:
        folder: to write to; new or empty.
        models: one or two checkpoints: folders, which are copied, or Hub ids.
        images: a folder of pictures, with a split a data set, or an index, whose pictures are taken.
        split: of a data set.

    Returns:
        What to do next, in words.

    Raises:
        ValueError: the folder is not empty, there is no model, or a model or the pictures cannot be used.
        OSError: no such folder, model or pictures.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: give a new one for the Space")
    if Path(images, "index.json").is_file():
        settings = read_settings(images)
        models = list(models) or [settings["model"]]
        images, split = settings["data"], settings["split"]
    if not models:
        raise ValueError("no model for the Space: give --model, a checkpoint's folder or Hub id")
    for model in models:
        refuse_unfit(model)
    pictures = open_pictures(images, split)
    copies = [_copy_model(model, folder, k) for k, model in enumerate(models, start=1)]
    has_captions = _copy_pictures(pictures, folder / "pictures")
    rights = _copy_rights(Path(images), folder / "pictures")
    for package in PACKAGES:
        _copy_package(package, folder / package)
    write_text(folder / "app.py", APP.format(models=copies, split=SPLIT if has_captions else None))
    write_text(folder / "requirements.txt", "".join(f"{line}\n" for line in requirements()))
    of_hub = [model for model in models if not Path(model).is_dir()]
    told = (
        f"\nThe pictures have terms of use: {', '.join(f'[{name}](pictures/{name})' for name in rights)}.\n" if rights else ""
    )
    names = " and ".join(short_names(models))
    title = "Search pictures with MP-CLIP"
    front = front_matter(title, of_hub, len(pictures.stamps))
    write_text(
        folder / "README.md",
        README.format(front=front, title=title, count=len(pictures.stamps), models=names, rights=told),
    )
    steps = [
        (["python", str(folder / "app.py")], "tries it here"),
        (["hf", "repos", "create", "you/name", "--type", "space", "--sdk", "gradio"], "makes the Space"),
        (["hf", "upload", "you/name", str(folder), ".", "--type", "space"], "fills it"),
    ]
    return f"{folder}: a Space of {len(pictures.stamps):,} pictures\n\n{next_steps(steps)}"


def front_matter(title: str, models: Sequence[str], pictures: int) -> str:
    """The YAML on top of a Space's README.

    Args:
        title: of the Space.
        models: the Hub ids of its models.
        pictures: how many it has.
    """
    data = SpaceCardData(
        title=title,
        emoji="🔎",
        colorFrom="yellow",
        colorTo="red",
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        pinned=False,
        license="apache-2.0",
        models=list(models) or None,
        preload_from_hub=list(models) or None,
        short_description=f"{pictures:,} pictures by text and by picture",
        suggested_hardware="cpu-basic",
    )
    return data.to_yaml().strip()


def requirements() -> list[str]:
    """The packages that the app needs, each at the version that is installed here: "numpy==2.3.1".

    Raises:
        ImportError: one of them is not installed.
    """
    named = [line for line in importlib.metadata.requires("mpclip") or () if "extra ==" not in line]
    names = sorted({*(re.match(r"[\w.-]+", line)[0] for line in named), *FOR_THE_APP})
    try:
        # "2.13.0+cpu" is a build of 2.13.0; the Space chooses its own.
        return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f'a Space pins what is installed here, and {error.name} is not: pip install "mpclip[app]"') from error


def _copy_model(model: str, folder: Path, number: int) -> str:
    """Copies a checkpoint that is a folder, without what its training left there. Returns its name in the Space."""
    if not Path(model).is_dir():
        return model
    name = f"model_{number}"
    shutil.copytree(model, folder / name, ignore=shutil.ignore_patterns(*NOT_THE_MODEL, *NOT_THE_RUN, ".*"))
    return name


def _copy_pictures(pictures, folder: Path) -> bool:
    """Copies pictures by new names, and their captions if any has one. Returns whether there are captions."""
    folder.mkdir(parents=True)
    rows = []
    for number, name in enumerate(pictures.stamps):
        content = pictures.content(name)
        ending = Path(name).suffix.lower()
        file = f"{number:06d}{ending if ending in PICTURE_ENDINGS else '.png'}"
        (folder / file).write_bytes(content)
        rows.append({"file_name": file, "split": SPLIT, "captions": [caption] if (caption := pictures.caption(name)) else []})
    if not any(row["captions"] for row in rows):
        return False
    write_text(folder / "metadata.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return True


def _copy_rights(source: Path, folder: Path) -> list[str]:
    """Copies files about rights that lie beside the pictures. Returns their names."""
    found = (
        sorted({path for pattern in ABOUT_RIGHTS for path in source.glob(pattern) if path.is_file()}) if source.is_dir() else []
    )
    for path in found:
        shutil.copy(path, folder / path.name)
    return [path.name for path in found]


def _copy_package(name: str, target: Path) -> None:
    """Copies the Python files of an installed package."""
    source = Path(importlib.util.find_spec(name).origin).parent
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
