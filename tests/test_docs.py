"""The documents say what is there: links lead somewhere, the results page is that of the JSON files, recipes have results."""

import json
import re
from pathlib import Path

import pytest
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image

from benchmarks import results_page as report

ROOT = Path(__file__).parent.parent


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/results.md", "docs/cost.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_results_page_is_written_from_the_measurements(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    report.main(["--out", str(tmp_path / "results.md")])
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs/results.md").read_text(), "run benchmarks.results_page"
    with pytest.raises(SystemExit, match="No measurement"):
        report.main(["--results", str(tmp_path / "nowhere")])


def test_findings_take_their_numbers_from_the_measurements():
    rows = [{"system": "six", "split": "test", "mean": {"mean_recall": 51.04}}]
    differences = [{"system": "six", "baseline": "one", "split": "test", "metric": "mean_recall", "mean_difference": 2.06}]
    differences[0]["interval"] = [1.5, 2.71]
    differences += [differences[0] | {"split": "all", "metric": "negated_R@1", "mean_difference": -3.0, "interval": None}]
    results = {"photos": {"reported": "test", "metrics": ["mean_recall"], "summary": rows, "comparisons": differences}}
    told = report._fill_in("{mean photos six mean_recall}, {difference photos six one test}", results)
    assert told == "51.0, +2.1 (+1.5 to +2.7)"
    assert report._fill_in("{difference photos six one all negated_R@1}", results) == "-3.0"
    places = ("{mean photos six spearman}", "{mean photos six mean_recall train}", "{difference photos one six}")
    for place in (*places, "{mean pictures six mean_recall}"):
        with pytest.raises(SystemExit, match=f"{place}, which was not measured: expected .*photos"):
            report._fill_in(place, results)


def test_readme_shows_the_measured_numbers():
    readme = (ROOT / "README.md").read_text()
    demo = json.loads((ROOT / "docs/results/openmoji_demo.json").read_text())
    flickr = [json.loads((ROOT / f"docs/results/flickr8k_{name}.json").read_text()) for name in ("smollm2", "best")]
    for measured in (demo["multi_prompt"], demo["single_prompt"], *flickr):
        recalls = [*measured["text_to_image"].values(), *measured["image_to_text"].values()]
        assert " | ".join(f"{value:.1f}" for value in recalls) in readme
    systems = ("single_prompt", "mean_pooling", "multi_prompt_one_query", "mean_pooling_six_queries", "multi_prompt")
    for name in ("flickr8k_systems", "flickr8k_gemma3", "openmoji_systems"):
        summary = json.loads((ROOT / f"docs/results/{name}.json").read_text())["summary"]
        of = {row["system"]: row for row in summary if row["split"] == "all"}
        assert " | ".join(report._spread(of[system], "mean_recall") for system in systems) in readme


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
)
def test_snippets_are_python(page):
    for snippet in snippets(page):
        compile(snippet, page, "exec")


def test_snippets_of_the_readme_run(tmp_path, monkeypatch):
    """Those that use the demo's model, on a tiny one of as many prompts."""
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer()
    make_model(num_prompts=6, tokenizer=tokenizer).save_pretrained("runs/demo/multi_prompt")
    make_processor(tokenizer).save_pretrained("runs/demo/multi_prompt")
    picture = Image.new("RGB", (50, 40), "red")
    picture.save("photo.jpg")
    run = [snippet for snippet in snippets("README.md") if "runs/demo/multi_prompt" in snippet]
    assert len(run) == 2
    names = {"picture": picture, "frames": [picture, picture]}
    for snippet in run:
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["probabilities"].shape == (1, 2) and names["video"].shape == (1, 12)
    assert names["scores"].shape == (2,) and names["short"].shape == (1, 4)
