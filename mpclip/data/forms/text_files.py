"""The text of a file. Spreadsheets and editors write encodings that say themselves by a byte order mark; others are refused."""

import codecs
from pathlib import Path

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(file: Path) -> str:
    """The text of a file in UTF-8 or, if it begins with a byte order mark, UTF-16.

    Raises:
        ValueError: another encoding; the message has the file and the line.
    """
    content = file.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        begin = content.rfind(b"\n", 0, error.start) + 1
        around = content[max(begin, error.start - 20) : error.start + 20].splitlines()[0].decode("latin-1")
        raise ValueError(
            f"{file}, line {line}: not {encoding.upper()}, found the byte 0x{content[error.start]:02x} in {around!r}. "
            "Save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{file} holds zero bytes, as UTF-16 does that lacks its byte order mark. Save the file as UTF-8")
    return text
