"""JSON that names pictures: a row per line (metadata.jsonl), one list of rows, or a mapping of pictures to captions.

{"file_name": "1.jpg", "captions": ["a red car", "a car on a street"]}
"""

import json
from pathlib import Path
from typing import Any

from mpclip.data.forms.listing import Listing

EXPECTED = 'expected one object per line, such as {"file_name": "1.jpg", "captions": ["a car"]}'


def read_json_lines(file: Path, text: str) -> Listing:
    """The rows of a file with an object per line. A file that is one JSON list of objects is read too.

    Raises:
        ValueError: something in it is not JSON, or no object.
    """
    if text.lstrip().startswith("["):
        return read_json_list(file, parse_json(file, text))
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error}); {EXPECTED}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {number}: found {str(record)[:80]!r}; {EXPECTED}")
        records.append(record)
    return Listing.of_records(file, records)


def read_json_list(file: Path, records: list) -> Listing:
    """The rows of a JSON list of objects.

    Raises:
        ValueError: an element is no object.
    """
    for i, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(f"{file}, row {i}: found {str(record)[:80]!r}, expected an object with file_name and captions")
    return Listing.of_records(file, records)


def read_json_mapping(file: Path, captions: dict[str, Any]) -> Listing:
    """The rows of a mapping such as {"1.jpg": ["a red car", "a car on a street"]}."""
    return Listing(file, {"file_name": list(captions), "captions": list(captions.values())})


def parse_json(file: Path, text: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is not JSON; the message has the line, where there is one to blame.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: not JSON ({error})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise ValueError(f"{file}: not JSON that can be read ({error})") from error
