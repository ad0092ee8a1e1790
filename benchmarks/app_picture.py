"""Takes the picture of the app that docs/app.md shows.

    python -m benchmarks.app_picture --model runs/demo/multi_prompt runs/demo/single_prompt --images runs/demo/scenes \\
        --split test --png docs/app.png

It starts the app, searches by a text, and asks for the maps of the first picture. It needs playwright and Chromium.
"""

import io
import shutil
from pathlib import Path

import PIL.Image

from benchmarks.record import command_parser
from mpclip.command import start
from mpclip.files import write_bytes

WIDTH, HEIGHT = 1180, 900  # pixels of the window; the picture has as many as the page is high
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 600_000  # milliseconds


def main(argv: list[str] | None = None) -> None:
    """The command.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    parser = command_parser("benchmarks.app_picture", __doc__)
    parser.add_argument("--model", nargs="+", required=True, help="one or two checkpoints")
    parser.add_argument("--images", required=True, help="as of mpclip app")
    parser.add_argument("--split", help="as of mpclip app")
    parser.add_argument("--query", default="a small dog on a pink background", help="text to search by (default: %(default)s)")
    parser.add_argument("--png", type=Path, required=True, metavar="OUT.png", help="file to write")
    options = parser.parse_args(argv)

    from mpclip.app.collection import open_collections
    from mpclip.app.page import build_page
    from mpclip.app.server import serve

    page = build_page(open_collections(options.model, options.images, options.split))
    address = serve(page, block=False)
    try:
        taken = take(address, options.query)
    finally:
        page.close(verbose=False)
    write_bytes(options.png, taken)
    print(f"written: {options.png} ({len(taken) / 1024:.0f} kB)")


def take(address: str, query: str) -> bytes:
    """A PNG of 256 colours: the page after a search, with the maps of the first picture.

    Args:
        address: of a running app.
        query: text to search by.

    Raises:
        ImportError: playwright is not installed. FileNotFoundError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise FileNotFoundError(f"no browser: install one of {', '.join(BROWSERS)}")
    with sync_playwright() as started, started.chromium.launch(executable_path=program, args=["--no-sandbox"]) as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.get_by_label("Pictures to show").first.fill("4")
        page.get_by_label("What to find").fill(query)
        page.get_by_role("button", name="Prompts of").first.click()
        page.get_by_role("button", name="Search", exact=True).click()
        page.locator(".hits").first.get_by_role("button", name="Thumbnail 1 of").click()
        page.locator(".maps").get_by_role("button", name="Thumbnail 1 of").wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until lazily loaded pictures are drawn
        shown = PIL.Image.open(io.BytesIO(page.screenshot(full_page=True)))
    shown.convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE).save(written := io.BytesIO(), "PNG", optimize=True)
    return written.getvalue()


if __name__ == "__main__":
    start(main)
