"""The app's page: what a person does in a browser, and what the server refuses."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from browser import browser_pages
from conftest import make_model, make_processor, make_tokenizer
from search_fixtures import PICTURES, K, add_picture

pytest.importorskip("gradio", reason='needs gradio: pip install "mpclip[app]"')

from mpclip.app.collection import open_collections
from mpclip.app.page import build_page
from mpclip.app.server import MOST_WAITING, is_loopback, serve

pytest_plugins = ["search_fixtures"]
CAPTIONS = [f"photo {i} <b>of</b> *a* street" for i in range(PICTURES)]
PATIENCE = 120_000  # milliseconds, on a machine that is busy


@pytest.fixture(scope="module")
def photos_with_captions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for i, caption in enumerate(CAPTIONS):
        add_picture(folder / f"{i}.png", i)
        rows.append({"file_name": f"{i}.png", "split": "test", "captions": [caption]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def address(model, photos_with_captions, tmp_path_factory):
    """A running app with two models, of which one has a single prompt."""
    single = tmp_path_factory.mktemp("models") / "single"
    tokenizer = make_tokenizer()
    make_model(num_prompts=1, tokenizer=tokenizer).save_pretrained(single)
    make_processor(tokenizer).save_pretrained(single)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        page = build_page(open_collections([model, str(single)], str(photos_with_captions), "test", "float32"))
        yield serve(page, block=False)
        page.close(verbose=False)


def join(address: str, **given) -> httpx.Response:
    """Asks for a search as the page does, with the values that its controls begin with but for those that are given."""
    config = httpx.get(f"{address}config").json()
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    (search,) = [one for one in config["dependencies"] if "submit" in [event for _, event in one["targets"]]]
    names = ["text", "picture", "exclude", *search["inputs"][3:]]
    data = [given.get(name, values[i]) for name, i in zip(names, search["inputs"], strict=True)]
    return httpx.post(f"{address}gradio_api/queue/join", json={"data": data, "fn_index": search["id"], "session_hash": "mine"})


def search(address: str, **given) -> dict:
    """The message with the answer to `join`."""
    assert join(address, **given).status_code == 200
    with httpx.stream("GET", f"{address}gradio_api/queue/data?session_hash=mine", timeout=PATIENCE / 1000) as answer:
        for line in answer.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


# What is refused --------------------------------------------------------------------------------------------------


def test_no_file_of_the_machine_is_handed_out(address, photos_with_captions):
    beside = [photos_with_captions / "0.png", photos_with_captions / "metadata.jsonl", Path("pyproject.toml").resolve()]
    for path in ("/etc/passwd", "../../../../../../etc/passwd", "pyproject.toml", *beside):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/"):
            assert httpx.get(f"{address}{route}{path}").status_code in (403, 404), (route, path)
    forged = {"path": str(beside[0]), "meta": {"_type": "gradio.FileData"}}
    assert not search(address, picture=forged)["success"]
    shown = search(address, text="a street")
    assert shown["success"]
    thumbnail = shown["output"]["data"][3]["value"][0]["image"]["url"]  # what the page shows is handed out
    assert httpx.get(thumbnail).headers["content-type"] == "image/webp"


class Elsewhere(BaseHTTPRequestHandler):
    """Another machine, which nobody shall ask for anything."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    do_HEAD = do_GET


def test_no_other_machine_is_asked(address):
    other = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    there = f"http://127.0.0.1:{other.server_port}/picture.png"
    try:
        assert httpx.get(f"{address}gradio_api/file={there}").status_code == 403
        assert httpx.get(f"{address}gradio_api/proxy={there}").status_code >= 400
        assert join(address, picture={"path": there, "meta": {"_type": "gradio.FileData"}}).status_code == 403
        assert not Elsewhere.asked
    finally:
        other.shutdown()
        other.server_close()


def test_names_of_other_machines_do_not_lead_here(address):
    assert httpx.get(address, headers={"Host": "localhost:7860"}).status_code == 200
    assert httpx.get(address, headers={"Host": "another.example"}).status_code == 400
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback(None)


