"""The layout in which CLIP_benchmark exports data sets as webdataset shards (`clip_benchmark_export_wds`, wds_* on the Hub).

dataset_type.txt        "retrieval": each text has a caption per line. Otherwise the set is for classification
test/nshards.txt        the number of shards
test/0.tar, 1.tar ...   s0000000.webp and s0000000.txt, ...
"""

from pathlib import Path

COUNT, KIND = "nshards.txt", "dataset_type.txt"


def shards_by_split(folder: Path) -> dict[str, list[Path]]:
    """The shards of a set, or of one of its splits.

    Args:
        folder: with the folders of splits, or the folder of a split.

    Returns:
        Name of a split's folder -> its shards in the order of their numbers; {} for another layout.

    Raises:
        FileNotFoundError: a shard is missing. The set is then incomplete, and its recall would be that of fewer pictures.
        ValueError: nshards.txt holds no number.
    """
    parts = [folder] if (folder / COUNT).is_file() else sorted(file.parent for file in folder.glob(f"*/{COUNT}"))
    return {part.absolute().name: _shards(part) for part in parts}


def _shards(part: Path) -> list[Path]:
    told = (part / COUNT).read_text(encoding="utf-8").strip()
    if not told.isdecimal() or int(told) < 1:
        raise ValueError(f"{part / COUNT} holds {told[:40]!r}: expected the number of shards, 1 or more")
    shards = [part / f"{number}.tar" for number in range(int(told))]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(
            f"{part} lacks {len(missing)} of the {told} shards that {COUNT} counts: {', '.join(missing[:10])}. Download them"
        )
    return shards


def caption_per_line(shard: Path) -> bool:
    """Whether the texts of a shard have a caption per line: it lies in a set, or a split of one, that says "retrieval"."""
    files = [folder / KIND for folder in (shard.absolute().parent, shard.absolute().parent.parent)]
    return any(file.is_file() and file.read_text(encoding="utf-8").strip().lower() == "retrieval" for file in files)
