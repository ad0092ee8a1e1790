"""What each prompt adds, what segments have in common, and the task that reports it."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import COLORS
from sentence_helpers import save_checkpoint
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from eval.__main__ import main
from eval.metrics import retrieval_metrics
from eval.result import load_items
from eval.segment_profile import cosines, leanings, score_correlations
from eval.tasks.prompts import Prompts, measure, variants_of
from mpclip.encoding import PeerEncoder

K = 3


def make_embeds(seed: int = 0, images: int = 40) -> dict:
    """Two captions per image; segment 1 of three finds the image, segment 2 is noise, segment 3 lies between."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(images, K, 4, generator=generator)
    noise = torch.randn(2 * images, K, 4, generator=generator) * torch.tensor([0.3, 100.0, 1.0])[:, None]
    text = normalize(image.repeat_interleave(2, dim=0) + noise, dim=-1)  # (T, K, 4) segments of one length
    return {
        "image_embeds": normalize(image.flatten(1), dim=1),
        "text_embeds": normalize(text.flatten(1), dim=1),
        "caption_image": torch.arange(images).repeat_interleave(2),
    }


# What segments have in common


def test_cosines_of_segments():
    embeds = torch.tensor([[1.0, 0, 2, 0, 0, 3], [0, 1, 0, 5, 1, 1]])
    half = 1 / 2 + 1 / (2 * 2**0.5) - 1 / 2
    expected = torch.tensor([[1, 1, half], [1, 1, half], [half, half, 1]])
    torch.testing.assert_close(cosines(embeds, 3), expected)


def test_correlations_are_those_of_all_pairs():
    embeds = make_embeds()
    text, image = (embeds[name].unflatten(1, (K, -1)) for name in ("text_embeds", "image_embeds"))
    scores = torch.einsum("tkd,ikd->kti", text, image).flatten(1)  # (K, T * I)
    expected = np.corrcoef(scores.numpy())
    found = score_correlations(embeds["text_embeds"], embeds["image_embeds"], K)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alike = torch.cat([embeds["text_embeds"][:, :4]] * 2, dim=1), torch.cat([embeds["image_embeds"][:, :4]] * 2, dim=1)
    np.testing.assert_allclose(score_correlations(*alike, 2), np.ones((2, 2)), atol=1e-6)


def test_leanings():
    embeds = make_embeds()
    leaning = leanings(**embeds, K=K)
    scores = (embeds["text_embeds"] * embeds["image_embeds"][embeds["caption_image"]]).unflatten(1, (K, -1)).sum(-1)  # (T, K)
    standard = (scores - scores.mean(0)) / scores.std(0)
    torch.testing.assert_close(leaning.captions[:, 1], standard[:, 1] - (standard[:, 0] + standard[:, 2]) / 2)
    torch.testing.assert_close(leaning.pictures, leaning.captions.unflatten(0, (-1, 2)).mean(1))
    torch.testing.assert_close(leaning.share, scores.mean(0) / scores.sum(1).mean())


# The metrics


def test_the_sets_of_segments():
    assert variants_of(1) == {"all": [0]}
    assert variants_of(2) == {"all": [0, 1], "alone_1": [0], "alone_2": [1]}  # without one is the other alone
    assert variants_of(3) == {
        "all": [0, 1, 2],
        **{"alone_1": [0], "alone_2": [1], "alone_3": [2]},
        **{"without_1": [1, 2], "without_2": [0, 2], "without_3": [0, 1]},
        "first_2": [0, 1],
    }


