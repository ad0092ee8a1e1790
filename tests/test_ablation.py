"""The table of systems: cells are trained once, go on after a kill, and are compared seed by seed."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import arguments
from filelock import FileLock

from benchmarks import ablation, retrieval_cells, seeds
from benchmarks.results_tables import paper_table
from benchmarks.retrieval_cells import says_absence
from eval.intervals import t_interval
from mpclip.data.image_text import load_image_text
from mpclip.training.command_line import parse_options
from mpclip.training.run import build_trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def command(folder, root):
    """Two systems on coloured squares, as on the command line; further options may follow."""
    options = arguments(folder, root / "unused")
    given = dict(zip(options[::2], options[1::2], strict=True))
    for name in ("--num_prompts", "--output_dir"):
        del given[name]
    given |= {"--num_train_epochs": "1", "--cache_states": "true", "--save_strategy": "no"}
    (root / "setting.yaml").write_text("templates: ['The [APT-{i}]:']\n")
    (root / "mean_pooling.yaml").write_text("text_pooling: mean\nnum_prompts: 1\ntemplates: null\n")
    (root / "multi_prompt.yaml").write_text("num_prompts: 3\n")
    systems = [str(root / f"{name}.yaml") for name in ("mean_pooling", "multi_prompt")]
    own = ["--setting", str(root / "setting.yaml"), "--baselines", "mean_pooling"]
    own += ["--json", str(root / "out.json"), "--splits", "validation[:2]", "validation"]
    return [*systems, *own, *(part for pair in given.items() for part in pair)]


@pytest.fixture(scope="module")
def alone(command):
    """The result of one seed, one cell after the other."""
    return ablation.main([*command, "--seeds", "1"])


def test_cells_are_trained_once_and_compared(command, alone, root, tmp_path, monkeypatch, capsys):
    command = [*command, "--json", str(tmp_path / "out.json")]
    shutil.copy(root / "out.json", tmp_path)
    result = alone
    assert [(row["system"], row["split"], row["seed"]) for row in result["rows"]] == [
        (system, split, 0) for system in ("mean_pooling", "multi_prompt") for split in ("validation[:2]", "validation")
    ]
    multi = result["rows"][-1]["metrics"]
    assert {"t2i_R@1", "i2t_R@10", "mean_recall", "mean_recall_first_1", "mean_recall_first_2", "prompt_cosine"} <= multi.keys()
    assert result["comparisons"][0]["interval"] is None  # of one seed
    mean, three = result["overrides"]["mean_pooling"], result["overrides"]["multi_prompt"]
    assert mean["text_pooling"] == "mean" and three["num_prompts"] == 3 and "text_pooling" not in three
    for system, changed in result["overrides"].items():
        assert changed.items() <= result["options"][system].items() and "dataset" not in changed
    assert (root / "out.png").stat().st_size > 5_000

    trained = []
    train_cell = retrieval_cells.train_cell
    monkeypatch.setattr(retrieval_cells, "train_cell", lambda argv, splits: trained.append(argv) or train_cell(argv, splits))
    result = ablation.main([*command, "--seeds", "2"])
    assert len(trained) == 2 and json.loads((tmp_path / "out.json").read_text()) == result
    found = [row for row in result["comparisons"] if row["split"] == "validation" and row["metric"] == "mean_recall"]
    of = {(row["system"], row["seed"]): row["metrics"]["mean_recall"] for row in result["rows"] if row["split"] == "validation"}
    change = [of["multi_prompt", seed] - of["mean_pooling", seed] for seed in (0, 1)]
    assert found[0]["mean_difference"] == pytest.approx(sum(change) / 2) and found[0]["seeds"] == 2
    assert "| multi prompt | 2 |" in capsys.readouterr().out

    said = ablation.main([*command, "--seeds", "2", "--about", "Squares."])  # nothing to train: told anew, measured as before
    assert said == json.loads((tmp_path / "out.json").read_text()) == result | {"about": "Squares."} and len(trained) == 2
    with pytest.raises(SystemExit):
        ablation.main([*command, "--jobs", "0"])
    assert "--jobs 0 and --seeds 3: both must be at least 1" in capsys.readouterr().err

    with pytest.raises(SystemExit, match=r"other options: weight_decay"):
        ablation.main([*command, "--seeds", "2", "--weight_decay", "0.3"])


def test_cells_at_the_same_time_give_what_one_after_the_other_does(command, alone, tmp_path, prepared_processes):
    together = ablation.main([*command, "--seeds", "1", "--jobs", "2", "--json", str(tmp_path / "together.json")])
    assert [row["system"] for row in together["rows"]] == [row["system"] for row in alone["rows"]]
    for ours, theirs in zip(together["rows"], alone["rows"], strict=True):
        ours["metrics"]["train_seconds"] = theirs["metrics"]["train_seconds"]
        assert ours["metrics"] == pytest.approx(theirs["metrics"])


def test_the_interval_is_that_of_the_t_distribution():
    margin = 4.302653 * (7 / 3) ** 0.5 / 3**0.5  # the 97.5% point of two degrees of freedom, variance 7/3, three values
    assert t_interval([1.0, 2.0, 4.0]) == pytest.approx([7 / 3 - margin, 7 / 3 + margin], rel=1e-6)
    assert t_interval([2.0, 2.0, 2.0]) == [2.0, 2.0]
    assert t_interval([1.0, 1.1]) is None  # of two, chance decides how far apart they are


def test_the_first_prompts_alone_are_measured_by_their_own_norm():
    image = F.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    text = image.clone()
    text[:, 4:] = 0.0  # the last prompt says nothing: two thirds of the embedding decide
    embeds = {"image_embeds": image, "text_embeds": F.normalize(text, dim=1), "caption_image": torch.arange(5)}
    metrics = retrieval_cells.measure(embeds, 3)
    assert metrics["mean_recall_first_2"] == 100.0
    one = retrieval_cells.measure(embeds, 1)
    assert "prompt_cosine" not in one and one["mean_recall"] == metrics["mean_recall"]


@pytest.mark.parametrize(
    "caption, absent",
    [("A cat. There is no dog.", True), ("A cat, without any dog in sight.", True), ("A notable cat knot.", False)],
)
def test_captions_that_say_what_is_absent(caption, absent):
    assert says_absence(caption) == absent


def test_the_papers_comparisons_stand_beside_ours():
    def rows(system, values):
        metrics = ("mean_recall", "i2t_R@1", "t2i_R@1")
        return [
            {"system": system, "split": "test", "seed": seed, "metrics": dict.fromkeys(metrics, value)}
            for seed, value in enumerate(values)
        ]

    cells = rows("mean_pooling", [40.0, 41.0, 42.0]) + rows("multi_prompt_both", [45.0, 46.1, 47.0])
    cells += rows("appended_tokens", [37.0, 38.1, 39.0]) + rows("mean_pooling_lora", [38.0, 41.0, 45.0])
    metrics = ["mean_recall", "i2t_R@1", "t2i_R@1"]
    comparisons = seeds.compare(cells, ["mean_pooling"], tuple(metrics))
    lines = paper_table({"comparisons": comparisons, "metrics": metrics}, "test").splitlines()
    verdicts = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines[2:]}
    assert verdicts == {
        "mean pooling lora against mean pooling": "not decided",
        "appended tokens against mean pooling": "no",
        "multi prompt both against mean pooling": "yes",
        "multi prompt both against mean pooling lora": "not decided",
        "multi prompt both against appended tokens": "yes",
    }
    assert "| +3.7 | +5.0 (+4.9 to +5.2) | +5.4 |" in lines[4]  # 47.1 - 43.4 and 66.0 - 60.6


def test_all_splits_are_told_as_their_mean():
    cells = [
        {"system": system, "split": split, "seed": seed, "metrics": {"mean_recall": value + seed, "negated_R@1": value}}
        for system, values in {"mean_pooling": (40.0, 50.0), "multi_prompt": (41.0, 54.0)}.items()
        for split, value in zip(("one", "other"), values, strict=True)
        for seed in range(3)
    ]
    rows = seeds.with_all_splits(cells)
    assert {row["metrics"]["mean_recall"] for row in rows if row["split"] == "all"} == {45, 46, 47, 47.5, 48.5, 49.5}
    found = seeds.compare(rows, ["mean_pooling"], ("mean_recall", "t2i_R@1", "negated_R@1"))
    changes = {row["split"]: (row["mean_difference"], row["interval"]) for row in found if row["metric"] == "mean_recall"}
    assert changes == {"one": (1.0, [1.0, 1.0]), "other": (4.0, [4.0, 4.0]), "all": (2.5, [2.5, 2.5])}
    assert {row["metric"] for row in found} == {"mean_recall", "negated_R@1"}  # those that the cells have
    alone = [row for row in cells if row["split"] == "one"]
    assert seeds.with_all_splits(alone) == alone
    partly = [row for row in seeds.with_all_splits(cells[:-1]) if row["split"] == "all"]
    assert [(row["system"], row["seed"]) for row in partly if row["system"] == "multi_prompt"] == [
        ("multi_prompt", 0),
        ("multi_prompt", 1),
    ]


def test_one_file_has_one_writer_and_one_name_one_system(command, tmp_path):
    command = [*command, "--json", str(tmp_path / "out.json")]
    with FileLock(tmp_path / "out.lock"), pytest.raises(SystemExit, match="Another command is measuring into"):
        ablation.main([*command, "--seeds", "1"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mean_pooling.yaml").write_text("text_pooling: last_token\nnum_prompts: 1\n")
    with pytest.raises(SystemExit, match="same file name"):
        ablation.main([str(tmp_path / "other/mean_pooling.yaml"), *command])


def test_a_cell_of_joined_captions_is_measured_by_them_too(folder, tmp_path):
    metrics = retrieval_cells.train_cell(arguments(folder, tmp_path, "--captions_joined", "2"), ["validation"])["validation"]
    joined = {name for name in metrics if name.startswith("joined_")}
    assert joined == {"joined_mean_recall", "joined_t2i_R@1", "joined_i2t_R@1"}


def test_exclusion_of_a_cell_on_scenes(folder, tmp_path):
    """Of one "X without Y" the right pictures come first, and nothing else is embedded than what has stored states."""
    shown = 6 * [["cat"]] + 3 * [["cat", "dog"]]
    scenes = [{"objects": [{"name": name} for name in names], "background": "white"} for names in shown]
    rows = load_image_text(folder / "data", "train").select([0] * 9).add_column("scene", scenes)
    options = parse_options(arguments(folder, tmp_path, "--cache_states", "true", "--eval_split", "none"))
    trainer = build_trainer(options)
    embeds = retrieval_cells.embed(trainer, options, rows, retrieval_cells.looking_at(1).queries(rows)[2])
    metrics = retrieval_cells.exclusion_metrics(trainer, embeds, rows)
    assert metrics.keys() == {f"{way}_{name}" for way in ("plain", "words", "exclude") for name in ("pure", "R@1")}
    assert all(0 <= value <= 100 for value in metrics.values())
