"""The report: its numbers, what it shows of prompts and failures, models without prompts, and the page in a browser."""

import base64
import io
import json
import types
import xml.dom.minidom
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from browser import browser_pages
from conftest import COLORS, make_model, make_processor, make_tokenizer
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from mpclip.cli import main as mpclip
from mpclip.report import charts
from mpclip.report.failures import differing, failures
from mpclip.report.pictures import inline
from mpclip.report.prompts import alone, weight_curves

NASTY = "<script>alert('red')</script> & \"a\" {{ square }}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Squares with two captions each; one caption is code, and one stands at two pictures."""
    folder = tmp_path_factory.mktemp("squares")
    with open(folder / "metadata.jsonl", "w") as file:
        for i, color in enumerate(COLORS):
            Image.new("RGB", (40, 30), color).save(folder / f"{i}.png")
            captions = [NASTY if i == 0 else f"a {color} square", "a colour" if i < 2 else f"all {color}"]
            row = {"file_name": f"{i}.png", "split": "validation" if i >= 8 else "test", "captions": captions}
            file.write(json.dumps(row) + "\n")
    return folder


def saved(folder, **kwargs):
    make_model(**kwargs).save_pretrained(folder)
    make_processor(make_tokenizer()).save_pretrained(folder)
    return folder


def report(model, data, out, *extra: str) -> str:
    given = ["--model", str(model), "--data", str(data), "--out", str(out), "--precision", "float32", "--device", "cpu"]
    mpclip(["report", *given, *extra])
    return out.read_text()


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    """The file of a report on a model of three prompts."""
    folder = tmp_path_factory.mktemp("report")
    out = folder / "new" / "report.html"
    report(saved(folder / "three"), data, out, "--fit_split", "validation")
    return out


class Read(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text, self._parts = [], "", []
        self.feed(page)
        self.text = " ".join(" ".join(self._parts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text):
        self._parts.append(text)


# The page


def test_a_page_holds_everything_itself_and_escapes_captions(page):
    read = Read(page.read_text())
    addresses = [a[name] for _, a in read.tags for name in ("src", "href") if name in a]
    assert addresses and all(one.startswith(("data:image/jpeg;base64,", "#")) for one in addresses)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in read.tags}
    assert NASTY in read.text and "<script" not in page.read_text()
    assert all(attributes["alt"].strip() for tag, attributes in read.tags if tag == "img")
    assert page.stat().st_size < 500_000
    sections = [attributes.get("id") for tag, attributes in read.tags if tag == "h2"]
    assert {f"#{name}" for name in sections} == {one for one in addresses if one.startswith("#")} and len(sections) == 7


def test_numbers_are_those_of_eval(page, data, tmp_path):
    model = page.parent.parent / "three"
    given = ["--model", str(model), "--data", str(data), "--split", "test", "--precision", "float32"]
    mpclip(["eval", "retrieval", *given, "--json", str(tmp_path / "retrieval.json")])
    mpclip(["eval", "prompts", *given, "--fit_split", "validation", "--json", str(tmp_path / "prompts.json")])
    retrieval, prompts = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("retrieval", "prompts"))
    text = Read(page.read_text()).text
    for way, title in (("t2i", "Captions search pictures"), ("i2t", "Pictures search captions")):
        recalls = ", ".join(f"recall at {k} {retrieval['metrics'][f'{way}_R@{k}']:.1f}" for k in (1, 5, 10))
        assert f"{title}: {recalls}" in text
    low, high = retrieval["intervals"]["mean_recall"]
    assert f"Mean of the six recalls: {retrieval['metrics']['mean_recall']:.1f} ({low:.1f} to {high:.1f})" in text
    alone_, without = (
        ", ".join(f"{k} APT-{k} {prompts['metrics'][f'{what}_{k}']:.1f}" for k in (1, 2, 3)) for what in ("alone", "without")
    )
    assert f"Mean recall: all {prompts['metrics']['all']:.1f}; alone: {alone_}; without: {without}" in text
    rows = "; ".join(" ".join(f"{value:.2f}" for value in row) for row in prompts["prompts"]["correlation_of_scores"])
    assert f"Do two prompts rank alike?, row by row: {rows}" in text
    weights = ", ".join(f"{w:g} for {k} APT-{k}" for k, w in enumerate(prompts["fit"]["weights"], start=1))
    assert f"The best weights there: {weights}." in text and "split validation, 4 pictures" in text
    assert "8 pictures and 16 captions" in text and "2 captions stand at several pictures" in text
    total = sum(p.numel() for p in make_model().parameters())
    assert f"parameters {total:,}: " in text and "12 numbers, 3 segments of 4: 48 bytes as float32" in text


