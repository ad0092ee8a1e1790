"""Retrieval metrics against a reference that counts one pair at a time, and the command that measures a model."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from colour_model import ColourEncoder, coloured_rows
from transformers import EvalPrediction

import eval.__main__
from eval.metrics import (
    recalls,
    retrieval_compute_metrics,
    retrieval_metrics,
    retrieval_ranks,
    top_images,
)
from eval.query_grid import query_grid
from eval.result import load_items
from eval.tasks import differences, retrieval
from eval.tasks.differences import count_mistakes

IMAGES, WIDTH = 23, 16


def make_embeds(seed: int = 0, captions_per_image: int = 3) -> dict[str, torch.Tensor]:
    """Texts that lie near their images, in no order; every image has at least one."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(IMAGES).repeat(captions_per_image)
    owner = torch.cat([owner, torch.randint(IMAGES, (5,), generator=generator)])
    owner = owner[torch.randperm(len(owner), generator=generator)]  # (T,)
    images = torch.randn(IMAGES, WIDTH, generator=generator)
    texts = images[owner] + 1.5 * torch.randn(len(owner), WIDTH, generator=generator)
    return {
        "image_embeds": torch.nn.functional.normalize(images, dim=1),
        "text_embeds": torch.nn.functional.normalize(texts, dim=1),
        "caption_image": owner,
    }


def reference_ranks(image_embeds, text_embeds, caption_image) -> tuple[list[int], list[int]]:
    """Both ranks by their definition."""
    scores = text_embeds.double() @ image_embeds.double().T  # (T, I)
    owner = caption_image.tolist()
    near = 1e-6
    text_ranks = [
        1 + sum(bool(scores[t, i] >= scores[t, own] - near) for i in range(len(image_embeds)) if i != own)
        for t, own in enumerate(owner)
    ]
    image_ranks = []
    for i in range(len(image_embeds)):
        best = max(scores[t, i] for t, own in enumerate(owner) if own == i)
        image_ranks.append(1 + sum(bool(scores[t, i] >= best - near) for t, own in enumerate(owner) if own != i))
    return text_ranks, image_ranks


# Metrics


@pytest.mark.parametrize("seed", range(4))
def test_ranks_equal_the_reference(seed):
    embeds = make_embeds(seed)
    text_ranks, image_ranks = retrieval_ranks(**embeds)
    assert (text_ranks.tolist(), image_ranks.tolist()) == reference_ranks(**embeds)
    assert len(set(text_ranks.tolist())) > 3  # the example is neither trivial nor hopeless


def test_ranks_with_ties_equal_the_reference():
    embeds = make_embeds()
    embeds["image_embeds"][5:9] = embeds["image_embeds"][4]
    embeds["text_embeds"][10:20] = embeds["text_embeds"][30]
    text_ranks, image_ranks = retrieval_ranks(**embeds)
    assert (text_ranks.tolist(), image_ranks.tolist()) == reference_ranks(**embeds)


@pytest.mark.parametrize("chunk", [1, 7, 23, 64])
def test_chunks_change_nothing(chunk):
    embeds = make_embeds()
    for whole, in_chunks in zip(retrieval_ranks(**embeds), retrieval_ranks(**embeds, chunk=chunk), strict=True):
        np.testing.assert_array_equal(whole, in_chunks)
    top = top_images(embeds["image_embeds"], embeds["text_embeds"], 5, chunk)
    np.testing.assert_array_equal(top, top_images(embeds["image_embeds"], embeds["text_embeds"], 5))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("chunk", [16, 4096])
def test_constant_embeddings_find_nothing(value, chunk):
    """The width and counts are odd, so that the kernels of a matrix product round equal rows differently."""
    embeds = {
        "image_embeds": torch.full((37, 131), value),
        "text_embeds": torch.full((74, 131), value),
        "caption_image": torch.arange(74) // 2,
    }
    text_ranks, image_ranks = retrieval_ranks(**embeds, chunk=chunk)
    assert text_ranks.tolist() == [37] * 74
    assert image_ranks.tolist() == [73] * 37  # behind the 72 texts of other images
    assert retrieval_metrics(**embeds)["mean_recall"] == 0


