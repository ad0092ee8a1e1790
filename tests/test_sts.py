"""STS: data, and systems fine-tuned and compared."""

import json

import pytest
from conftest import arguments

from benchmarks import sts, sts_cells
from mpclip.data.sentence_pairs import load_sts


@pytest.fixture
def pairs(tmp_path):
    """Train and dev splits of sentences about squares."""
    lines = ['"a red square","red, all over",5.0', "a blue square,a cat,0.5", "a cat,the cat,4.2", "a dog,a boat,0.0"]
    (tmp_path / "pairs").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "pairs" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "pairs"


def test_pairs_are_read_and_faults_named(pairs):
    rows = load_sts(pairs, "dev")
    assert rows[0] == {"sentence1": "a red square", "sentence2": "red, all over", "score": 5.0} and len(rows) == 4
    with pytest.raises(FileNotFoundError, match=r"test\.csv; .* holds dev, train"):
        load_sts(pairs, "test")
    (pairs / "odd.csv").write_text("a,b,high\n")
    with pytest.raises(ValueError, match="not all numbers"):
        load_sts(pairs, "odd")


def test_batches_hold_pairs_of_one_length(folder, pairs, tmp_path):
    texts = ["a cat", "a dog on a big red boat in the blue sea, left of a cat and a dog"] * 8
    (pairs / "train.csv").write_text("\n".join(f'"{text}","a cat",{i % 6}.0' for i, text in enumerate(texts)) + "\n")
    given = (
        "--dataset",
        str(pairs),
        "--train_sampling_strategy",
        "group_by_length",
        "--eval_strategy",
        "no",
        "--load_best_model_at_end",
        "false",
    )
    trainer, _ = sts_cells.build_trainer(arguments(folder, tmp_path / "out", *given), ["dev"])
    longest = sorted(batch["attention_mask"].shape[1] for batch in trainer.get_train_dataloader())
    assert longest[0] == longest[1] < longest[2] == longest[3]  # two batches of short pairs, two of long ones
    orders = [list(trainer._get_train_sampler())]
    trainer.state.epoch = 1.0
    assert sorted(orders[0]) == list(range(16)) and list(trainer._get_train_sampler()) != orders[0]


@pytest.mark.parametrize("cached", ["true", "false"])
def test_systems_are_fine_tuned_and_compared(folder, pairs, tmp_path, cached):
    options = arguments(folder, tmp_path / "unused")
    given = dict(zip(options[::2], options[1::2], strict=True))
    del given["--num_prompts"], given["--output_dir"]
    given |= {"--dataset": str(pairs), "--num_train_epochs": "30", "--learning_rate": "0.01", "--text_learning_rate": "0.01"}
    (tmp_path / "setting.yaml").write_text(f"templates: ['The [APT-{{i}}]:']\ncache_states: {cached}\n")
    (tmp_path / "single_prompt.yaml").write_text("num_prompts: 1\n")
    (tmp_path / "multi_prompt.yaml").write_text("num_prompts: 3\ndiversity_weight: 0.1\n")
    argv = [str(tmp_path / f"{name}.yaml") for name in ("single_prompt", "multi_prompt")]
    argv += [
        "--setting",
        str(tmp_path / "setting.yaml"),
        "--seeds",
        "1",
        "--splits",
        "dev",
        "--json",
        str(tmp_path / "out.json"),
    ]
    result = sts.main([*argv, "--baselines", "single_prompt", *(part for pair in given.items() for part in pair)])
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == ["spearman"]
    assert all(row["metrics"]["spearman"] > 90 for row in result["rows"])  # trained on the pairs it is asked for
    assert [row["system"] for row in result["comparisons"]] == ["multi_prompt"]
