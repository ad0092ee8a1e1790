"""The documents say what is there: links lead somewhere, pages are those of the JSON files, cited tests and recipes exist."""

import json
import re
import shutil
from pathlib import Path

import pytest
from document_snippets import make_models, snippets, use_towers

from benchmarks import options_page
from benchmarks import results_page as report
from benchmarks import results_tables as tables
from eval.tasks.retrieval import recalls_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/results"
PAGES = ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md")))]
PAGES += [str(page.relative_to(ROOT)) for folder in (RESULTS, ROOT / "docs/evaluation") for page in sorted(folder.glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page end in."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page):
    for file, name in re.findall(r"`(?:(tests/\w+\.py)::)?(test_\w+)`", (ROOT / page).read_text()):
        files = [ROOT / file] if file else (ROOT / "tests").glob("test_*.py")
        assert any(f"def {name}(" in one.read_text() for one in files), name


def test_results_pages_are_written_from_the_measurements():
    made = report.pages(RESULTS)
    assert set(made) == {RESULTS.with_suffix(".md"), *RESULTS.glob("*.md")}
    for file, text in made.items():
        assert file.read_text() == text, f"{file.name}: run python -m benchmarks.results_page"


def test_the_command_writes_pages_beside_the_measurements(tmp_path):
    folder = tmp_path / "docs/results"
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns("*.png"))
    written = [folder.with_suffix(".md"), *folder.glob("*.md")]
    for file in written[1:]:
        file.unlink()
    report.main(["--results", str(folder)])
    assert [file.read_text() for file in written] == [(ROOT / file.relative_to(tmp_path)).read_text() for file in written]
    with pytest.raises(SystemExit, match="No measurement"):
        report.main(["--results", str(tmp_path / "nowhere")])


def test_every_measurement_is_shown():
    """Each JSON file has a page and a line of the index, each system of it a row on such a page."""
    index = RESULTS.with_suffix(".md").read_text()
    pages = [page.read_text() for page in RESULTS.glob("*.md")]
    for file in RESULTS.glob("*.json"):
        link = f"]({file.name})"
        shown = [page for page in pages if link in page]
        assert shown and f"](results/{file.name})" in index, file.name
        for system in json.loads(file.read_text()).get("options", ()):
            assert any(f"| {tables.words(system)} | " in page for page in shown), (file.name, system)


def test_overrides_are_what_systems_of_a_result_do_otherwise():
    for file in RESULTS.glob("*.json"):
        result = json.loads(file.read_text())
        setting = {}
        for system, options in result.get("options", {}).items():
            changed = result["overrides"][system]
            assert changed.items() <= options.items()
            for name in options.keys() - changed.keys():
                assert setting.setdefault(name, options[name]) == options[name], (file.name, system, name)


def test_recipes_of_the_search_are_cited():
    told = "".join(page.read_text() for page in [ROOT / "README.md", *(RESULTS / "findings").glob("*.md")])
    for recipe in (ROOT / "configs/search").glob("*.yaml"):
        assert f"configs/search/{recipe.name}" in told, f"{recipe.name}: no document needs it; its overrides are in the JSON"


def test_findings_take_their_numbers_from_the_measurements():
    rows = [{"system": "six", "split": "test", "mean": {"mean_recall": 51.04}}]
    differences = [{"system": "six", "baseline": "one", "split": "test", "metric": "mean_recall", "mean_difference": 2.06}]
    differences[0]["interval"] = [1.5, 2.71]
    differences += [differences[0] | {"split": "all", "metric": "negated_R@1", "mean_difference": -3.0, "interval": None}]
    photos = {"reported": "test", "metrics": ["mean_recall"], "summary": rows, "comparisons": differences}
    photos |= {"rows": [{"system": "six", "seed": seed, "metrics": {"train_seconds": s}} for seed, s in enumerate((9, 2, 1))]}
    results = {"photos": photos, "alone": {"low": 3.21, "change": {"mean": 1.0, "interval_95": [-1.0, 3.0]}}}
    told = report.fill_in("{mean photos six mean_recall}, {difference photos six\none test}", results)
    assert told == "51.0, +2.1 (+1.5 to +2.7)"
    assert report.fill_in("{difference photos six one all negated_R@1}", results) == "-3.0"
    assert report.fill_in("{seconds photos six}, {value alone low}", results) == "2, 3.2"
    assert report.fill_in("{value alone change}", results) == "+1.0 (-1.0 to +3.0)"
    rows.append({"system": "six", "split": "all", "mean": {"mean_recall": 60.0}})  # with several splits the mean over them
    assert report.fill_in("[APT-{i}] {mean photos six mean_recall}", results) == "[APT-{i}] 60.0"
    places = ("{mean photos six spearman}", "{mean photos six mean_recall train}", "{difference photos one six}")
    for place in (*places, "{mean pictures six mean_recall}", "{mean photos}", "{value alone high}"):
        with pytest.raises(SystemExit, match=f"{place}, which was not measured .*: expected .*photos"):
            report.fill_in(place, results)
    with pytest.raises(SystemExit, match=r"\{median photos six\} is no place of a page: expected one of mean, diff"):
        report.fill_in("{median photos six}", results)


def lines_of_tables(page: Path) -> list[list[str]]:
    """The numbers of each row and of each column of a page's tables, such as "73.0" or "50.2 ± 0.6"."""
    number = re.compile(r"\d+\.\d(?: ± \d+\.\d)?")
    lines = []
    for table in re.findall(r"(?:^\|.*\|\n)+", page.read_text(), flags=re.MULTILINE):
        rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
        lines += [[cell for cell in line if number.fullmatch(cell)] for line in (*rows, *zip(*rows, strict=True))]
    return [line for line in lines if line]


def in_order(few: list[str], many: list[str]) -> bool:
    """Whether `few` is what remains of `many` when some are left out."""
    left = iter(many)
    return all(one in left for one in few)


def test_readme_shows_the_measured_numbers():
    """Rows may leave out metrics or systems and tables may be turned; each number is that of the JSON, in its place."""
    lines, told = lines_of_tables(ROOT / "README.md"), set()

    def show(measured: list[str], least: int) -> None:
        found = [line for line in lines if len(line) >= least and in_order(line, measured)]
        assert found, f"README.md has no row of {measured}"
        told.update(*found)

    timed = json.loads((ROOT / "docs/cost/demo.json").read_text())
    assert f"`make demo` took {timed['seconds'] / 60:.1f} minutes" in (ROOT / "README.md").read_text()
    fast = json.loads((ROOT / "docs/cost/demo_bfloat16.json").read_text())
    told_of_fast = f"and {fast['seconds'] / 60:.1f} in bfloat16"
    assert told_of_fast in (ROOT / "README.md").read_text()
    demo = json.loads((RESULTS / "openmoji_demo.json").read_text())
    flickr = [json.loads((RESULTS / f"flickr8k_{name}.json").read_text()) for name in ("smollm2", "best")]
    for measured in (demo["multi_prompt"], demo["single_prompt"], *flickr):
        recalls = [*measured["text_to_image"].values(), *measured["image_to_text"].values(), measured["mean_recall"]]
        show([f"{value:.1f}" for value in recalls], least=2)
    solved, _ = recalls_of(json.loads((RESULTS / "evaluation/retrieval.flickr8k/closed_form.json").read_text()))
    show([f"{value:.1f}" for way in solved.values() for value in way.values()], least=2)
    systems = ["single_prompt", "mean_pooling", "multi_prompt_one_query", "mean_pooling_six_queries", "multi_prompt"]
    for name in ("flickr8k_systems", "flickr8k_gemma3", "openmoji_systems"):
        rows = tables.rows_of(json.loads((RESULTS / f"{name}.json").read_text()), "all", systems)
        show([tables.spread(row, "mean_recall") for row in rows], least=3)
    pages = [line for page in (ROOT / "docs").rglob("*.md") for line in lines_of_tables(page)]
    assert {number for line in lines for number in line} <= told.union(*pages), "README.md shows what was not measured"


def test_the_questions_cite_measured_numbers():
    told = set(re.findall(r"(?<![-\w.])\d+\.\d+", (ROOT / "docs/faq.md").read_text()))
    measured = {number for page in RESULTS.glob("*.md") for number in re.findall(r"\d+\.\d+", page.read_text())}
    assert told and told <= measured


@pytest.mark.parametrize("page", PAGES)
def test_snippets_are_python(page):
    for snippet in snippets(page):
        compile(snippet, page, "exec")


def test_every_snippet_of_the_readme_runs(tmp_path, monkeypatch):
    """As they stand, in one folder; the demo's model and the pretrained towers are tiny ones."""
    monkeypatch.chdir(tmp_path)
    make_models(tmp_path)
    use_towers(tmp_path, monkeypatch)
    found = []
    for snippet in snippets("README.md"):
        names: dict = {}
        exec(compile(snippet, "README.md", "exec"), names)
        found.append(names)
    use, sentences, training = (
        next(names for names in found if name in names) for name in ("probabilities", "scores", "trainer")
    )
    assert use["probabilities"].shape == (1, 2) and use["probabilities"].sum() == pytest.approx(1)
    assert sentences["scores"].shape == (1, 1) and sentences["short"].shape == (1, 4)
    recalls = [entry["eval_mean_recall"] for entry in training["trainer"].state.log_history if "eval_mean_recall" in entry]
    assert recalls and all(0 <= recall <= 100 for recall in recalls)
    assert (tmp_path / "runs/colors/final/model.safetensors").exists()
    batch = use["processor"](videos=[[use["picture"], use["picture"]]])
    assert use["model"].get_video_features(**batch).pooler_output.shape == (1, 12)


def test_the_page_of_options_is_what_is_declared():
    assert options_page.PAGE.read_text() == options_page.page(), "run python -m benchmarks.options_page"