def test_metrics_are_recalls_and_those_of_the_items():
    embeds = make_embeds()
    result = measure(embeds, K)
    assert result.metrics["all"] == pytest.approx(retrieval_metrics(**embeds)["mean_recall"])
    first = {name: embeds[name][:, :4] for name in ("image_embeds", "text_embeds")}
    alone = retrieval_metrics(normalize(first["image_embeds"]), normalize(first["text_embeds"]), embeds["caption_image"])
    assert result.metrics["alone_1"] == pytest.approx(alone["mean_recall"])
    assert result.metrics["first_2"] == result.metrics["without_3"] != result.metrics["all"]
    assert result.metrics["alone_2"] < 30 < result.metrics["alone_3"] < result.metrics["alone_1"]
    assert result.metrics["without_1"] < result.metrics["all"] < result.metrics["without_2"]

    units = Prompts.units(result.items)
    assert units == 40 and Prompts.metrics_of(result.items, np.ones(units, int)) == result.metrics
    assert result.intervals.keys() == result.metrics.keys()
    for name, value in result.metrics.items():
        assert result.intervals[name][0] <= value <= result.intervals[name][1]
    counts = np.zeros(units, int)
    counts[[3, 5]] = 2, 1
    ranks = result.items["text_rank_all"], result.items["image_rank_all"]
    texts = np.array([[(ranks[0][t] <= k) for k in (1, 5, 10)] for t in (6, 6, 7, 7, 10, 11)]).mean(axis=0)
    images = np.array([[(ranks[1][i] <= k) for k in (1, 5, 10)] for i in (3, 3, 5)]).mean(axis=0)
    assert Prompts.metrics_of(result.items, counts)["all"] == pytest.approx(100 * np.mean([texts, images]))


def test_weights_are_fitted_on_the_other_split():
    result = measure(make_embeds(), K, fit=make_embeds(seed=1, images=30))
    fit = result.origin["fit"]
    assert fit["weights"][1] <= 0.25 and fit["pictures"] == 30 and np.shape(fit["curves"]) == (K, len(fit["values"]))
    assert result.metrics["fitted_gain"] == result.metrics["fitted"] - result.metrics["all"] > 0
    assert result.intervals["fitted_gain"][0] > 0
    assert Prompts.metrics_of(result.items, np.ones(40, int)) == result.metrics


# The command


def command(model, folder, out, *options) -> None:
    common = ["--data", str(folder / "data"), "--device", "cpu", "--dtype", "float32", "--json", str(out)]
    main(["prompts", *common, "--model", str(model), *options])


def test_the_command(folder, tmp_path, capsys):
    model = save_checkpoint(tmp_path / "model")
    grid = tmp_path / "grid.png"
    command(model, folder, tmp_path / "out.json", "--split", "train", "--fit_split", "validation", "--grid", str(grid))
    assert "fitted gain" in capsys.readouterr().out
    written = json.loads(Path(tmp_path / "out.json").read_text())
    prompts = written["prompts"]
    assert len(prompts["names"]) == len(prompts["highest"]) == len(prompts["share"]) == K == written["segments"]
    assert all(np.shape(prompts[name]) == (K, K) for name in ("cosine_of_texts", "cosine_of_pictures", "correlation_of_scores"))
    assert [len(one["captions"]) for one in prompts["highest"]] == [5] * K
    best = prompts["highest"][0]["pictures"][0]
    assert f"a {COLORS[best['row']]} square" in best["captions"]
    assert PIL.Image.open(grid).size[0] > 500
    items = load_items(tmp_path / "out.json")
    assert Prompts.metrics_of(items, np.ones(Prompts.units(items), int)) == written["metrics"]
    with pytest.raises(SystemExit, match="share 8 pictures, but weights must be chosen on other pictures"):
        command(model, folder, tmp_path / "again.json", "--split", "train", "--fit_split", "train")


def test_a_single_prompt_has_a_recall_and_a_message(folder, tmp_path):
    """Also after a model of three prompts, with which it is compared; each has its own grid."""
    several, one = save_checkpoint(tmp_path / "several"), save_checkpoint(tmp_path / "one", num_prompts=1)
    grid = tmp_path / "grid.png"
    with pytest.warns(UserWarning, match="one has a single prompt, or segments that read all prompts"):
        command(
            several, folder, tmp_path / "out", str(one), "--split", "train", "--fit_split", "validation", "--grid", str(grid)
        )
    written = json.loads((tmp_path / "out" / "one.json").read_text())
    assert written["metrics"].keys() == {"all"} == written["against"]["differences"].keys()
    assert written["prompts"]["correlation_of_scores"] == [[1.0]]
    assert len(list(tmp_path.glob("grid*.png"))) == 2


def test_other_models_have_no_prompts(folder):
    task = Prompts()
    small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    peer = CLIPModel(
        CLIPConfig(text_config=small | {"vocab_size": 16}, vision_config=small | {"image_size": 8, "patch_size": 4})
    )
    with pytest.raises(ValueError, match="a peer has no prompts, so there is nothing to compare"):
        task.run(PeerEncoder(peer, None, "a peer"), task.load(str(folder / "data"), "train"))
