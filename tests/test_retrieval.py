"""The task `retrieval`, from pictures and captions to the result."""

import argparse
import functools

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from tiny_pictures import records, write_folder

import eval.__main__
from eval.compare import compare
from eval.intervals import bootstrap
from eval.metrics import RECALLS
from eval.query_grid import WRONG
from eval.result import load_items
from eval.tasks.retrieval import Retrieval, first_fold, measure, recalls_of, write_grid
from model_card.evaluation import Measured, all_measured
from mpclip.data.joined_captions import joined, with_joined_captions
from mpclip.encoding import Encoder

COUNT = 9  # pictures


class ColourEncoder(Encoder):
    """Embeds a picture as its mean colour and a text as the colour it spells; what is not a number is no colour."""

    name, device = "some/model", torch.device("cpu")

    def embed_texts(self, texts):
        colours = torch.tensor([[int(word.strip(".")) for word in text.split()[:3]] for text in texts])  # (B, 3)
        return torch.nn.functional.normalize(colours.float(), dim=1)

    def embed_images(self, images):
        pixels = torch.from_numpy(np.stack([np.asarray(image.resize((4, 4)), dtype=np.float32) for image in images]))
        return torch.nn.functional.normalize(pixels.mean(dim=(1, 2)), dim=1)  # (B, 3)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    for module in ("eval.intervals", "eval.compare"):
        monkeypatch.setattr(f"{module}.bootstrap", functools.partial(bootstrap, samples=50))


def colours(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, 3))


def rows_of(captions: list[list[str]]) -> datasets.Dataset:
    """Pictures of `colours`, with these captions."""
    images = [PIL.Image.new("RGB", (6, 6), tuple(map(int, colour))) for colour in colours(len(captions))]
    return datasets.Dataset.from_dict({"image": images, "captions": captions})


def spelt(spoiled: int = 0) -> list[list[str]]:
    """One to three right captions for each picture; the first `spoiled` pictures have the first caption of the last one."""
    captions = [[" ".join(map(str, colour)) + " 1" * n for n in range(1 + i % 3)] for i, colour in enumerate(colours())]
    return [[f" {captions[-1][0]} ."] if i < spoiled else row for i, row in enumerate(captions)]


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    Retrieval.add_options(parser)
    return parser.parse_args(list(words))


def test_a_right_model(tmp_path):
    result = Retrieval(options()).run(ColourEncoder(), rows_of(spelt()), batch_size=4)
    assert result.primary == "mean_recall"
    ways = [f"{way}_{name}" for way in ("t2i", "i2t") for name in ("R@1", "R@5", "R@10", "mAP@R")]
    assert {result.metrics[name] for name in [*ways, "mean_recall"]} == {100.0}
    assert {result.metrics[f"{way}_{kind}_rank"] for way in ("t2i", "i2t") for kind in ("median", "mean")} == {1.0}
    assert len(result.metrics) == 13 and result.intervals.keys() == result.metrics.keys()
    assert result.counts == {"images": COUNT, "captions": 18, "recurring_captions": 0}
    result.save(tmp_path / "out.json")
    items = load_items(tmp_path / "out.json")
    assert Retrieval.units(items) == COUNT
    assert items["caption_image"].tolist() == [i for i in range(COUNT) for _ in range(1 + i % 3)]


@pytest.mark.parametrize("folds", ["1", "3"])
@pytest.mark.parametrize("spoiled", [0, 4])
def test_saved_items_give_the_metrics_again(tmp_path, folds, spoiled):
    result = Retrieval(options("--folds", folds)).run(ColourEncoder(), rows_of(spelt(spoiled)), batch_size=4)
    result.save(tmp_path / "out.json")
    items = load_items(tmp_path / "out.json")
    assert Retrieval.metrics_of(items, np.ones(Retrieval.units(items), int)) == result.metrics
    assert result.intervals.keys() == result.metrics.keys()
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high


def test_a_recurring_caption_is_right_for_all_its_pictures():
    """Four pictures have the caption of the last one: it finds that one, which is right for them by the words alone."""
    result = Retrieval(options()).run(ColourEncoder(), rows_of(spelt(4)), batch_size=4)
    assert result.counts["recurring_captions"] == 5  # differences of case, spaces and punctuation do not count
    assert result.metrics["t2i_R@1"] < 100 == result.metrics["t2i_R@1_recurring_right"]
    assert result.metrics["mean_recall"] < result.metrics["mean_recall_recurring_right"]
    embeds = {
        "image_embeds": torch.eye(2),
        "text_embeds": torch.eye(2).flip(0),
        "caption_image": torch.arange(2),
    }
    assert measure(embeds, ["a dog", "A dog."]).metrics["mean_recall_recurring_right"] == 100
    assert "mean_recall_recurring_right" not in measure(embeds, ["a dog", "a cat"]).metrics
    assert measure(embeds).counts == {"images": 2, "captions": 2}  # without captions nothing is known of their words


