"""The documents say what is there: links lead somewhere, the results page is that of the JSON files, recipes have results."""

import re
from pathlib import Path

import pytest

from eval import report

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/results.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_results_page_is_written_from_the_measurements(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    report.main(["--out", str(tmp_path / "results.md")])
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs/results.md").read_text(), "run `python -m eval report`"
    with pytest.raises(SystemExit, match="No measurement"):
        report.main(["--results", str(tmp_path / "nowhere")])


def test_readme_shows_the_measured_numbers():
    import json

    readme = (ROOT / "README.md").read_text()
    demo = json.loads((ROOT / "docs/results/openmoji_demo.json").read_text())
    flickr = json.loads((ROOT / "docs/results/flickr8k_smollm2.json").read_text())
    for measured in (demo["multi_prompt"], demo["single_prompt"], flickr):
        recalls = [*measured["text_to_image"].values(), *measured["image_to_text"].values()]
        assert " | ".join(f"{value:.1f}" for value in recalls) in readme