def test_a_phone_dark_mode_and_print(page, tmp_path):
    background = "getComputedStyle(document.body).backgroundColor"
    with browser_pages() as open_page:
        phone = open_page(page.as_uri(), width=390, height=844, is_mobile=True, device_scale_factor=2)
        phone.assert_fits()
        assert phone.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 8)")
        assert phone.evaluate("document.querySelectorAll('svg').length") > 10
        assert phone.evaluate(background) == "rgb(246, 246, 244)"
        dark = open_page(page.as_uri(), dark=True)
        dark.assert_fits()
        assert dark.evaluate(background) == "rgb(21, 22, 24)"
        dark.emulate_media(media="print")
        assert dark.evaluate(background) == "rgb(255, 255, 255)"
        assert dark.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert len(dark.pdf(format="A4")) > 10_000
        for opened in (phone, dark):
            opened.assert_clean()


# Models without prompts, and what is refused


def test_models_without_prompts_have_a_report(data, tmp_path, monkeypatch):
    single = Read(report(saved(tmp_path / "single", num_prompts=1), data, tmp_path / "single.html", "--limit", "4")).text
    assert "This model reads a text through a single prompt, so there are no segments" in single
    assert "as the model sees it" in single and "(the first 4 pictures alone)" in single
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(text_config=small | {"vocab_size": 384}, vision_config=small | {"image_size": 32, "patch_size": 8})
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    opener = types.SimpleNamespace(from_pretrained=lambda *args, **kwargs: make_processor(make_tokenizer()))
    monkeypatch.setattr("mpclip.encoding.checkpoints.AutoProcessor", opener)
    peer = Read(report(tmp_path / "clip", data, tmp_path / "clip.html", "--no_cache")).text
    assert "This model has no prompts, so there are no segments" in peer
    assert "Maps are drawn of MP-CLIP models alone" in peer and "captions find a wrong picture first" in peer
    with pytest.raises(SystemExit, match=r"--fit_split: .*clip has no prompts whose weights could be fitted"):
        report(tmp_path / "clip", data, tmp_path / "x.html", "--no_cache", "--fit_split", "validation")
    with pytest.raises(SystemExit, match=r"--out .*x\.png: expected a name that ends in \.html"):
        report(tmp_path / "clip", data, tmp_path / "x.png")


# What is shown


def test_failures_are_those_with_the_largest_lead():
    images = normalize(torch.eye(5), dim=1)
    texts = normalize(
        torch.tensor([[1, 0.9, 0, 0, 0], [1, 0.2, 0, 0, 0], [1, 0, 0.4, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 0.3]])
    )
    embeds = {"image_embeds": images, "text_embeds": texts, "caption_image": torch.arange(5)}
    captions = ["a big dog", "a small dog", "two dogs", "a boat", "A boat!"]
    found = failures(embeds, captions, 1, count=5)
    assert (found.captions, found.near) == (2, 2)  # 'A boat!' finds a picture that has the same words
    (one,) = found.shown  # the picture 0 is found by both; once is enough
    assert (one.wanted, one.found, one.rank) == (1, 0, 2)
    assert one.caption == [("a", False), (" ", False), ("small", True), (" ", False), ("dog", False)]
    assert one.found_parts - one.wanted_parts == pytest.approx(0.8 / np.hypot(1, 0.2), abs=1e-6)
    right = {**embeds, "text_embeds": images}
    assert failures(right, captions, 1, count=5).captions == 0


def test_parts_of_scores_sum_to_the_scores():
    generator = torch.Generator().manual_seed(0)
    texts, images = (normalize(torch.randn(6, 12, generator=generator), dim=1) for _ in range(2))
    embeds = {"image_embeds": images, "text_embeds": texts, "caption_image": torch.arange(6)}
    for one in failures(embeds, list("abcdef"), 3, count=6).shown:
        assert one.wanted_parts.sum() == pytest.approx(float(texts[one.wanted] @ images[one.wanted]), abs=1e-6)
        assert one.found_parts.sum() == pytest.approx(float((images @ texts[one.wanted]).max()), abs=1e-6)


