"""The pictures of published sets: found in their folder, checked, and put in a table."""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import datasets

from mpclip.data.composition.choices import Choice, ChoiceSet
from mpclip.data.composition.published import EXPECTED, INVALID, choices_of_pair, read_published
from mpclip.data.forms.listing import PROBED, given_folder, picture_folder
from mpclip.data.forms.saved import loaded_parts, parquet_parts, saved_parts
from mpclip.data.image_checks import named, to_rgb, undecodable
from mpclip.data.image_sources import HUB_ID
from mpclip.data.links import Bounds
from mpclip.data.picture_size import read_pictures_of
from mpclip.data.reading import ReadingOptions
from mpclip.data.skipped import tell_skipped

WHOLE = ("all", "test")  # splits that stand for every kind of a published set
PAIR_COLUMNS = ("image_0", "image_1", "caption_0", "caption_1")
NO_PICTURE = "choices with a picture that cannot be read"


def load_choices(source: str | Path, split: str, limit: int | None = None, **reading) -> ChoiceSet:
    """Open a published set of choices with its pictures. Every picture of it decodes.

    Args:
        source: a file or folder of a form that `mpclip.data.composition.published` lists; or, for Winoground, a saved data
            set, parquet or Hub id that has the pictures in it.
        split: "all" or "test" for every kind, or the name of one kind, such as "swap_att". For a table with pictures in it,
            the name of its split.
        limit: number of choices of each kind to take, from the start of each file; of pairs both. None for all.
        reading: `image_folder`, `follow_links`, `max_megapixels` and `bad_images` of `ReadingOptions`.

    Raises:
        FileNotFoundError: there is nothing at `source`, or no folder `image_folder`.
        ValueError: an unknown form or split, no picture found, or pictures that cannot be read with `bad_images="fail"`.
    """
    how = ReadingOptions(**reading)
    if table := _table(str(source), split):
        if limit is not None:
            table = table.select(range(min(limit, len(table))))
        return _checked(*_pairs_of_table(table, str(source)), True, how, str(source))
    reads = read_published(source)
    if len({read.paired for read in reads}) > 1:
        raise ValueError(f"{source} holds pairs of pictures (Winoground) beside other sets: give the files one by one")
    kinds = list(dict.fromkeys(choice.kind for read in reads for choice in read.choices))
    if split not in (*WHOLE, *kinds):
        raise ValueError(f"{source} has no split {split!r}; it has 'all', or one of its kinds: {', '.join(kinds)}")
    choices: list[Choice] = []
    for read in reads:
        chosen = [choice for choice in read.choices if split in (*WHOLE, choice.kind)]
        if chosen:
            choices += _with_paths(_first(chosen, limit, read.paired), read.file, how)
            if read.invalid:
                tell_skipped(INVALID, read.invalid)
    rows: dict[tuple, int] = {}  # picture and box -> row
    numbered = [replace(choice, picture=rows.setdefault((choice.picture, choice.box), len(rows))) for choice in choices]
    return _checked(numbered, [path for path, _ in rows], reads[0].paired, how, str(source))


def _table(source: str, split: str) -> datasets.Dataset | None:
    """The table of a saved data set, parquet or Hub id; None for a source of other files."""
    path = Path(source)
    if source.endswith(".parquet"):
        parts = parquet_parts(source)
    elif path.is_dir():
        parts = saved_parts(path) or (parquet_parts(str(path / "*.parquet")) if any(path.glob("*.parquet")) else {})
    else:
        is_hub_id = re.fullmatch(HUB_ID, source) and not path.exists() and not path.suffix
        parts = loaded_parts(source) if is_hub_id else {}
    if not parts:
        return None
    if split not in parts:
        raise ValueError(f"{source} has no split {split!r}; splits found: {sorted(parts)}")
    return parts[split]()


def _pairs_of_table(table: datasets.Dataset, source: str) -> tuple[list[Choice], list]:
    """Winoground's choices, and its pictures as cells that `datasets.Image` takes."""
    if missing := [name for name in PAIR_COLUMNS if name not in table.column_names]:
        raise ValueError(f"{source} has the columns {table.column_names}, but not {', '.join(missing)}: {EXPECTED}")
    for name in PAIR_COLUMNS[:2]:
        table = table.cast_column(name, datasets.Image(decode=False))
    choices, cells = [], []
    for i, row in enumerate(table):
        choices += choices_of_pair("winoground", (2 * i, 2 * i + 1), (row["caption_0"], row["caption_1"]))
        cells += [row["image_0"], row["image_1"]]
    return choices, cells


