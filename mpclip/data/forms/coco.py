"""COCO's annotations, captions_train2017.json: pictures in one list, captions in another, joined by the number of the picture.

{"images": [{"id": 9, "file_name": "000000000009.jpg"}, ...], "annotations": [{"image_id": 9, "caption": "..."}, ...]}
"""

from pathlib import Path

from mpclip.data.forms.listing import Listing


def is_coco(content: object) -> bool:
    """Whether the content of a JSON file has the lists of COCO."""
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in ("images", "annotations"))


def read_coco(file: Path, content: dict) -> Listing:
    """A row per picture, with its captions in the order of the file.

    Raises:
        ValueError: an annotation has no caption, as in instances_*.json, or belongs to no picture.
    """
    names, captions = {}, {}  # number of a picture -> its file, and its captions
    for i, image in enumerate(content["images"], start=1):
        if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
            raise ValueError(f"{file}, image {i}: expected id and file_name, found {str(image)[:80]!r}")
        names[image["id"]] = image["file_name"]
    for i, annotation in enumerate(content["annotations"], start=1):
        if not isinstance(annotation, dict) or not {"image_id", "caption"} <= annotation.keys():
            raise ValueError(
                f"{file}, annotation {i}: expected image_id and caption, found {str(annotation)[:80]!r}. COCO has its "
                "captions in captions_*.json"
            )
        if annotation["image_id"] not in names:
            raise ValueError(f"{file}, annotation {i}: `images` has none with the id {annotation['image_id']!r}")
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    numbers = list(names)
    columns = {
        "file_name": list(names.values()),
        "image_id": numbers,
        "captions": [captions.get(number, []) for number in numbers],
    }
    return Listing(file, columns)
