"""Agreement with human ratings: Kendall's tau against a plain count of pairs, and the files of Flickr8k as published."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import eval.__main__
from eval.intervals import bootstrap
from eval.result import load_items
from eval.tasks.human import Human, kendall, measure
from mpclip.data.rated_captions import load_rated
from mpclip.encoding import Encoder

PICTURES = {"1.jpg": (250, 5, 5), "2.jpg": (5, 250, 5), "3.jpg": (5, 5, 250), "4.jpg": (120, 120, 5)}
CAPTIONS = {
    "1.jpg#0": "250 0 0  is red",
    "1.jpg#1": "90 0 0 is dark red",
    "2.jpg#0": "0 250 0 is green",
    "3.jpg#0": "0 80 250 is blue",
    "3.jpg#1": "90 0 0 is dark red",  # the text of 1.jpg#1
    "4.jpg#0": "100 120 0 is yellow",
}
EXPERT = [
    ("1.jpg", "3.jpg#1", "4\t4\t3"),  # left out: the text is one of the picture's own
    ("1.jpg", "4.jpg#0", "2\t3\t2"),
    ("1.jpg", "3.jpg#0", "1\t1\t1"),
    ("2.jpg", "4.jpg#0", "3\t2\t2"),
    ("2.jpg", "1.jpg#0", "1\t1\tNaN"),
    ("3.jpg", "1.jpg#1", "4\t4\t4"),  # left out
    ("3.jpg", "2.jpg#0", "1\t2\t1"),
    ("4.jpg", "1.jpg#0", "3\t3\t3"),
    ("4.jpg", "2.jpg#0", "2\t3\t2"),
]
CROWD = [
    ("1.jpg", "1.jpg#0", "1\t3\t0"),  # kept, as published
    ("1.jpg", "2.jpg#0", "0\t0\t3"),
    ("2.jpg", "4.jpg#0", "0.333333333333\t1\t2"),
    ("4.jpg", "1.jpg#0", "0.666666666667\t2\t1"),
    ("4.jpg", "3.jpg#0", "0\t0\t3"),
]


def lines(rows) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
    """Both sets, with the pictures in the folder of the published archive's name."""
    (tmp_path / "Flicker8k_Dataset").mkdir()
    for name, color in PICTURES.items():
        Image.new("RGB", (16, 16), color).save(tmp_path / "Flicker8k_Dataset" / name, quality=95)
    (tmp_path / "Flickr8k.token.txt").write_text(lines(CAPTIONS.items()))
    (tmp_path / "ExpertAnnotations.txt").write_text(lines(EXPERT))
    (tmp_path / "CrowdFlowerAnnotations.txt").write_text(lines(CROWD))
    return tmp_path


class ColourEncoder(Encoder):
    """Embeds a picture as its colour and a text as the three numbers in it, less than the mean of a grey one."""

    name, device = "some/model", torch.device("cpu")

    def __init__(self):
        self.seen = []

    def embed_texts(self, texts):
        self.seen += texts
        numbers = [[float(word) for word in text.split() if word.isdigit()] for text in texts]
        return normalize(torch.tensor(numbers) - 60, dim=1)

    def embed_images(self, images):
        return normalize(torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images]) - 60.0, dim=1)


def plain_tau(scores, ratings, variant: str) -> float:
    """By the definition, a pair of data points at a time."""
    concordant = sum(
        int(math.copysign(1, (a - b) * (x - y))) if (a - b) * (x - y) else 0
        for (a, x), (b, y) in itertools.combinations(zip(scores, ratings, strict=True), 2)
    )
    n, m = len(scores), min(len(set(scores)), len(set(ratings)))
    if variant == "c":
        return 2 * concordant * m / (n**2 * (m - 1))
    untied = [sum(a != b for a, b in itertools.combinations(values, 2)) for values in (scores, ratings)]
    return concordant / math.sqrt(untied[0] * untied[1])


def points(folder, rows, encoder, with_own: bool) -> tuple[list[float], list[float]]:
    """Scores and ratings as CLIPScore's script makes them: a data point for each rating."""
    scores, ratings = [], []
    for picture, caption, told in rows:
        own = [text for name, text in CAPTIONS.items() if name.startswith(picture)]
        if not with_own and CAPTIONS[caption] in own:
            continue
        image = encoder.embed_images([Image.open(folder / "Flicker8k_Dataset" / picture)])
        cosine = float((image * encoder.embed_texts([CAPTIONS[caption]])).sum())
        for rating in told.split("\t")[: 1 if with_own else 3]:
            if rating != "NaN":
                scores.append(2.5 * max(round(cosine, 6), 0.0))
                ratings.append(float(rating))
    return scores, ratings


