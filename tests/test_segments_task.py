"""What each segment tells apart: pairs of near-twin scenes, the metrics of segments, and the task that reports them."""

import json

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from sentence_helpers import save_checkpoint
from torch.nn.functional import normalize

from eval.__main__ import main
from eval.result import load_items
from eval.swapped_segments import swap_queries, swaps_found
from eval.tasks.segments import KINDS, Segments, leads, measure, pairs_of, raised, segments_of, weights_with
from mpclip.data.openmoji.scenes import write_scenes

BACKGROUNDS, NAMES = ("red", "blue"), ("dog", "cat")


def scene(background: str, name: str = "dog", size: str = "large") -> dict:
    return {"background": background, "layout": "center", "objects": [{"name": name, "size": size}], "absent": None}


def make_rows(families: int = 12) -> datasets.Dataset:
    """Families of a base, one with another background, one with another object, and one with both."""
    scenes = [scene(background, name) for background in BACKGROUNDS for name in NAMES]
    columns = {"scene": scenes * families, "family": [7 * f for f in range(families) for _ in scenes]}
    return datasets.Dataset.from_dict(columns)


def make_side(misread: float = 0.0, families: int = 12, seed: int = 0) -> tuple[dict, object]:
    """A caption for each scene. Segment 1 holds the object, segment 2 the background, a tenth as strong.

    `misread`: how much segment 1 of a caption speaks for the other background.
    """
    rows = make_rows(families)
    generator = torch.Generator().manual_seed(seed)
    background = torch.tensor([BACKGROUNDS.index(one["background"]) for one in rows["scene"]])  # (I,)
    name = torch.tensor([NAMES.index(one["objects"][0]["name"]) for one in rows["scene"]])  # (I,)
    eye = torch.eye(2)
    image = torch.stack([torch.cat([eye[name], eye[background]], 1), torch.cat([0 * eye[name], 0.1 * eye[background]], 1)], 1)
    text = image.clone()
    noise = misread * torch.rand(len(text), generator=generator)[:, None]  # (T, 1)
    text[:, 0, 2:] = noise * eye[1 - background]
    embeds = {"image_embeds": normalize(image.flatten(1)), "text_embeds": text.flatten(1)}
    return segments_of(embeds, 2), pairs_of(rows, torch.arange(len(text)))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("made") / "scenes", train=0, validation=10, test=10)


def test_pairs_differ_in_one_kind_alone():
    rows = datasets.Dataset.from_dict(
        {
            "scene": [scene("red"), scene("blue"), scene("blue", size="small"), scene("red"), scene("green")],
            "family": [4, 4, 4, 9, 4],
        }
    )
    pairs = pairs_of(rows, torch.tensor([0, 0, 1, 2, 3, 4]))  # two captions of the first scene, none pairs with family 9
    found = {(t, own, other, KINDS[kind]) for t, own, other, kind, _ in zip(*map(np.ndarray.tolist, pairs), strict=True)}
    both = {(0, 1), (0, 4), (1, 0), (1, 4), (4, 0), (4, 1)}
    of = {0: (0, 1), 1: (2,), 2: (3,), 4: (5,)}
    assert found == {(t, own, other, "background") for own, other in both for t in of[own]} | {
        (2, 1, 2, "size"),
        (3, 2, 1, "size"),
    }
    assert set(pairs.family.tolist()) == {0}
    with pytest.raises(ValueError, match="No two scenes of a family differ in one kind alone"):
        pairs_of(rows.select([0, 3]), torch.arange(2))


def test_leads_are_differences_of_scores():
    segments, pairs = make_side(misread=0.5)
    scores = segments["text"].flatten(1) @ segments["image"].flatten(1).T  # (T, I)
    expected = scores[pairs.text, pairs.own] - scores[pairs.text, pairs.other]  # (P,)
    np.testing.assert_allclose(leads(segments, pairs).sum(1), expected, atol=1e-6)
    np.testing.assert_array_equal(weights_with(1, 3.0, 3), [1, 3, 1])


