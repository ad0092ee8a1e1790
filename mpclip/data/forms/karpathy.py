"""Karpathy's splits, dataset_flickr8k.json, dataset_flickr30k.json and dataset_coco.json.

    {"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "A red car ."}, ...]}, ...]}

COCO's pictures also have `filepath`, their folder. Its split `restval` is what people train on beside `train`, and is read as
train. `val` is read as validation.
"""

from pathlib import Path

from mpclip.data.forms.listing import Listing

SPLITS = {"restval": "train", "val": "validation"}


def is_karpathy(content: object) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return False
    return all(isinstance(image, dict) and "sentences" in image for image in content["images"])


def read_karpathy(file: Path, content: dict) -> Listing:
    """A row per picture, with `split` and all its captions.

    Raises:
        ValueError: a picture has no `filename`.
    """
    records = []
    for i, image in enumerate(content["images"], start=1):
        if not isinstance(image.get("filename"), str):
            raise ValueError(f"{file}, image {i}: expected `filename`, found {list(image)}")
        folder, split = image.get("filepath"), image.get("split")
        records.append(
            {
                "file_name": f"{folder}/{image['filename']}" if folder else image["filename"],
                "captions": image["sentences"],
                "split": SPLITS.get(split, split),
            }
        )
    return Listing.of_records(file, records)
