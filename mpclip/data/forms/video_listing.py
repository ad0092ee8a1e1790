"""Files that name video clips and their captions: MSR-VTT and MSVD as they are published, and tables.

    MSR-VTT   MSRVTT_data.json   {"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}
              MSRVTT_JSFUSION_test.csv   key,vid_key,video_id,sentence: the 1,000 pairs of the split 1kA
              MSRVTT_train.9k.csv   video_id: which of the clips of the JSON are trained on
    MSVD      train_list.txt, val_list.txt, test_list.txt   an id per line
              captions_msvd.json   {id: [captions]}

A clip is named by its id; its file is found below the folder of the data set, with any ending that videos have.
"""

from pathlib import Path
from typing import Any

from mpclip.data.forms.delimited import read_delimited
from mpclip.data.forms.json_rows import parse_json, read_json_lines, read_json_list, read_json_mapping
from mpclip.data.forms.listing import Listing
from mpclip.data.forms.text_files import read_text
from mpclip.data.reading import ReadingOptions
from mpclip.data.splits import split_of_file

VIDEO_COLUMNS = ("video", "video_path", "video_id", "file_name", "filename", "filepath", "file_path", "path", "clip")
SENTENCE = "sentence"  # column of captions in MSR-VTT's csv
TABLES = ("metadata.jsonl", "metadata.csv")
SPLITS = {"validate": "validation", "val": "validation"}


def video_listing(source: Path, split: str, reading: ReadingOptions) -> Listing:
    """The rows of one split of a source of clips.

    Args:
        source: a folder with one of the forms above or a metadata.jsonl or .csv; or one such file.
        split: name of the split.
        reading: names the column of captions.

    Returns:
        A listing with a column of `VIDEO_COLUMNS` and captions. With a column `split` it has the rows of all splits.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: the files are of none of these forms, or lack the split.
    """
    if source.is_file():
        return _table(source, reading)
    if not source.is_dir():
        raise FileNotFoundError(f"nothing at {source}: expected a folder of videos with a table of captions, or such a table")
    if table := next((source / name for name in TABLES if (source / name).is_file()), None):
        return _table(table, reading)
    files = [file for file in sorted(source.glob("*")) if file.is_file()]
    if pickles := [file.name for file in files if file.suffix == ".pkl"]:
        files = [file for file in files if file.suffix != ".pkl"]
    lists = {split_of_file(file.name): file for file in files if file.name.endswith("_list.txt")}
    contents = {file: parse_json(file, read_text(file)) for file in files if file.suffix == ".json"}
    told = next(((file, content) for file, content in contents.items() if is_msrvtt(content)), None)
    tables = [file for file in files if file.suffix == ".csv"]
    if lists and (mapping := next(((f, c) for f, c in contents.items() if _is_mapping(c)), None)):
        if split not in lists:
            raise ValueError(f"{source} has no split {split!r}; its lists are {', '.join(f.name for f in lists.values())}")
        return read_msvd(lists[split], *mapping)
    if of_split := [file for file in tables if split_of_file(file) == split]:
        if len(of_split) > 1:
            raise ValueError(
                f"{source} has several tables of the split {split!r}: {', '.join(f.name for f in of_split)}. Remove all but "
                "one of them, or give one as the data set"
            )
        table = _table(of_split[0], reading)
        return table if SENTENCE in table.columns or told is None else _chosen(table, *told)
    if told:
        return read_msrvtt(*told)
    hint = f" ({', '.join(pickles)} is a pickle, which runs code when it is read: convert it to JSON)" if pickles else ""
    raise ValueError(
        f"{source} has neither {' nor '.join(TABLES)}, nor MSR-VTT's MSRVTT_data.json or csv, nor MSVD's lists with a JSON of "
        f"captions{hint}"
    )


def is_msrvtt(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(part), list) for part in ("videos", "sentences"))


def read_msrvtt(file: Path, content: dict) -> Listing:
    """A row per clip of MSR-VTT's JSON, with all its captions and its `split`."""
    captions: dict[str, list[str]] = {}
    for sentence in content["sentences"]:
        captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
    return Listing.of_records(
        file,
        [
            {
                "video_id": video["video_id"],
                "captions": captions.get(video["video_id"], []),
                "split": SPLITS.get(video.get("split"), video.get("split")),
            }
            for video in content["videos"]
        ],
    )


def read_msvd(file: Path, captions_file: Path, captions: dict[str, list[str]]) -> Listing:
    """A row per id of a list, with its captions."""
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if unknown := [name for name in names if name not in captions]:
        raise ValueError(
            f"{captions_file.name} has no captions of {len(unknown)} of the ids in {file}: {', '.join(unknown[:3])}"
        )
    return Listing(file, {"video_id": names, "captions": [captions[name] for name in names]})


def _chosen(ids: Listing, file: Path, content: dict) -> Listing:
    """The rows of MSR-VTT's JSON whose ids a table has."""
    rows = read_msrvtt(file, content).columns
    place = {name: i for i, name in enumerate(rows["video_id"])}
    wanted = ids.columns.get("video_id", [])
    if unknown := [name for name in wanted if name not in place]:
        raise ValueError(f"{file} has no clip {unknown[0]!r}, which {ids.file} names")
    return Listing(ids.file, {name: [rows[name][place[one]] for one in wanted] for name in ("video_id", "captions")})


def _table(file: Path, reading: ReadingOptions) -> Listing:
    text, ending = read_text(file), file.suffix.lower()
    if ending == ".jsonl":
        return read_json_lines(file, text)
    if ending != ".json":
        return read_delimited(file, text, reading)
    content = parse_json(file, text)
    if is_msrvtt(content):
        return read_msrvtt(file, content)
    if isinstance(content, list):
        return read_json_list(file, content)
    if _is_mapping(content):
        return read_json_mapping(file, content)
    raise ValueError(
        f"{file}: found {str(content)[:80]!r}. Expected a list of objects with a video and its captions, a mapping of videos "
        'to captions, or MSR-VTT\'s {"videos": ..., "sentences": ...}'
    )


def _is_mapping(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(captions, str | list) for captions in content.values())
