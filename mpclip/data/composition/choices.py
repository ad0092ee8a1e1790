"""A choice between a right text and wrong ones for a picture, and a set of such choices."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels


@dataclass(frozen=True)
class Choice:
    """A picture, the text that is true of it, and texts that are not.

    Attributes:
        kind: what the texts differ in, such as "swap_att".
        picture: the name of its file; in a `ChoiceSet` the number of its row.
        right: the true text.
        wrong: the false texts, at least one.
        box: the part of the picture that is shown; None for all of it.
    """

    kind: str
    picture: str | int
    right: str
    wrong: tuple[str, ...]
    box: Box | None = None

    def __post_init__(self):
        if not isinstance(self.kind, str) or self.kind in ("", "accuracy"):
            raise ValueError(f"the kind is {self.kind!r}, expected a word other than 'accuracy', which is the mean over kinds")
        if not isinstance(self.picture, int) and not (isinstance(self.picture, str) and self.picture.strip()):
            raise ValueError(f"the picture is {self.picture!r}, expected the name of its file")
        for text in (self.right, *self.wrong):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"a text is {text!r}, expected words")
        if not self.wrong:
            raise ValueError(f"{self.right!r} has no wrong text beside it: expected at least one")
        if self.right in self.wrong:
            raise ValueError(f"{self.right!r} is the right text and a wrong one: remove the row")


@dataclass
class ChoiceSet:
    """Choices with their pictures.

    Attributes:
        pictures: a table with the column `image`.
        choices: each with the row of its picture.
        boxes: for each row of `pictures` the part that is shown; None where all pictures are whole.
        units: for each choice the number of its picture's file, or of its pair: what a bootstrap draws.
        paired: choices 2j and 2j + 1 have the same two texts in opposite roles, as in Winoground.
    """

    pictures: "datasets.Dataset"
    choices: list[Choice]
    units: list[int]
    boxes: list[Box | None] | None = None
    paired: bool = False

    @property
    def kinds(self) -> dict[str, int]:
        """Kind -> number of choices, in the order of the set."""
        return dict(Counter(choice.kind for choice in self.choices))


class Crops:
    """The pictures of a set, cut to their boxes when they are read; for `Encoder.images`.

    Args:
        pictures: a table with the column `image`.
        boxes: one for each row.
    """

    def __init__(self, pictures: "datasets.Dataset", boxes: Sequence[Box | None]):
        self.images, self.boxes = pictures["image"], boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, part: slice) -> list:
        """PIL pictures."""
        pairs = zip(self.images[part], self.boxes[part], strict=True)
        return [image.crop(box) if box else image for image, box in pairs]