def _with_paths(choices: Sequence[Choice], file: Path, how: ReadingOptions) -> list[Choice]:
    """The choices of a file, with the full paths of their pictures.

    Published paths begin in the folder of their authors, such as data/coco/images/1.jpg. So many leading folders are dropped
    that the first pictures are found.
    """
    start = given_folder(file.parent, how.image_folder) if how.image_folder is not None else file.parent
    names = [choice.picture for choice in choices]
    parts = [PureWindowsPath(name).parts for name in names[:PROBED]]
    for dropped in range(max(map(len, parts))):
        shorter = ["/".join(part[dropped:]) for part in parts if len(part) > dropped]
        folder = picture_folder(start, shorter, None)
        if any((folder / name).is_file() for name in shorter):
            break
    else:
        raise ValueError(
            f"{file}: none of its first pictures, such as {names[0]!r}, is in {start} or two folders below. Set image_folder "
            "(--image_folder) to where they lie"
        )
    bounds = Bounds([folder], how.follow_links)
    kept = {name: "/".join(PureWindowsPath(name).parts[dropped:]) for name in names}
    paths = {name: str(bounds.path_of(part, folder).absolute()) for name, part in kept.items()}
    return [replace(choice, picture=paths[choice.picture]) for choice in choices]


def _checked(choices: Sequence[Choice], cells: Sequence, paired: bool, how: ReadingOptions, source: str) -> ChoiceSet:
    """The set without choices whose picture cannot be read; of a pair, both are left out."""
    pictures = datasets.Dataset.from_dict({"image": list(cells)}).cast_column("image", datasets.Image())
    reasons = undecodable(pictures, how.max_megapixels)
    read_pictures_of(how.max_megapixels)
    # What the bootstrap draws: pictures, whatever part of them is shown, or pairs of pictures.
    files = {cell: i for i, cell in enumerate(dict.fromkeys(cells))} if not paired else {}
    units = [i // 2 if paired else files[cells[choice.picture]] for i, choice in enumerate(choices)]
    bad = {unit for unit, choice in zip(units, choices, strict=True) if choice.picture in reasons}
    good = [i for i, unit in enumerate(units) if unit not in bad]
    if reasons:
        message = f"{source}: {len(reasons)} of {len(pictures)} pictures cannot be read: {named(pictures, reasons)}"
        if how.bad_images == "fail":
            raise ValueError(f"{message}. Repair them, or pass bad_images='skip'")
        if not good:
            raise ValueError(f"{message}. No choice is left; is image_folder (--image_folder) where the pictures lie?")
        warnings.warn(f"{message}. Their {len(choices) - len(good)} choices are left out", stacklevel=3)
        tell_skipped(NO_PICTURE, len(choices) - len(good))
    choices = [choices[i] for i in good]
    used = sorted({choice.picture for choice in choices})
    place = {row: i for i, row in enumerate(used)}
    boxes = {choice.picture: choice.box for choice in choices}
    return ChoiceSet(
        pictures=pictures.select(used).with_transform(_images_to_rgb),
        choices=[replace(choice, picture=place[choice.picture]) for choice in choices],
        units=_numbered(units[i] for i in good),
        boxes=[boxes[row] for row in used] if any(boxes.values()) else None,
        paired=paired,
    )


def _first(choices: Sequence[Choice], limit: int | None, paired: bool) -> list[Choice]:
    """The first `limit` choices of each kind, or pairs of choices."""
    taken: Counter[str] = Counter()
    kept = []
    for choice in choices:
        taken[choice.kind] += 1
        if limit is None or taken[choice.kind] <= limit * (2 if paired else 1):
            kept.append(choice)
    return kept


def _numbered(units: Iterable[int]) -> list[int]:
    """The units with numbers from 0 on, in the order of their first choice."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(unit, len(numbers)) for unit in units]


def _images_to_rgb(batch: dict[str, list]) -> dict[str, list]:
    batch["image"] = [to_rgb(cell) for cell in batch["image"]]
    return batch