def test_expert_equals_a_plain_computation(folder):
    task, encoder = Human(), ColourEncoder()
    data = task.load(str(folder), "expert")
    result = task.run(encoder, data, quiet=True)
    scores, ratings = points(folder, EXPERT, encoder, with_own=False)
    assert len(ratings) == 20 and 0 in scores and len(set(scores)) > 3
    assert result.primary == "tau_c" and result.metrics["tau_c"] == pytest.approx(100 * plain_tau(scores, ratings, "c"))
    assert 20 < result.metrics["tau_c"] < 100
    assert result.counts == {
        "images": 4,
        "pairs": 7,
        "ratings": 20,
        "missing_ratings": 1,
        "distinct_scores": len(set(scores)),
        "own_captions_left_out": 2,
        "pairs_left_out": 0,
    }
    assert "A photo depicts 250 0 0 is red" in encoder.seen  # one space, as in the published script
    of_pairs = np.repeat(result.items["score"], (~np.isnan(result.items["ratings"])).sum(axis=1))
    np.testing.assert_allclose(of_pairs, scores, atol=1e-6)


def test_crowdflower_equals_a_plain_computation(folder):
    task, encoder = Human(), ColourEncoder()
    result = task.run(encoder, task.load(str(folder / "CrowdFlowerAnnotations.txt"), "crowdflower"), quiet=True)
    scores, ratings = points(folder, CROWD, encoder, with_own=True)
    assert result.primary == "tau_b" and result.metrics["tau_b"] == pytest.approx(100 * plain_tau(scores, ratings, "b"))
    assert (result.counts["pairs"], result.counts["ratings"], result.counts["images"]) == (5, 5, 3)


@pytest.mark.parametrize("variant", ["b", "c"])
def test_tau_with_ties(variant):
    generator = np.random.default_rng(0)
    ratings = generator.integers(1, 5, 60).astype(float)
    scores = np.round(ratings + generator.normal(size=60), 0)
    assert kendall(scores, ratings, variant) == pytest.approx(plain_tau(scores.tolist(), ratings.tolist(), variant))


