"""The pointing game: boxes, hits, guesses, metrics from items."""

import functools

import datasets
import numpy as np
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessorPil

from eval.intervals import bootstrap
from eval.tasks.pointing import Pointing, boxes_in_view, boxes_of, questions_of
from modeling_mpclip import MPCLIPProcessor
from mpclip.data.openmoji.generate import BACKGROUNDS
from mpclip.encoding import ModelEncoder, PeerEncoder
from mpclip.maps import KINDS


def scene(*things: tuple[str, int, int, int, int], background: str = "blue") -> dict:
    """A scene of black rectangles (name, middle x and y, width, height), with its picture."""
    picture = Image.new("RGB", (224, 224), BACKGROUNDS[background])
    for _, x, y, width, height in things:
        left, top = x - width // 2, y - height // 2
        ImageDraw.Draw(picture).rectangle((left, top, left + width - 1, top + height - 1), fill="black")
    objects = [{"name": name, "x": x, "y": y, "pixels": max(w, h), "size": "large"} for name, x, y, w, h in things]
    return {"image": picture, "scene": {"background": background, "objects": objects, "layout": "", "absent": None}}


SCENES = [
    scene(("cat", 56, 112, 90, 60), ("owl", 168, 112, 40, 48)),
    scene(("dog", 168, 56, 48, 48), background="pink"),
    scene(("bee", 56, 56, 94, 94), ("ant", 168, 168, 52, 20)),
]


@pytest.fixture
def rows():
    return datasets.Dataset.from_list(SCENES, features=None).cast_column("image", datasets.Image())


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The intervals of such tiny data are of no interest."""
    monkeypatch.setattr("eval.intervals.bootstrap", functools.partial(bootstrap, samples=5))


def encoder():
    return ModelEncoder(make_model(vision="efficientnet"), make_processor(make_tokenizer()))


def test_boxes_are_those_of_the_drawings_where_the_model_sees_them():
    assert boxes_of(**SCENES[0]) == [(11, 82, 101, 142), (148, 88, 188, 136)]
    whole = boxes_in_view(**SCENES[0], processor=make_processor(make_tokenizer()))  # 32 x 32
    assert whole.shape == (2, 32, 32)
    assert whole[0].mean() == pytest.approx(90 * 60 / 224**2, abs=0.02)
    assert whole[1, 16, 24] and not whole[1, 16, 8]
    cropping = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 32, "width": 32}, do_center_crop=True)
    middle = boxes_in_view(**SCENES[0], processor=MPCLIPProcessor(cropping, make_tokenizer()))
    assert middle[0].any(axis=0).nonzero()[0].tolist() == list(range(13))  # up to (101 - 56) / 3.5
    empty = {**SCENES[1], "image": Image.new("RGB", (224, 224), BACKGROUNDS["pink"])}
    with pytest.raises(ValueError, match="no dog at 168, 56"):
        boxes_of(**empty)


def test_maps_that_know_the_answer_hit_and_others_do_not(rows, monkeypatch):
    def knowing(model, seen, segments):
        """Prompt 1 points at the dark box on the left, the others at the one on the right."""
        dark = torch.tensor(seen.pictures).mean(-1) < 0.2  # (B, 1, H, W)
        left = dark & (torch.arange(32) < 16)
        right = dark & (torch.arange(32) >= 16)
        return torch.stack([left, right, right], dim=2).float()

    monkeypatch.setattr("mpclip.maps.kinds.MAPS", {"value": knowing, "attention": lambda *args: 1 - knowing(*args)})
    task = Pointing()
    task.kinds = ["value", "attention"]
    result = task.run(encoder(), rows, batch_size=2)
    assert result.primary == "value" and result.counts == {"images": 3, "objects": 5}
    assert result.items["hits_value"][:, 1].tolist() == [True, False, False, True, False]
    assert result.items["hits_value"][:, 2].tolist() == [False, True, True, False, True]
    assert result.metrics["value_prompt_1"] == 40 and result.metrics["value_prompt_2"] == 60
    assert result.items["largest"].tolist() == [True, False, True, True, False]
    assert result.metrics["largest"] == 60 and result.metrics["largest_several"] == 50
    shares = np.asarray([90 * 60, 40 * 48, 48 * 48, 94 * 94, 52 * 20]) / 224**2
    np.testing.assert_allclose(result.items["share"], shares, atol=0.02)
    assert result.metrics["attention"] < 60


def test_a_model_is_measured_and_items_give_the_metrics(rows):
    result = Pointing().run(encoder(), rows, batch_size=2)
    names = {f"{kind}{end}" for kind in KINDS for end in ("", "_several", "_prompt_1", "_prompt_2", "_prompt_3")}
    assert set(result.metrics) == names | {"chance", "chance_several", "largest", "largest_several"}
    assert Pointing.metrics_of(result.items, np.ones(3, dtype=int)) == result.metrics
    twice = Pointing.metrics_of(result.items, np.asarray([0, 3, 0]))  # the scene of one object alone
    assert twice["chance"] == pytest.approx(100 * result.items["share"][2]) and np.isnan(twice["value_several"])
    assert set(bootstrap(Pointing.metrics_of, result.items, 3, samples=5)) == set(result.intervals)
    again = Pointing().run(encoder(), rows, batch_size=3)  # batches do not matter
    assert all((again.items[name] == values).all() for name, values in result.items.items())


def test_texts_of_objects():
    scenes = [one["scene"] for one in SCENES[:1]]
    assert [question.text for question in questions_of(scenes, "There is {}.")] == ["There is a cat.", "There is an owl."]
    assert [question.text for question in questions_of(scenes, "{name}")] == ["cat", "owl"]


def test_what_cannot_be_measured_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match=r"--template 'a dog' has no \{\}"):
        Pointing(type("Options", (), {"template": "a dog", "kinds": None}))
    peer = PeerEncoder(make_model(), None, "clip")
    with pytest.raises(ValueError, match="clip is a MPCLIPModel; maps are drawn of MP-CLIP checkpoints alone"):
        Pointing().run(peer, rows)
    (tmp_path / "photos").mkdir()
    SCENES[0]["image"].save(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "metadata.jsonl").write_text('{"file_name": "0.png", "captions": ["a cat"]}\n')
    with pytest.raises(ValueError, match="no column scene; expected a folder of OpenMoji scenes"):
        Pointing().load(str(tmp_path / "photos"), "train")
