"""How a data set of pictures and captions is read: options that training, evaluation and the index share, declared once.

This module imports neither torch nor `datasets`, so that `--help` is fast.
"""

import argparse
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

from modeling_mpclip.model_options import Range, choices, option, refuse_illegal_values

MAX_MEGAPIXELS = 90.0  # millions of pixels; Pillow's own limit is 89.5
WHOLE = "none"  # caption_separator: captions are left as they stand


@dataclass
class ReadingOptions:
    """Where a data set has its pictures and captions, and what happens to faulty ones."""

    image_column: str | None = option(
        None, "Column of the image, or of its path in a table beside the pictures. Default: image, img or jpg; file_name."
    )
    caption_column: list[str] | None = option(  # kept as one text with commas, as it is recorded
        None,
        "Column of the caption or captions; several are a list, or separated by commas. Default: captions, caption, text, "
        "sentences or raw, or the columns of one such name with numbers (caption_0, caption_1, ...).",
    )
    caption_separator: str | None = option(
        None,
        "What stands between the captions of a cell, such as ';'. '\\n' is a new line. Default: a cell holds one "
        "caption or a list. 'none': the same, and captions that look as if they had a separator are not refused.",
    )
    class_caption: str | None = option(
        None,
        "Caption for data that have classes instead of captions, such as 'a photo of a {}'; {} is the name of the class.",
    )
    image_folder: str | None = option(
        None,
        "Folder of the pictures that a table names, within the data set's folder or elsewhere. Default: where the table lies, "
        "or a folder beside it that has them.",
    )
    follow_links: bool = option(False, "Also read what symbolic links lead to outside of the data set's folder.")
    max_megapixels: Annotated[float, Range(above=0)] = option(
        MAX_MEGAPIXELS,
        "Millions of pixels of the largest picture. Larger ones count as corrupt, because a small file can unpack to more than "
        "the memory holds.",
    )
    bad_images: Literal["skip", "fail"] = option(
        "skip", "How corrupt or missing images are treated. 'skip': they are named and skipped. 'fail': they end the run."
    )

    def __post_init__(self):
        if isinstance(self.caption_column, list | tuple):
            self.caption_column = ",".join(self.caption_column)
        refuse_illegal_values(self, ReadingOptions)
        if self.class_caption is not None and "{}" not in self.class_caption:
            raise ValueError(f"class_caption={self.class_caption!r} has no {{}}: write 'a photo of a {{}}'.")
        if self.caption_separator == "":
            raise ValueError("caption_separator is empty: give what stands between captions, such as ';', or leave it out.")

    @property
    def separator(self) -> str | None:
        """`caption_separator` as it stands in the data; None where captions are not taken apart."""
        if self.caption_separator in (None, WHOLE):
            return None
        return self.caption_separator.replace("\\n", "\n").replace("\\t", "\t")


READING_NAMES = tuple(declared.name for declared in fields(ReadingOptions))


def reading_of(options: object) -> dict[str, Any]:
    """The reading options among the attributes of `options`, as arguments of `load_image_text`."""
    return asdict(ReadingOptions(**{name: getattr(options, name) for name in READING_NAMES}))


def reading_given(options: object) -> dict[str, Any]:
    """Those of `reading_of` that are not at their defaults."""
    defaults = asdict(ReadingOptions())
    return {name: value for name, value in reading_of(options).items() if value != defaults[name]}


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the reading options to a command's parser, with the names, defaults and help that training has."""
    group = parser.add_argument_group("reading the data set")
    kinds = get_type_hints(ReadingOptions)  # not those of `fields`, in which HfArgumentParser replaces types
    for declared in fields(ReadingOptions):
        kind, about = kinds[declared.name], declared.metadata["help"].replace("%", "%%")
        taken: dict[str, Any] = {"default": declared.default}
        if kind is bool:
            taken |= {"nargs": "?", "const": True, "type": _truth, "metavar": "true"}
        elif kind is float:
            taken |= {"type": float}
            about += " Default: %(default)g."
        elif kind == list[str] | None:
            taken |= {"nargs": "+"}
        elif legal := choices(ReadingOptions, declared.name):
            taken |= {"choices": legal}
        group.add_argument(f"--{declared.name}", help=about, **taken)


def _truth(value: str) -> bool:
    """True or false, as the command line of training takes them."""
    if value.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {value!r}")
    return value.lower() == "true"
