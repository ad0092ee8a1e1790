"""Rows that cannot be used: they are named and left out, or they end the run."""

import warnings

import datasets

from mpclip.data.image_checks import named
from mpclip.data.skipped import tell_skipped


def leave_out(
    rows: datasets.Dataset, faults: dict[str, dict[int, str]], place: str, bad_images: str
) -> tuple[datasets.Dataset, list[int]]:
    """The rows without a fault.

    Args:
        rows: a table with `image`.
        faults: what is wrong with some rows, such as "without a label" -> {row number: reason}. A row may have several faults.
        place: where the rows come from, for messages.
        bad_images: as in `mpclip.data.reading.ReadingOptions`. "skip": a warning has the number and the names of what is left
            out. "fail": the first kind of fault is an error.

    Returns:
        The good rows, and their numbers in `rows`.

    Raises:
        ValueError: faults with `bad_images="fail"`, or no row is left.
    """
    for what, reasons in faults.items():
        if not reasons:
            continue
        message = f"{place}: {len(reasons)} of {len(rows)} rows {what}: {named(rows, reasons)}"
        if bad_images == "fail":
            raise ValueError(f"{message}. Repair or remove them, or pass bad_images='skip'")
        warnings.warn(f"{message}. They are left out", stacklevel=3)
        tell_skipped(f"rows {what}", len(reasons))
    good = [i for i in range(len(rows)) if not any(i in reasons for reasons in faults.values())]
    if not good:
        kinds = ", ".join(f"{len(reasons)} {what}" for what, reasons in faults.items() if reasons)
        raise ValueError(f"{place}: none of its {len(rows)} rows can be used ({kinds})")
    return (rows if len(good) == len(rows) else rows.select(good)), good
