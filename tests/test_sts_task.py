"""Correlation on sentence pairs: equal to sentence-transformers, files of several forms, models that tell nothing apart."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_helpers import load, save_checkpoint
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

import eval.__main__
from eval.tasks.sts import SentencePairs, measure
from mpclip.data.pairs import load_pairs
from mpclip.encoding import SentenceEncoder, load_encoder
from mpclip.export.text import export_text

FIRST = ["a red cat", "a blue boat", "the dog", "no people", "a small boat", "the mat is red", "a dog and a cat"]
SECOND = ["the cat is red", "a boat", "a picture of a dog", "nobody", "a large boat", "the mat", "harm"]
SCORES = [5, 4, 4.5, 3.5, 1, 2, 0]


@pytest.fixture
def pairs(tmp_path):
    lines = [f"{a},{b},{score}" for a, b, score in zip(FIRST, SECOND, SCORES, strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(["sentence1,sentence2,score", *lines]) + "\n")
    return str(tmp_path / "pairs.csv")


def test_equal_to_sentence_transformers(pairs, tmp_path):
    folder = save_checkpoint(tmp_path / "model")
    task = SentencePairs()
    ours = task.run(load_encoder(str(folder), device="cpu"), task.load(pairs, "all"), quiet=True)
    model = load(folder)
    theirs = EmbeddingSimilarityEvaluator(FIRST, SECOND, SCORES)(model)
    assert ours.metrics["spearman"] == pytest.approx(100 * theirs["spearman_cosine"], abs=1e-3)
    assert ours.metrics["pearson"] == pytest.approx(100 * theirs["pearson_cosine"], abs=1e-3)
    wrapped = task.run(SentenceEncoder(model), task.load(pairs, "all"), quiet=True)
    assert wrapped.metrics == pytest.approx(ours.metrics, abs=1e-3)
    assert 0 < abs(ours.metrics["spearman"]) < 100 and ours.counts == {"pairs": 7}


def test_a_text_only_checkpoint_by_the_command(pairs, tmp_path, capsys):
    folder = save_checkpoint(tmp_path / "whole")
    export_text(str(folder), tmp_path / "text")
    for name in ("whole", "text"):
        given = ["--model", str(tmp_path / name), "--data", pairs, "--split", "all", "--json", str(tmp_path / f"{name}.json")]
        eval.__main__.main(["sts", *given, "--precision", "float32", "--device", "cpu"])
    assert "spearman *" in capsys.readouterr().out
    whole, text = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "text"))
    assert whole["primary"] == "spearman" and set(whole["intervals"]) == {"spearman", "pearson"}
    assert whole["metrics"] == pytest.approx(text["metrics"], abs=1e-3)


def test_items_give_the_metrics_again():
    generator = np.random.default_rng(0)
    cosines = generator.normal(size=40).astype(np.float32)
    result = measure(cosines, np.round(cosines + generator.normal(size=40)).astype(np.float32))
    ones = np.ones(SentencePairs.units(result.items), dtype=int)
    assert SentencePairs.metrics_of(result.items, ones) == result.metrics
    assert result.metrics["spearman"] == pytest.approx(100 * spearmanr(cosines, result.items["score"]).statistic)
    for name, (low, high) in result.intervals.items():
        assert low < result.metrics[name] < high
    twice = SentencePairs.metrics_of({name: np.tile(cells, 2) for name, cells in result.items.items()}, np.ones(80, dtype=int))
    assert SentencePairs.metrics_of(result.items, 2 * ones) == pytest.approx(twice)


def test_a_constant_model_is_told():
    """Equal up to the rounding of a matrix product, which alone would give some correlation."""
    scores = np.arange(20, dtype=np.float32)
    with pytest.warns(UserWarning, match="undefined and reported as 0"):
        result = measure(np.float32(0.5) + np.float32(6e-8) * (np.arange(20) % 3), scores)
    assert result.metrics == {"spearman": 0, "pearson": 0} and "undefined" in result.to_json()["undefined"]
    with pytest.raises(ValueError, match="1 of 20 cosines are not finite"):
        measure(np.where(scores == 3, np.nan, scores), scores)


def test_forms_of_pair_files(pairs, tmp_path):
    expected = load_pairs(pairs, "all").select_columns(["sentence1", "sentence2", "score"]).to_list()
    assert expected[0] == {"sentence1": "a red cat", "sentence2": "the cat is red", "score": 5.0} and len(expected) == 7
    (tmp_path / "pairs.tsv").write_text("score\tsentence2\tsentence1\n5\tthe cat is red\ta red cat\n")
    assert load_pairs(tmp_path / "pairs.tsv", "pairs")["sentence2"][:] == ["the cat is red"]
    rows = [row | {"split": "dev" if i else "test"} for i, row in enumerate(expected)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_pairs(tmp_path / "pairs.jsonl", "dev", limit=2)["score"][:] == [4.0, 4.5]
    lines = pairs.replace("pairs.csv", "test.csv")
    with open(lines, "w") as file:
        file.write("a,b,1.0\nc,d,2.0\n")  # a folder, as STS-B: no header
    assert load_pairs(tmp_path, "test")["score"][:] == [1.0, 2.0]


def test_faults_of_pair_files_are_named(tmp_path):
    def written(text: str):
        (tmp_path / "odd.csv").write_text(text)
        return tmp_path / "odd.csv"

    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_pairs(tmp_path / "none.csv", "all")
    with pytest.raises(ValueError, match="columns a, b, but not sentence1, sentence2, score"):
        load_pairs(written("a,b\n1,2\n"), "all")
    with pytest.raises(ValueError, match=r"row 2: the score is 'high'"):
        load_pairs(written("sentence1,sentence2,score\na,b,1\na,b,high\n"), "all")
    with pytest.raises(ValueError, match=r"row 1: the score is nan"):
        load_pairs(written("sentence1,sentence2,score\na,b,nan\n"), "all")
    with pytest.raises(ValueError, match=r"row 1: a sentence is ''"):
        load_pairs(written('sentence1,sentence2,score\n"",b,1\n'), "all")
    with pytest.raises(ValueError, match=r"no split 'dev'; found 'odd'"):
        load_pairs(written("sentence1,sentence2,score\na,b,1\n"), "dev")
    with pytest.raises(ValueError, match="at least three and two different scores"):
        SentencePairs().load(str(written("sentence1,sentence2,score\na,b,1\nc,d,1\ne,f,1\n")), "all")