def test_a_constant_model_gets_nothing():
    """Also if rounding makes its scores differ, in the order of the ratings."""
    ratings = np.arange(12.0).reshape(-1, 1) % 4
    cosine = 0.25 + 1e-8 * ratings[:, 0]
    with pytest.warns(UserWarning, match="all pairs have one score"):
        result = measure(cosine, ratings, np.arange(12) // 2)
    assert result.metrics["tau_b"] == 0 and result.intervals["tau_b"] == [0, 0] and result.counts["distinct_scores"] == 1
    with pytest.warns(UserWarning, match="all pairs have one score"):
        measure(-1 - ratings[:, 0], ratings, np.arange(12) // 2)  # max(cos, 0) is 0 for all
    with pytest.raises(ValueError, match="1 of 12 pairs have a score that is not finite"):
        measure(np.where(np.arange(12) == 3, np.nan, cosine), ratings, np.arange(12) // 2)


def test_items_give_the_metrics_of_any_draw():
    generator = np.random.default_rng(1)
    image = np.sort(generator.integers(0, 9, 40))
    image = np.unique(image, return_inverse=True)[1]
    ratings = generator.integers(1, 5, (40, 3)).astype(float)
    ratings[3, 1] = np.nan
    cosine = 0.1 * ratings[:, 0] + generator.normal(size=40) * 0.2
    result = measure(cosine, ratings, image)
    units = Human.units(result.items)
    assert Human.metrics_of(result.items, np.ones(units, int)) == result.metrics and set(result.intervals) == set(
        result.metrics
    )
    assert result.intervals == bootstrap(Human.metrics_of, result.items, units)
    low, high = result.intervals["tau_c"]
    assert low < result.metrics["tau_c"] < high
    counts = generator.integers(0, 3, units)
    chosen = np.repeat(np.arange(40), counts[image])
    again = measure(cosine[chosen], ratings[chosen], np.unique(image[chosen], return_inverse=True)[1])
    assert Human.metrics_of(result.items, counts) == pytest.approx(again.metrics)
    assert math.isnan(Human.metrics_of(result.items | {"ratings": np.full((40, 3), 2.0)}, np.ones(units, int))["tau_c"])


def test_w_and_prefix_by_the_command(folder, monkeypatch, capsys):
    encoder = ColourEncoder()
    monkeypatch.setattr("mpclip.encoding.load_encoder", lambda *_, **__: encoder)
    found = {}
    for name, extra in {"plain": [], "other": ["--w", "1", "--prefix", "photo:"], "none": ["--prefix", ""]}.items():
        out = folder / f"{name}.json"
        given = ["--model", "some/model", "--data", str(folder), "--split", "expert", "--json", str(out), "--device", "cpu"]
        encoder.seen = []
        eval.__main__.main(["human", *given, *extra])
        found[name] = json.loads(out.read_text())
        begin = {"plain": "A photo depicts 250", "other": "photo: 250", "none": "250"}[name]
        assert any(text.startswith(begin) for text in encoder.seen)
    assert "tau c *" in capsys.readouterr().out
    assert found["plain"]["metrics"]["tau_c"] == found["other"]["metrics"]["tau_c"]  # w is a factor alone
    assert found["plain"]["metrics"]["mean_clipscore"] == pytest.approx(2.5 * found["other"]["metrics"]["mean_clipscore"])
    assert (found["plain"]["w"], found["other"]["prefix"], found["plain"]["pairs"]) == (2.5, "photo:", 7)
    assert load_items(folder / "plain.json")["ratings"].shape == (7, 3)
    with pytest.raises(SystemExit):
        eval.__main__.main(["human", *given, "--w", "-1"])
    assert "'-1' is out of range" in capsys.readouterr().err


def test_a_missing_picture_is_named_and_its_pairs_are_counted(folder):
    (folder / "Flicker8k_Dataset" / "2.jpg").unlink()
    with pytest.warns(UserWarning, match=r"1 of 4 rows with an image that cannot be decoded: 2.jpg \(no such file\)"):
        data = load_rated(folder, "expert")
    assert data.left_out == {"own_captions_left_out": 2, "pairs_left_out": 2} and len(data.captions) == 5
    assert data.rows["file_name"][:] == ["1.jpg", "3.jpg", "4.jpg"] and data.image.tolist() == [0, 0, 1, 2, 2]
    with pytest.raises(ValueError, match="1 of 4 rows with an image"):
        load_rated(folder, "expert", bad_images="fail")


def test_limit_takes_the_first_pictures(folder):
    data = load_rated(folder, "expert", limit=2)
    assert data.rows["file_name"][:] == ["1.jpg", "2.jpg"] and data.image.tolist() == [0, 0, 1, 1]
    assert data.left_out["pairs_left_out"] == 0


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("expert", "1.jpg\t2.jpg#0\t1\t2\n", r"line 10: found .*expected a picture, a caption id and three scores from 1 to 4"),
        ("expert", "1.jpg\t2.jpg#0\t1\t2\t5\n", "three scores from 1 to 4"),
        ("expert", "1.jpg\t9.jpg#0\t1\t2\t3\n", r"1 caption ids are not in .*Flickr8k.token.txt, such as '9.jpg#0'"),
        ("crowdflower", "1.jpg\t2.jpg#0\t0.5\t1\t2\n", r"line 6: .*expected a picture, a caption id, the share of yes"),
    ],
)
def test_lines_of_another_form(folder, kind, line, message):
    file = folder / {"expert": "ExpertAnnotations.txt", "crowdflower": "CrowdFlowerAnnotations.txt"}[kind]
    file.write_text(file.read_text() + line)
    with pytest.raises(ValueError, match=message):
        load_rated(folder, kind)


def test_what_is_missing_is_named(folder):
    with pytest.raises(ValueError, match="split 'test': the rated captions of Flickr8k are 'expert' and 'crowdflower'"):
        load_rated(folder, "test")
    with pytest.raises(ValueError, match=r"line 1: found .* expected a picture, a caption id, the share of yes"):
        load_rated(folder / "ExpertAnnotations.txt", "crowdflower")  # the other set's file
    (folder / "ExpertAnnotations.txt").write_text(lines([("1.jpg", "2.jpg#0", "1\t1\t1"), ("2.jpg", "1.jpg#0", "1\t1\t1")]))
    with pytest.raises(ValueError, match=r"all ratings of these 2 pairs are equal \(\[1.0\]\)"):
        load_rated(folder, "expert")
    (folder / "Flickr8k.token.txt").write_text("1.jpg a caption\n")
    with pytest.raises(ValueError, match=r"Flickr8k.token.txt, line 1: found '1.jpg a caption', expected a caption id, a tab"):
        load_rated(folder, "expert")
    (folder / "Flickr8k.token.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected ExpertAnnotations.txt and Flickr8k.token.txt in one folder"):
        load_rated(folder, "expert")
