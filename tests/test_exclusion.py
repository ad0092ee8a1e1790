"""Queries that leave something out: which things pictures show, what the first k show, and the task."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sentence_helpers import save_checkpoint

from benchmarks import exclusion_formulas
from benchmarks.exclusion_formulas import formulas
from eval.__main__ import main
from eval.metrics.unwanted import found_first
from eval.result import load_items
from eval.tasks.exclusion import Exclusion, measure, queries_of
from modeling_mpclip.segments import EXCLUSION, excluding
from mpclip.data.exclusion_queries import THINGS, Things, exclusion_pairs, things_of_captions, things_of_scenes

# Pictures 0 to 5: X and Y, X and Y, X, X, Y, neither.
SHOWN = np.array([[1, 1], [1, 1], [1, 0], [1, 0], [0, 1], [0, 0]], dtype=bool)


# Which picture shows what


def test_every_caption_of_a_picture_counts():
    captions = [["Two DOGS run.", "A ball, red."], ["A man in a T-shirt.", "He smiles."], ["The dogged hotdog"]]
    things = things_of_captions(captions)
    found = [{things.names[n] for n in np.flatnonzero(row)} for row in things.shown]
    assert found == [{"a dog", "a ball"}, {"a man", "a shirt"}, set()]


def test_no_word_names_two_things_but_water():
    words = [word for name, words in THINGS.items() if name not in ("water", "a pool") for word in words.split()]
    assert len(words) == len(set(words))


def test_the_description_of_a_scene_tells():
    scenes = [
        {"background": "orange", "objects": [{"name": "cat"}, {"name": "owl"}], "absent": "dog"},
        {"background": "pink", "objects": [{"name": "cat"}], "absent": None},
    ]
    things = things_of_scenes(scenes)
    assert things.names == ["a cat", "a pink background", "an orange background", "an owl"]
    assert things.shown.tolist() == [[True, False, True, True], [True, True, False, False]]


def test_pairs_occur_often_enough_together_and_apart():
    things = Things(["a dog", "a ball"], SHOWN)
    assert exclusion_pairs(things, 2, 2).tolist() == [[0, 1]]
    assert exclusion_pairs(things, 2, 1).tolist() == [[0, 1], [1, 0]]  # one picture shows the ball alone
    for together, apart in ((3, 1), (2, 3)):
        with pytest.raises(ValueError, match=f"occur in {together} of the 6 pictures together.* in {apart} without"):
            exclusion_pairs(things, together, apart)
    with pytest.raises(ValueError, match="no two things"):
        exclusion_pairs(Things(["a pool", "water"], SHOWN), 2, 2)


# The first k


def test_what_the_first_pictures_show():
    scores = np.array([[6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]], dtype=float)
    both = [np.tile(SHOWN[:, column], (2, 1)) for column in (0, 1)]
    found = found_first(scores, *both, k=3)
    assert found.wanted.tolist() == [3, 1] and found.pure.tolist() == [1, 1] and found.unwanted.tolist() == [2, 1]
    assert found_first(scores, *both, k=99).wanted.tolist() == [4, 4]


def test_a_tie_counts_against_the_model():
    """Equal but for rounding: Y comes first, then neither, X alone last."""
    scores = 0.5 + 1e-9 * np.array([[1, 2, 3, 4, 5, 6.0]])
    for k, pure in ((3, 0), (4, 0), (5, 1)):
        found = found_first(scores, SHOWN[None, :, 0], SHOWN[None, :, 1], k)
        assert (found.pure.item(), found.unwanted.item()) == (pure, 3)


@pytest.mark.parametrize(
    "scores, k, message",
    [
        (np.zeros((1, 5)), 1, "expected one shape"),
        (np.full((1, 6), np.nan), 1, "6 scores are not finite"),
        (np.zeros((1, 6)), 0, "k=0"),
    ],
)
def test_bad_scores_are_refused(scores, k, message):
    with pytest.raises(ValueError, match=message):
        found_first(scores, SHOWN[None, :, 0], SHOWN[None, :, 1], k)


# The task


def exact_result(top: int = 2):
    """Pictures and texts whose axes are X and Y, and a query in words that means the opposite of what it says."""
    images = torch.nn.functional.normalize(torch.tensor(SHOWN, dtype=torch.float32) + torch.tensor([0.0, 0.001]), dim=1)
    things = torch.tensor([[0.8, 0.6], [0.0, 1.0]])  # X is often seen with Y
    words = torch.tensor([[0.6, 0.8]])
    pairs = np.array([[0, 1]])
    names = np.array([["a dog", "a ball"]])
    return measure(queries_of(torch.cat([things, words]), pairs, names, segments=1), images, SHOWN, pairs, names, top)


def test_exclusion_by_hand():
    result = exact_result()
    metrics = result.metrics
    assert (metrics["plain_unwanted"], metrics["plain_pure"], metrics["plain_recall"]) == (100.0, 0.0, 100.0)
    assert (metrics["exclude_unwanted"], metrics["exclude_pure"], metrics["exclude_recall"]) == (0.0, 100.0, 100.0)
    assert (metrics["exclude_left"], metrics["exclude_lost"]) == (0.0, 0.0)
    assert (metrics["words_left"], metrics["words_lost"]) == (100.0, 0.0)
    assert result.counts == {"images": 6, "pairs": 1, "things": 2}
    assert result.items["wanted"].tolist() == ["a dog"] and result.items["not_wanted"].tolist() == ["a ball"]


def test_metrics_are_those_of_the_items():
    generator = torch.Generator().manual_seed(0)
    shown = np.random.default_rng(0).random((40, 5)) < 0.4
    pairs = exclusion_pairs(Things(list("abcde"), shown), 3, 5)
    embeds = torch.nn.functional.normalize(torch.randn(5 + len(pairs), 12, generator=generator), dim=1)
    images = torch.nn.functional.normalize(torch.randn(40, 12, generator=generator), dim=1)
    names = np.array([("abcde"[x], "abcde"[y]) for x, y in pairs])
    result = measure(queries_of(embeds, pairs, names, segments=3), images, shown, pairs, names, 5)
    units = Exclusion.units(result.items)
    assert units == len(pairs) > 5
    assert Exclusion.metrics_of(result.items, np.ones(units, int)) == result.metrics
    for name, value in result.metrics.items():
        low, high = result.intervals[name]
        assert low <= value <= high and low < high
    twice = np.zeros(units, int)
    twice[1] = 2
    one = Exclusion.metrics_of({name: values[1:2] for name, values in result.items.items()}, np.ones(1, int))
    assert Exclusion.metrics_of(result.items, twice) == pytest.approx(one)
    by_hand = result.items["exclude_unwanted"].mean() / 5 * 100
    assert result.metrics["exclude_unwanted"] == pytest.approx(by_hand)


def test_a_model_that_tells_nothing_apart_is_named():
    with pytest.raises(ValueError, match="one embedding for 'a dog' and 'a ball'"):
        queries_of(torch.ones(3, 2) / 2**0.5, np.array([[0, 1]]), np.array([["a dog", "a ball"]]), segments=1)


class ByColour:
    """An encoder of squares: red squares show a dog, blue ones a ball, purple ones both; texts by the same axes."""

    segments, name = 1, "by colour"

    def texts(self, texts, batch_size=64, **options):
        axes = torch.tensor([[("dog" in text) + 0.1, "ball" in text, 0.1] for text in texts], dtype=torch.float32)
        return torch.nn.functional.normalize(axes, dim=1)

    def images(self, images, batch_size=64, **options):
        axes = torch.tensor([[*(channel / 255 for channel in image.getpixel((0, 0))[::2]), 0.1] for image in images])
        return torch.nn.functional.normalize(axes, dim=1)


def test_the_task_on_pictures():
    colours = ["purple"] * 3 + ["red"] * 5 + ["blue"] * 2 + ["white"]
    told = {"purple": ["a dog", "a ball"], "red": ["a dog"], "blue": ["a ball"], "white": ["snow"]}
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (4, 4), colour) for colour in colours], "captions": [told[colour] for colour in colours]}
    )
    result = Exclusion().run(ByColour(), rows)
    assert result.counts["pairs"] == 1 and result.primary == "exclude_pure"
    assert result.metrics["exclude_pure"] == 100 and result.metrics["words_unwanted"] > 50


@pytest.fixture
def pictures(tmp_path):
    """A folder of eight pictures with captions: five of a dog, three of a dog and a ball."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (32, 32), (30 * i, 0, 0)).save(folder / f"{i}.png")
    captions = ["a dog"] * 5 + ["a dog and a ball"] * 3
    rows = [{"file_name": f"{i}.png", "captions": [caption]} for i, caption in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_command(pictures, tmp_path, capsys):
    """A real model, and pictures that show the things often enough, but not four times together."""
    out = str(tmp_path / "out.json")
    model = str(save_checkpoint(tmp_path / "model"))
    options = ["exclusion", "--model", model, "--data", str(pictures), "--split", "train", "--json", out, "--dtype", "float32"]
    with pytest.raises(SystemExit, match="no two things occur in 4 of the 8 pictures"):
        main([*options, "--device", "cpu", "--together", "4"])
    main([*options, "--device", "cpu"])
    assert "exclude pure *" in capsys.readouterr().out
    written = json.loads(Path(out).read_text())
    assert written["metrics"].keys() == written["intervals"].keys() and written["pairs"] == 1
    assert Exclusion.metrics_of(load_items(out), np.ones(1, int)) == written["metrics"]


# The trials of formulas


def test_the_formula_in_use_is_among_the_trials():
    generator = torch.Generator().manual_seed(0)
    t, words, both, images = (torch.nn.functional.normalize(torch.randn(4, 12, generator=generator), dim=1) for _ in range(4))
    x = torch.nn.functional.normalize(torch.randn(4, 3, 12, generator=generator), dim=2)
    scores = formulas(t, x, both, words, images, K=3)
    in_use = torch.cat([excluding(t[i : i + 1], x[i]) for i in range(4)]) @ images.T  # (4, 4)
    tried = scores[f"t - {EXCLUSION} (x - (x.t) t)"]
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(tried, in_use), torch.ones(4))
    torch.testing.assert_close(scores["t - x (formerly)"], (t - x.sum(1)) @ images.T)
    out = scores["scores v.t, without the tenth of highest v.x"]
    assert (out < -5).any(dim=1).all() and not torch.equal(tried, scores["plain"])


def test_the_trials_from_the_command_line(pictures, tmp_path, capsys):
    model = str(save_checkpoint(tmp_path / "model"))
    options = ["--model", model, "--choose", str(pictures), "train", "--report", str(pictures), "train", "--dtype", "float32"]
    result = exclusion_formulas.main([*options, "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == result
    known = result["report"]["formulas"][exclusion_formulas.KNOWN]
    assert (result["report"]["pairs"], known["left"], result["three"]["pairs"]) == (1, 0, 1)
    assert f"| {exclusion_formulas.KNOWN} |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["scenes", "flickr8k"])
def test_the_page_shows_the_trials(name):
    docs = Path(__file__).resolve().parents[1] / "docs"
    result = json.loads((docs / "results" / "exclusion_formulas" / f"{name}.json").read_text())
    assert exclusion_formulas.formulas_table(result) in (docs / "evaluation" / "exclusion.md").read_text()