def test_words_that_differ():
    marked = differing("A DOG, left of two cats", "the dog is on the right of two cats")
    assert "".join(part for part, _ in marked) == "A DOG, left of two cats"
    assert [part for part, differs in marked if differs] == ["A", "left"]
    assert differing("", "x") == [] and differing("?!", "") == [("?!", False)]


def test_what_each_prompt_finds_alone():
    # Prompt 1 knows pictures 0 and 1, prompt 2 knows 1 and 2.
    image = torch.eye(4)[:, None].repeat(1, 2, 1)  # (4, 2, 4)
    first = torch.tensor([[9, 0, 0, 0], [0, 9, 2, 0], [0, 1, 0, 0.5], [0, 1, 0, 0.5]])
    second = torch.tensor([[0, 1, 0, 0.5], [0, 9, 0, 3], [0, 0, 9, 3], [0, 1, 0, 0.5]])
    text = torch.stack([normalize(first.float(), dim=1), normalize(second.float(), dim=1)], dim=1)  # (4, 2, 4)
    embeds = {"image_embeds": normalize(image.flatten(1), dim=1), "text_embeds": normalize(text.flatten(1), dim=1)}
    embeds["caption_image"] = torch.arange(4)
    found = alone(embeds, np.arange(4), 2, shown=2, disagreeing=3)
    assert found.first.tolist() == [[0, 1], [1, 1], [1, 2], [1, 1]]
    assert found.only == [1, 1]
    assert [(pair.caption, pair.row, pair.right) for pair in found.highest[0]] == [(0, 0, True), (1, 1, True)]
    assert [(pair.caption, pair.row) for pair in found.highest[1]] == [(1, 1), (2, 2)]
    assert found.disagreements == [0, 2] and found.whole.tolist() == [0, 1, 2, 1]


def test_weights_are_varied_on_some_pictures(monkeypatch):
    monkeypatch.setattr("mpclip.report.prompts.WEIGHED", 5)
    generator = torch.Generator().manual_seed(0)
    image, text = (normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (8, 16))
    embeds = {"image_embeds": image, "text_embeds": text, "caption_image": torch.arange(16) // 2}
    curves, pictures = weight_curves(embeds, 2)
    first = {"image_embeds": image[:5], "text_embeds": text[:10], "caption_image": torch.arange(10) // 2}
    assert pictures == 5 and curves == weight_curves(first, 2)[0]


def test_charts_are_whole_and_escape_names():
    name = '<b>"&'
    drawn = [
        charts.intervals([(name, 50.0, [45.0, 61.0]), (name, None, None), ("flat", 100.0, None)], name, reference=70.0),
        charts.intervals([("one", 0.0, [0.0, 0.0])], "one"),
        charts.matrix([[1.0, -0.25], [float("nan"), 1.0]], name),
        charts.matrix(np.eye(16).tolist(), "many"),
        charts.pairs_of_bars([name, "b"], [0.2, -0.1], [0.1, 0.0], name),
        charts.pairs_of_bars(["a"], [0.0], [0.0], "nothing"),
        charts.curve([0.0, 1.0, 2.0], [50.0, 50.0, 50.0], (50, 50), name),
    ]
    for svg in drawn:
        root = xml.dom.minidom.parseString(str(svg)).documentElement
        width = float(root.getAttribute("viewBox").split()[2])
        for tag, attribute in (("text", "x"), ("circle", "cx"), ("line", "x2")):
            places = [float(one.getAttribute(attribute)) for one in root.getElementsByTagName(tag)]
            assert all(0 <= place <= width for place in places), (tag, places)
        assert root.getElementsByTagName("title")[0].firstChild.data
    marks = xml.dom.minidom.parseString(str(drawn[0])).getElementsByTagName("circle")
    assert float(marks[0].getAttribute("cx")) < float(marks[1].getAttribute("cx"))


def test_pictures_are_small_and_any_mode():
    for image in (Image.new("LA", (900, 30)), Image.new("CMYK", (30, 900)), np.full((50, 20, 3), 1.2)):
        source = inline(image, 100)
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as read:
            assert read.mode == "RGB" and max(read.size) <= 100