def test_any_caption_finds_an_image():
    """Image 0 is found by its second caption; its first, which is better than nothing, is no wrong answer either."""
    images = torch.eye(2)
    texts = torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.5, 1.0]])
    metrics = retrieval_metrics(images, texts, torch.tensor([0, 0, 1]))
    assert metrics["image_to_text"]["R@1"] == 100
    assert metrics["text_to_image"] == {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0}
    assert metrics["mean_recall"] == 100


def test_recalls_are_percent():
    metrics = recalls(np.array([1, 2, 6, 11]), np.array([1, 1, 5, 10]))
    assert metrics["text_to_image"] == {"R@1": 25.0, "R@5": 50.0, "R@10": 75.0}
    assert metrics["image_to_text"] == {"R@1": 50.0, "R@5": 75.0, "R@10": 100.0}
    assert metrics["mean_recall"] == pytest.approx(375 / 6)


def test_numpy_and_half_precision_are_accepted():
    embeds = make_embeds()
    arrays = {name: value.numpy() for name, value in embeds.items()}
    assert retrieval_metrics(**arrays) == retrieval_metrics(**embeds)
    halves = embeds | {name: embeds[name].bfloat16() for name in ("image_embeds", "text_embeds")}
    assert retrieval_metrics(**halves)["mean_recall"] == pytest.approx(retrieval_metrics(**embeds)["mean_recall"], abs=5)


def test_bad_embeddings_are_refused():
    embeds = make_embeds()
    embeds["text_embeds"][[3, 8], 2] = torch.nan
    with pytest.raises(ValueError, match=r"text_embeds: 2 of 74 rows .* first \[3, 8\]"):
        retrieval_metrics(**embeds)
    embeds = make_embeds()
    with pytest.raises(ValueError, match=r"expected 0 to 21"):
        retrieval_metrics(embeds["image_embeds"][:-1], embeds["text_embeds"], embeds["caption_image"])
    with pytest.raises(ValueError, match="1 of 24 images have no text"):
        more = torch.cat([embeds["image_embeds"], embeds["image_embeds"][:1]])
        retrieval_metrics(more, embeds["text_embeds"], embeds["caption_image"])
    with pytest.raises(ValueError, match="one image index per text"):
        retrieval_metrics(embeds["image_embeds"], embeds["text_embeds"], embeds["caption_image"][:-1])
    with pytest.raises(ValueError, match="one width D"):
        retrieval_metrics(embeds["image_embeds"][:, :-1], embeds["text_embeds"], embeds["caption_image"])
    with pytest.raises(ValueError, match="at least one row"):
        retrieval_metrics(embeds["image_embeds"][:0], embeds["text_embeds"], embeds["caption_image"])