def test_folds_are_counted_and_search_less():
    rows = rows_of(spelt(4))
    whole = Retrieval(options()).run(ColourEncoder(), rows, batch_size=4)
    parts = Retrieval(options("--folds", "3")).run(ColourEncoder(), rows, batch_size=4)
    assert parts.counts["folds"] == 3 and "folds" not in whole.counts
    assert parts.items["fold"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert parts.items["text_rank"].max() <= 3 < whole.items["text_rank"].max()
    # Those of pictures 0 to 2 are in one fold. Pictures 3 and 8, which have the same words, are alone with them in theirs.
    assert parts.counts["recurring_captions"] == 3


def test_more_folds_than_pictures_are_refused_before_the_model_runs(tmp_path):
    rows_of(spelt()).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"--folds 10: .*data, split 'train' has only 9 pictures"):
        Retrieval(options("--folds", "10")).load(str(tmp_path / "data"), "train")
    with pytest.raises(SystemExit):
        options("--folds", "0")


def test_the_grid_shows_the_first_fold(tmp_path):
    rows = rows_of(spelt())
    generator = torch.Generator().manual_seed(0)
    owner = torch.tensor([i for i in range(COUNT) for _ in range(1 + i % 3)])
    embeds = {
        "image_embeds": torch.randn(COUNT, 3, generator=generator),
        "text_embeds": torch.randn(len(owner), 3, generator=generator),
        "caption_image": owner,
    }
    part, its = first_fold(rows, embeds, 2)
    assert len(part) == len(its["image_embeds"]) == 5 and its["caption_image"].tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4]
    assert torch.equal(its["text_embeds"], embeds["text_embeds"][:9])
    whole, same = first_fold(rows, embeds, 1)
    assert len(whole) == COUNT and all(torch.equal(same[name], embeds[name]) for name in embeds)
    Retrieval(options("--folds", "2", "--grid", str(tmp_path / "grid.png"))).run(ColourEncoder(), rows, batch_size=4)
    assert PIL.Image.open(tmp_path / "grid.png").width > 500


@pytest.mark.parametrize("captions, marked", [(["a dog", "A dog."], False), (["a dog", "a cat"], True)])
def test_a_picture_of_the_same_words_is_not_marked_as_wrong(tmp_path, captions, marked):
    """Each caption finds the other picture first."""
    embeds = {"image_embeds": torch.eye(2), "text_embeds": torch.eye(2).flip(0), "caption_image": torch.arange(2)}
    write_grid(rows_of([[caption] for caption in captions]), embeds, tmp_path / "grid.png")
    drawn = np.asarray(PIL.Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    red_orange = tuple(int(WRONG[at : at + 2], 16) for at in (1, 3, 5))
    assert (np.abs(drawn - red_orange).max(axis=2) < 3).any() == marked


def test_recalls_of_a_result_are_by_direction():
    result = Retrieval(options()).run(ColourEncoder(), rows_of(spelt(4)), batch_size=4)
    recalls, intervals = recalls_of(result.to_json())
    for way, short in (("text_to_image", "t2i"), ("image_to_text", "i2t")):
        assert recalls[way] == {f"R@{k}": result.metrics[f"{short}_R@{k}"] for k in RECALLS}
        assert intervals[way] == {f"R@{k}": result.intervals[f"{short}_R@{k}"] for k in RECALLS}


def saved(folder, folds: str) -> str:
    """The JSON of a result, as the command writes it."""
    result = Retrieval(options("--folds", folds)).run(ColourEncoder(), rows_of(spelt(4)), batch_size=4)
    result.origin = {"model": folder.name, "data": "squares", "split": "test"}
    result.save(folder / f"{folds}.json")
    return str(folder / f"{folds}.json")


def test_results_with_and_without_folds_are_told_apart(tmp_path):
    files = [saved(tmp_path, folds) for folds in ("1", "3")]
    with pytest.raises(ValueError, match="the results differ in folds None and 3"):
        compare(*files, eval.__main__.task_class)
    whole, parts = all_measured(Measured(tmp_path, "you/mine"), {}, {}, files)  # a card has both
    assert whole.mean_recall < parts.mean_recall
    assert parts.name() == ["`squares`", "`test`, mean over 3 folds"] and whole.name() == ["`squares`", "`test`"]
    assert whole.for_index() and not parts.for_index()  # the Hub's index has no place for the number of folds


def test_two_models_are_compared_on_the_same_pictures(tmp_path):
    """All metrics, those of recurring captions included, have a paired difference; a model does not differ from itself."""
    (tmp_path / "other").mkdir()
    shown = compare(saved(tmp_path, "3"), saved(tmp_path / "other", "3"), eval.__main__.task_class)
    assert shown.count("+0.0 (+0.0 to +0.0)") == 22  # 13, and 9 with recurring captions


def test_retrieval_loads_one_text_per_picture(tmp_path):
    write_folder(tmp_path, records(4))
    rows, alone = (Retrieval(options(*words)).load(tmp_path, "train") for words in (["--captions_joined", "2"], []))
    assert rows["captions"][:] == [[joined(captions, 2)] for captions in alone["captions"][:]]
    assert rows[1]["image"].tobytes() == alone[1]["image"].tobytes() and rows[1]["image"].mode == "RGB"


def test_retrieval_by_joined_captions():
    rows = with_joined_captions(rows_of(spelt()), 3)
    assert [len(row) for row in rows["captions"][:]] == [1] * COUNT and rows["image"][0].size == (6, 6)
    result = Retrieval(options("--captions_joined", "3")).run(ColourEncoder(), rows)
    assert result.counts == {"images": COUNT, "captions": COUNT, "recurring_captions": 0, "captions_joined": 3}
    assert result.metrics["mean_recall"] == 100.0
