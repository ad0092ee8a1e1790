"""docs/evaluation: the tables are those of the results."""

import re
from pathlib import Path

import numpy as np
import pytest

import eval.__main__
from benchmarks.evaluation_pages import main
from eval.result import Result
from mpclip.files import read_json, write_json

DOCS = Path(__file__).parent.parent / "docs"
ORIGIN = {"data": "photos", "split": "test", "dtype": "float32", "machine": {"cpu": "Some CPU", "cores": 2}, "limit": None}
ORIGIN |= {"date": "2026-11-27T01:02:03+00:00", "command": "python -m eval retrieval --model a b"}


@pytest.fixture
def docs(tmp_path):
    """A page with a table of one task on two sets of data, and one of a task without results."""
    for data, shift in (("photos", 0.0), ("scenes", 10.0)):
        for name, value in (("zeta", 50.0), ("alpha", 53.25)):
            result = Result(
                "retrieval", "mean_recall", {"mean_recall": value + shift, "t2i_R@1": 0.0}, origin=ORIGIN | {"model": name}
            )
            result.intervals = {"mean_recall": [value + shift - 2, value + shift + 2]}
            result.left_out, result.items = {"rows without a caption": 3}, {"rank": np.ones(3)}
            if name == "alpha":
                result.against = {
                    "model": "zeta",
                    "differences": {"mean_recall": 3.25},
                    "intervals": {"mean_recall": [1.0, 5.5]},
                }
            result.save(tmp_path / f"results/evaluation/retrieval.{data}/{name}.json")
    (tmp_path / "evaluation").mkdir()
    page = "# Title\n\n<!-- table: {} -->\nold\n<!-- end of table -->\n\nThe end.\n"
    (tmp_path / "evaluation" / "retrieval.md").write_text(page.format("retrieval"))
    (tmp_path / "evaluation" / "one.md").write_text(page.format("retrieval.scenes"))
    (tmp_path / "evaluation" / "sts.md").write_text(page.format("sts"))
    return tmp_path


def test_tables_are_filled_and_checked(docs, capsys):
    with pytest.raises(SystemExit, match=r"^one.md, retrieval.md, sts.md: not what the results give"):
        main(["--docs", str(docs), "--check"])
    main(["--docs", str(docs)])
    main(["--docs", str(docs), "--check"])
    text = (docs / "evaluation" / "retrieval.md").read_text()
    assert text.startswith("# Title\n") and text.endswith("\n\nThe end.\n") and "old" not in text
    assert text.index("### retrieval.photos") < text.index("### retrieval.scenes")
    assert "| metric | zeta | alpha |" in text  # the model that the other was compared with comes first
    difference = "<br>difference: +3.2 (+1.0 to +5.5)"
    assert f"| **mean recall** | 50.0 (48.0 to 52.0) | 53.2 (51.2 to 55.2){difference} |" in text
    assert "`photos`, split `test`; left out: 3 rows without a caption; float32; cpu Some CPU, cores 2; 2026-11-27." in text
    assert text.count("`python -m eval retrieval --model a b`") == 2
    assert "###" not in (docs / "evaluation" / "one.md").read_text()
    assert "<!-- table: sts -->\n<!-- end of table -->" in (docs / "evaluation" / "sts.md").read_text()  # no results

    changed = docs / "results/evaluation/retrieval.scenes/zeta.json"
    write_json(changed, read_json(changed) | {"metrics": {"mean_recall": 61.0}})
    with pytest.raises(SystemExit, match=r"^one.md, retrieval.md: not what"):
        main(["--docs", str(docs), "--check"])
    write_json(changed, {"task": "retrieval"})
    with pytest.raises(SystemExit, match=r"zeta.json is no result of .* it has no primary, metrics"):
        main(["--docs", str(docs)])


def test_the_pages_are_those_of_the_results():
    main(["--check"])


def test_every_task_is_in_the_index_and_its_page_has_a_table():
    index = (DOCS / "evaluation" / "README.md").read_text()
    for task in eval.__main__.TASKS:
        listed = re.search(rf"^\| (\[{task}\]\({task}\.md\)|{task}) \|", index, re.MULTILINE)
        assert listed, task
        if "[" in listed[1]:
            text = (DOCS / "evaluation" / f"{task}.md").read_text()
            assert re.search(rf"<!-- table: {task}\S* -->\n(.*\n)?<!-- end of table -->", text, re.DOTALL), task