def test_compute_metrics_equals_direct():
    embeds = make_embeds()
    arrays = tuple(embeds[name].numpy() for name in ("image_embeds", "text_embeds", "caption_image"))
    by_name = retrieval_compute_metrics(EvalPrediction(arrays, None))
    direct = retrieval_metrics(**embeds)
    assert set(by_name) == {f"{way}_R@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)} | {"mean_recall"}
    assert by_name["t2i_R@1"] == direct["text_to_image"]["R@1"]
    assert by_name["i2t_R@5"] == direct["image_to_text"]["R@5"]
    assert by_name["mean_recall"] == direct["mean_recall"]
    with pytest.raises(ValueError, match="three arrays"):
        retrieval_compute_metrics(EvalPrediction(arrays[:2], None))


# The command


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A data set on disk, and a model that loads from any name."""
    loaded = []

    def load_encoder(*arguments, **options):
        loaded.append((arguments, options))
        return ColourEncoder()

    monkeypatch.setattr("mpclip.encoding.load_encoder", load_encoder)
    coloured_rows().save_to_disk(tmp_path / "data")
    return SimpleNamespace(data=str(tmp_path / "data"), out=tmp_path / "out", loaded=loaded)


def test_command(saved, capsys):
    out, grid = saved.out / "new/result.json", saved.out / "grid.png"
    arguments = ["retrieval", "--model", "some/model", "--data", saved.data, "--split", "train", "--dtype", "bfloat16"]
    eval.__main__.main([*arguments, "--json", str(out), "--grid", str(grid), "--batch_size", "4", "--device", "cpu"])
    assert saved.loaded == [(("some/model", "bfloat16", "cpu"), {})]
    printed = capsys.readouterr().out
    assert "18 captions" in printed and "9 images" in printed and "mean recall *" in printed and "100.0" in printed

    result = json.loads(out.read_text())
    assert result["task"] == "retrieval" and result["primary"] == "mean_recall"
    assert result["metrics"]["t2i_R@1"] == 100 and result["metrics"]["mean_recall"] == 100
    assert result["intervals"]["i2t_R@5"] == [100, 100]
    assert (result["images"], result["captions"], result["model"], result["split"]) == (9, 18, "some/model", "train")
    assert {"date", "seconds", "limit", "dtype"} < set(result)
    assert {"cpu", "cores", "torch", "transformers"} <= set(result["machine"])
    assert result["command"].startswith("python -m eval retrieval --model some/model")
    assert retrieval.recalls_of(result)[0]["text_to_image"] == {"R@1": 100, "R@5": 100, "R@10": 100}
    items = load_items(out)
    assert items["text_rank"].tolist() == [1] * 18 and items["image_rank"].tolist() == [1] * 9
    assert items["caption_image"].tolist() == [i for i in range(9) for _ in range(1 + i % 3)]
    assert PIL.Image.open(grid).width > 1000

    given = [saved.data, str(out), str(grid)]
    text = out.read_text()
    for path in given:
        text = text.replace(path, "")
    for path in (Path.cwd(), Path.home(), saved.out.parent):
        assert str(path) not in text


def test_limit_reaches_the_run(saved):
    arguments = ["retrieval", "--model", "m", "--data", saved.data, "--split", "train", "--json", str(saved.out / "x.json")]
    eval.__main__.main([*arguments, "--limit", "4"])
    assert json.loads((saved.out / "x.json").read_text())["images"] == 4


def test_what_the_user_can_mend_is_one_line(saved, monkeypatch):
    arguments = ["--model", "m", "--data", saved.data, "--split", "train", "--json", str(saved.out / "x.json")]
    with pytest.raises(SystemExit, match=r"^python -m eval retrieval: .* has no split 'tests'"):
        eval.__main__.main(["retrieval", *arguments, "--split", "tests"])
    with pytest.raises(
        SystemExit, match=r"^python -m eval differences: .* has no column family and no scene; expected a folder"
    ):
        eval.__main__.main(["differences", *arguments])

    def load_encoder(*_, **__):
        raise OSError("no such model\nin two lines")

    monkeypatch.setattr("mpclip.encoding.load_encoder", load_encoder)
    with pytest.raises(SystemExit, match=r"^python -m eval retrieval: no such model in two lines$"):
        eval.__main__.main(["retrieval", *arguments])


def test_a_device_that_is_not_there(capsys):
    for name in ("foo", "cuda:99"):
        with pytest.raises(SystemExit):
            eval.__main__.main(["retrieval", "--device", name])
        assert f"device {name!r} cannot be used; this machine has cpu" in capsys.readouterr().err


def test_help_and_unknown_task(capsys):
    with pytest.raises(SystemExit):
        eval.__main__.main(["--help"])
    shown = capsys.readouterr().out
    assert "retrieval" in shown and "differences" in shown and "mpclip eval retrieval --model" in shown
    with pytest.raises(SystemExit) as stopped:
        eval.__main__.main(["retreival"])
    assert stopped.value.code == 2
    assert "invalid choice: 'retreival' (choose from 'retrieval', 'differences', " in capsys.readouterr().err.replace('"', "'")
    with pytest.raises(SystemExit):
        eval.__main__.main(["retrieval", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Python files are run" in shown and "--grid" in shown and "A tie counts against the model" in shown


def test_results_of_the_first_form_are_read():
    ways = {"text_to_image": {"R@1": 1.0}, "image_to_text": {"R@1": 2.0}}
    assert retrieval.recalls_of(ways | {"interval_95": {"text_to_image": {"R@1": [0, 2]}}}) == (
        ways,
        {"text_to_image": {"R@1": [0, 2]}},
    )
    with pytest.raises(ValueError, match="no result of `python -m eval retrieval --json`: it has no 'metrics'"):
        retrieval.recalls_of({"rows": []})


# Mistakes on scenes


def test_mistakes_by_difference():
    """Five scenes; each text is given the image it finds."""

    def scene(background: str, name: str = "dog", size: str = "large") -> dict:
        return {
            "background": background,
            "layout": "center",
            "objects": [{"name": name, "size": size, "place": "center"}],
        }

    scenes = [scene("red"), scene("blue"), scene("blue", size="small"), scene("red"), scene("red", "cat")]
    rows = datasets.Dataset.from_dict({"scene": scenes, "family": [0, 0, 0, 0, 1]})
    finds = {0: 0, 1: 0, 2: 0, 3: 0, 4: 0}  # of text t of image t
    images = torch.eye(5)
    texts = torch.stack([images[found] + 0.5 * images[right] for right, found in finds.items()])
    owner = torch.arange(5)
    text_ranks, _ = retrieval_ranks(images, texts, owner)
    assert count_mistakes(images, texts, owner, text_ranks, rows) == {
        "background": 1,
        "several": 1,
        "none": 1,
        "other_scene": 1,
    }


def test_a_tie_is_a_mistake():
    rows = datasets.Dataset.from_dict({"scene": [{"background": "red"}] * 3, "family": [0, 1, 2]})
    images, owner = torch.ones(3, 2), torch.arange(3)
    text_ranks, _ = retrieval_ranks(images, images, owner)
    assert count_mistakes(images, images, owner, text_ranks, rows) == {"other_scene": 3}
    embeds = {"image_embeds": images, "text_embeds": images, "caption_image": owner}
    result = differences.measure(embeds, rows)
    assert {name: value for name, value in result.metrics.items() if value} == {"wrong_other_scene": 100.0}
    assert result.intervals["right"] == [0.0, 0.0] and result.intervals["wrong_other_scene"] == [100.0, 100.0]
    assert result.items["rank"].tolist() == [3, 3, 3]


# The picture


def test_query_grid(tmp_path):
    images = [PIL.Image.new("RGB", (40, 20 + 10 * i), (30 * i, 60, 120)) for i in range(7)]
    scores = np.eye(3, 7)
    queries = ["a query $ of _many_ words " * 12, "", "short"]
    query_grid(queries, images, scores, [0, 6, 2], tmp_path / "new" / "grid.png")
    drawn = np.asarray(PIL.Image.open(tmp_path / "new" / "grid.png").convert("RGB")).astype(int)
    for colour, there in (((0x1A, 0x8A, 0x3C), True), ((0xE0, 0x49, 0x1B), True), ((255, 0, 255), False)):
        assert (np.abs(drawn - colour).max(axis=2) < 3).any() == there
    with pytest.raises(ValueError, match=r"expected scores \(queries, images\)"):
        query_grid(queries, images, scores.T, [0, 6, 2], tmp_path / "grid.png")
