"""Models with their indexes of the same pictures: opened where they exist, built where they do not."""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from modeling_mpclip.picture_files import open_rgb
from mpclip.data.picture_size import pixel_limit
from mpclip.encoding import ModelEncoder, refuse_unfit
from mpclip.encoding.fingerprint import weights_fingerprint
from mpclip.files import cache_folder
from mpclip.search.build import build_index, precision_of_build
from mpclip.search.pictures import DatasetPictures, FolderPictures, open_pictures
from mpclip.search.queries import QueryEncoder, initial_words
from mpclip.search.search import PictureIndex, read_settings
from mpclip.search.weights import filled_templates


@dataclasses.dataclass
class Collection:
    """A model and the pictures that it finds.

    Attributes:
        name: of the model, for people.
        index: the opened index; its `encoder` is the model's.
        source: where the pictures themselves are read; None if that is gone or cannot be opened again.
    """

    name: str
    index: PictureIndex
    source: FolderPictures | DatasetPictures | None

    @property
    def encoder(self) -> QueryEncoder:
        """The model, as the encoder of queries."""
        return self.index.encoder

    @property
    def has_maps(self) -> bool:
        """Whether maps can be drawn: of MP-CLIP models alone."""
        return isinstance(self.encoder.encoder, ModelEncoder)

    @property
    def size(self) -> int:
        """Number of pictures."""
        return self.index.settings["pictures"]

    def prompts(self) -> list[str]:
        """The template of each of the K prompts, with the words of adaptive tokens; [] for a model of one segment."""
        if not self.has_maps or self.encoder.aspects == 1:
            return []
        templates = list(self.encoder.encoder.model.config.templates)
        if len(templates) != self.encoder.aspects:
            return [f"segment {name}" for name in self.encoder.names]
        return filled_templates(templates, initial_words(self.encoder.name))

    def picture(self, name: str) -> PIL.Image.Image:
        """A picture in full size, as RGB.

        Args:
            name: of a hit.

        Raises:
            ValueError: it cannot be read; the message names no folder of the machine.
        """
        if self.source is None:
            raise ValueError(
                "The pictures are not where they were when the index was built, so only their thumbnails are here."
            )
        if name not in self.source.stamps:
            raise ValueError(f"There is no picture {name!r} any more. Start the app again to bring its index up to date.")
        try:
            with pixel_limit():
                return open_rgb(io.BytesIO(self.source.content(name)))
        except Exception as error:  # Pillow's decoders raise a dozen types, and OSError would name the folder
            raise ValueError(f"The picture {name!r} cannot be read any more ({type(error).__name__}).") from error

    def captions(self, count: int) -> list[str]:
        """Up to `count` captions at even intervals, as examples of queries; [] if the pictures have none."""
        if self.source is None:
            return []
        names = list(self.source.stamps)
        chosen = [names[i * len(names) // count] for i in range(count)]
        return list(dict.fromkeys(filter(None, map(self.source.caption, chosen))))


def open_collections(
    models: Sequence[str], images: str, split: str | None = None, precision: str = "auto", device: str | None = None
) -> list[Collection]:
    """Open a collection of pictures with one or several models.

    Args:
        models: folders or Hub ids of checkpoints; their Python files are run. [] takes the model of the index.
        images: a folder of pictures, with a split a data set, or an index. An index must be of the first model; for others,
            and where there is no index, one is built in the cache or brought up to date there.
        split: of a data set.
        precision: dtype of the weights of a new index, or "auto".
        device: torch device. Default: the GPU if there is one.

    Raises:
        ValueError: no model, an index together with a split, or what building and opening an index refuses.
        OSError: no such folder or model. ImportError: FAISS is not installed.
    """
    index = images if Path(images, "index.json").is_file() else None
    if index:
        if split is not None:
            raise ValueError(f"{images} is an index, which knows its split: leave out --split {split}")
        settings = read_settings(index)
        models = list(models) or [settings["model"]]
        images, split = settings["data"], settings["split"]
    if not models:
        raise ValueError(f"no model to search {images} with: give --model, a checkpoint's folder or Hub id")
    for model in models:
        refuse_unfit(model)
    opened = []
    for model, name in zip(models, short_names(models), strict=True):
        folder = Path(index) if index and not opened else _kept_index(model, images, split, precision, device)
        encoder = QueryEncoder(model, read_settings(folder)["dtype"], device)
        opened.append(Collection(name, PictureIndex(folder, encoder), _source(images, split)))
    return opened


def short_names(models: Sequence[str]) -> list[str]:
    """Names of models for people: the last part of a path, or more of it where two would be alike; a Hub id as it is."""
    paths = [os.path.abspath(model).split(os.sep) if os.path.isdir(model) else [model] for model in models]
    for parts in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(path[-parts:]) for path in paths]
        if len(set(names)) == len(set(map(tuple, paths))):
            break
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def _kept_index(model: str, images: str, split: str | None, precision: str, device: str | None) -> Path:
    """The folder of an index in the cache, built or brought up to date. It is found again by weights, pictures and split."""
    place = os.path.abspath(images) if os.path.exists(images) else images
    key = json.dumps([weights_fingerprint(model) or model, place, split])
    folder = cache_folder() / "app" / hashlib.sha256(key.encode()).hexdigest()[:20]
    build_index(model, images, folder, split, dtype=precision_of_build(precision, folder, device), device=device)
    return folder


def _source(images: str, split: str | None) -> FolderPictures | DatasetPictures | None:
    try:
        return open_pictures(images, split)
    except (OSError, ValueError):  # gone, or a table that needs the options that its index was built with
        return None
