"""The page: content and page.html become one HTML file."""

from pathlib import Path

import jinja2

from mpclip.files import write_bytes


def write_report(content: dict, path: str | Path) -> int:
    """Write the report. Captions, names and paths are escaped.

    Args:
        content: the values of page.html.
        path: the file to write; its folder is made.

    Returns:
        Its size in bytes.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"large": large, "duration": duration}
    page = (
        environment.get_template("page.html").render(content).encode("utf-8", errors="replace")
    )  # captions may hold halves of signs
    write_bytes(path, page)
    return len(page)


def large(number: float) -> str:
    """A count as people read it: 1,234 or 85.3 million."""
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"


def duration(milliseconds: float) -> str:
    """A time in milliseconds or seconds, with three digits."""
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"