def test_a_segment_that_specialises_is_found_and_helps_when_raised():
    result = measure(make_side(misread=0.2), make_side(misread=0.2, seed=1))
    metrics = result.metrics
    assert metrics["object"] == metrics["object_by_1"] == 100 and metrics["object_by_2"] == 0  # a tie counts against it
    assert metrics["background_by_2"] == 100 and metrics["background_by_1"] == 0
    assert result.origin["raised"]["background"]["segment"] == 2 and result.origin["raised"]["background"]["weight"] > 1
    assert result.origin["raised"]["object"] == {"segment": 1, "weight": 1.0, "pairs": 48}  # nothing to gain: weight 1
    assert metrics["background_raised_gain"] == metrics["background_raised"] - metrics["background"] > 20
    assert metrics["object_raised_gain"] == 0 and not any(name.startswith("size") for name in metrics)

    units = Segments.units(result.items)
    assert units == 12 and Segments.metrics_of(result.items, np.ones(units, dtype=int)) == metrics
    counts = np.zeros(units, dtype=int)
    counts[3] = 2
    one = result.items["family"] == 3
    assert Segments.metrics_of(result.items, counts)["all"] == pytest.approx(100 * result.items["right"][one].mean())
    assert result.intervals["background_raised_gain"][0] > 0


def test_an_undefined_draw_is_nan_and_a_tie_takes_the_lowest_weight():
    items = {"family": np.array([0, 1]), "kind": np.array([0, 4]), "right": np.array([True, False])}
    assert np.isnan(Segments.metrics_of(items, np.array([2, 0]))["background"])
    assert raised(np.array([[1.0, -0.5]]), 2) == (0, 1.0)


def test_a_background_is_taken_from_another_picture():
    rows = datasets.Dataset.from_dict(
        {
            "scene": [scene("red"), scene("blue"), scene("blue", "cat"), scene("red", "cat"), scene("pink", "cat")],
            "family": [0, 0, 1, 1, 2],
        }
    )
    queries = swap_queries(rows)
    assert set(zip(*map(np.ndarray.tolist, queries), strict=True)) == {(0, 2, 1), (1, 3, 0), (2, 0, 3), (3, 1, 2)}
    name, background = torch.eye(2)[[0, 0, 1, 1, 1]], torch.eye(3)[[0, 1, 1, 0, 2]]  # (I, 2), (I, 3)
    image = normalize(torch.cat([name, torch.zeros(5, 1), background], 1), dim=1)  # two segments of three
    found = swaps_found(image, queries, K=2)
    assert found["swap_2"].all() and not found["swap_1"].any()
    assert found["sum_1"].tolist() == [False] * 4  # a tie with the scene of both other things
    assert found.keys() == {"swap_1", "swap_2", "sum_0.25", "sum_0.5", "sum_1", "sum_2", "first_alone"}
    assert len(swap_queries(rows.select([0, 3])).first) == 0


def test_the_command(scenes, tmp_path, capsys):
    model = save_checkpoint(tmp_path / "model")
    common = ["--data", str(scenes), "--device", "cpu", "--dtype", "float32", "--no_cache"]
    out, picture = tmp_path / "out.json", tmp_path / "map.png"
    fit = ["--fit_split", "validation", "--heat_map", str(picture)]
    main(["segments", *common, "--model", str(model), "--split", "test", "--json", str(out), *fit])
    written, items = json.loads(out.read_text()), load_items(out)
    assert "background by 1" in capsys.readouterr().out and PIL.Image.open(picture).size[0] > 300
    assert len(written["segment_names"]) == written["segments"] == 3
    assert Segments.metrics_of(items, np.ones(Segments.units(items), dtype=int)) == written["metrics"]
    with pytest.raises(SystemExit, match="but weights must be chosen on other pictures"):
        main(["segments", *common, "--model", str(model), "--split", "test", "--json", str(out), "--fit_split", "test"])


@pytest.mark.parametrize(
    ("options", "told"), [({"num_prompts": 1}, "it has one, or"), ({"joint_projection": True}, "joint_projection=True")]
)
def test_models_without_segments_of_their_own_are_refused(scenes, tmp_path, options, told):
    model = save_checkpoint(tmp_path / "model", **options)
    common = ["--data", str(scenes), "--device", "cpu", "--dtype", "float32", "--no_cache"]
    with pytest.raises(SystemExit, match=told):
        main(["segments", *common, "--model", str(model), "--split", "test", "--json", str(tmp_path / "out.json")])
