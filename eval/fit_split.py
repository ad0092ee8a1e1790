"""A task that chooses weights on one split, --fit_split, and reports them on another."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import datasets


class BothSplits(NamedTuple):
    """The pictures to measure on, and those to choose weights on, if any; both with columns `image` and `captions`."""

    rows: "datasets.Dataset"
    fit: "datasets.Dataset | None"


def both_splits(load: Callable[[str], "datasets.Dataset"], split: str, fit_split: str | None) -> BothSplits:
    """Load both splits.

    Args:
        load: a split -> its pictures.
        split, fit_split: those to report on, and to choose on; None for no choice.

    Raises:
        ValueError: both splits have a picture in common.
    """
    from mpclip.data.same_pictures import shared_pictures

    rows, fit = load(split), load(fit_split) if fit_split else None
    if fit is not None and (shared := shared_pictures(rows, fit)):
        raise ValueError(
            f"--fit_split {fit_split!r} and --split {split!r} share {shared} pictures, but weights must be chosen on other "
            "pictures than they are reported on. Give splits without common pictures."
        )
    return BothSplits(rows, fit)