class Unlaunched:
    """A page that only notes how it would be served."""

    def queue(self, **options):
        self.options = options

    def launch(self, **options):
        self.options |= options
        return None, "http://127.0.0.1:7860/", None


def test_a_host_for_everyone_is_warned_of(caplog):
    for host, warned, layers in (("127.0.0.1", False, 2), ("0.0.0.0", True, 1), (None, False, 1)):
        caplog.clear()
        page = Unlaunched()
        serve(page, host, block=False)
        assert ("There is no password" in caplog.text) == warned
        assert len(page.options["app_kwargs"]["middleware"]) == layers
        assert page.options["share"] is False and page.options["max_size"] == MOST_WAITING


def test_large_uploads_are_refused(address):
    sent = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", bytes(17 * 2**20))})
    assert sent.status_code == 413


def test_errors_are_told_in_words(address):
    mistakes = [({"text": " "}, "nothing to look for yet"), ({"text": "<b>", "exclude": "<b>"}, "&lt;b&gt;")]
    for given, told in mistakes:
        message = search(address, **given)
        assert not message["success"] and told in message["output"]["error"] and "Traceback" not in json.dumps(message)


# A person ---------------------------------------------------------------------------------------------------------


def test_a_person_searches_looks_and_classifies(address, photos_with_captions, tmp_path):
    with browser_pages() as open_page:
        page = open_page(address)
        page.set_default_timeout(PATIENCE)
        found, maps = page.locator(".hits"), page.locator(".maps")

        def names(gallery) -> list[str]:
            """What is read aloud of the pictures that are shown."""
            return [picture.get_attribute("alt") for picture in gallery.locator("button > img").all()]

        # The keyboard alone: search, then go to the first picture and see its maps.
        page.get_by_label("What to find").fill("a street")
        page.get_by_label("And not").fill("a dog")
        page.keyboard.press("Enter")
        for gallery in found.all():
            gallery.get_by_role("button", name=f"Thumbnail {PICTURES} of {PICTURES}").wait_for()
            assert [name.split(" · ")[0] for name in names(gallery)] == [str(rank) for rank in range(1, PICTURES + 1)]
            assert {name.split(" · ")[2] for name in names(gallery)} == set(CAPTIONS)  # as they are, not as HTML
        before = names(found.first)
        found.first.get_by_role("button", name="Thumbnail 1 of").focus()
        page.keyboard.press("Enter")
        maps.get_by_role("button", name=f"Thumbnail {K + 2} of {K + 2}").wait_for()
        assert "“a street” and this picture" in names(maps)[0]

        # A slider: the first prompt alone gives other scores, and the maps, which were of the old answer, are gone.
        page.get_by_role("button", name="Prompts of model").click()
        page.get_by_role("slider", name="Prompts used").focus()
        for _ in range(K - 1):
            page.keyboard.press("ArrowLeft")
        page.get_by_role("button", name="Search", exact=True).click()
        maps.wait_for(state="hidden")
        assert names(found.first) != before

        # A picture as the query finds itself.
        page.locator("input[type=file]").first.set_input_files(photos_with_captions / "3.png")
        page.get_by_label("What to find").fill("")
        page.get_by_label("And not").fill("")
        page.get_by_role("button", name="Remove").or_(page.get_by_role("button", name="Clear")).first.wait_for()
        page.get_by_role("button", name="Search", exact=True).click()
        page.get_by_alt_text("1 · 1.000 · photo 3").first.wait_for()

        # Mistakes are told.
        page.get_by_role("tab", name="Classify").click()
        page.get_by_label("Classes").fill("a cat")
        page.get_by_role("button", name="Classify").click()
        page.get_by_text("1 class names; expected 2 to 100").wait_for()
        (tmp_path / "text.png").write_text("no picture")
        page.get_by_label("Classes").fill("a cat, a dog")
        page.locator("input[type=file]").last.set_input_files(tmp_path / "text.png")
        page.get_by_role("button", name="Classify").click()
        page.get_by_text("not a whole picture").wait_for()

        page.set_viewport_size({"width": 390, "height": 844})
        page.assert_fits()
        page.assert_clean()
