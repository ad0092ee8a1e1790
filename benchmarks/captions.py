"""Captions that texts are timed on."""

from pathlib import Path

import torch

from mpclip.data.image_text import load_image_text
from mpclip.data.openmoji.scenes import generate_scenes

FLICKR8K = Path("data/flickr8k"), Path("../shared/data/flickr8k")  # the default data, if one of them is there


def captions(data: str | None, count: int = 2048) -> tuple[list[str], str]:
    """Captions to measure on.

    Args:
        data: a data set with a split "train"; None takes Flickr8k where it is in `FLICKR8K`, else captions of OpenMoji scenes.
        count: number of pictures.

    Returns:
        One caption of each of the first `count` pictures, in random order, and the name of the data.
    """
    if data is None:
        data = next((str(folder) for folder in FLICKR8K if folder.exists()), None)
    if data is None:
        rows, data = [scene.captions for scene in generate_scenes({"train": count})], "OpenMoji scenes"
    else:
        rows = load_image_text(data, "train", limit=count).with_format(None)["captions"]
    texts = [row[i % len(row)] for i, row in enumerate(rows)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    return [texts[i] for i in order], data
