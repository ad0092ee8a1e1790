"""Every metric of retrieval against a plain implementation of its definition, which sorts one query's answers at a time."""

import statistics

import numpy as np
import pytest
import torch

from eval.intervals import bootstrap
from eval.metrics import contents_of, recalls, retrieval_items, retrieval_measures, retrieval_ranks
from eval.metrics.ranks import FEW, pair_ranks, validated
from eval.metrics.retrieval import average_precision, pairs_of_contents, query_measures

IMAGES = 30


def near_embeds(seed: int, captions: int = 4) -> dict[str, torch.Tensor]:
    """Texts near their images, in no order, one to `captions` of each; no ties."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.cat([torch.arange(IMAGES), torch.randint(IMAGES, (IMAGES * (captions - 1),), generator=generator)])
    owner = owner[torch.randperm(len(owner), generator=generator)]  # (T,)
    images = torch.randn(IMAGES, 8, generator=generator)
    texts = images[owner] + 1.5 * torch.randn(len(owner), 8, generator=generator)
    return {"image_embeds": images, "text_embeds": texts, "caption_image": owner}


def tied_embeds(seed: int, captions: int = 4) -> dict[str, torch.Tensor]:
    """Small whole numbers: many scores are equal, and all are exact."""
    embeds = near_embeds(seed, captions)
    return embeds | {name: (embeds[name] / 2).round()[:, :3] for name in ("image_embeds", "text_embeds")}


def constant_embeds(seed: int, captions: int = 4) -> dict[str, torch.Tensor]:
    embeds = near_embeds(seed, captions)
    return embeds | {name: torch.ones(len(embeds[name]), 5) for name in ("image_embeds", "text_embeds")}


KINDS = [near_embeds, tied_embeds, constant_embeds]


def plain_queries(embeds: dict, words: list[str], ties_against: bool = True) -> dict[str, list[list[bool]]]:
    """For each query of both directions all answers, best first, True for a right one; in a tie wrong ones come first.

    Args:
        embeds: as of `near_embeds`.
        words: T texts; a text is right for all images that have one of the same words.
        ties_against: False lets right answers come first in a tie.
    """
    scores = (embeds["text_embeds"].double() @ embeds["image_embeds"].double().T).tolist()
    owner = embeds["caption_image"].tolist()
    right = {
        (text, image) for text, said in enumerate(words) for image, other in zip(owner, words, strict=True) if said == other
    }

    def answers(pairs: list[tuple[int, int]]) -> list[bool]:
        ordered = sorted(pairs, key=lambda pair: (-scores[pair[0]][pair[1]], (pair in right) == ties_against))
        return [pair in right for pair in ordered]

    texts, images = range(len(owner)), range(len(embeds["image_embeds"]))
    return {
        "t2i": [answers([(text, image) for image in images]) for text in texts],
        "i2t": [answers([(text, image) for text in texts]) for image in images],
    }


def plain_measures(queries: dict[str, list[list[bool]]]) -> dict[str, float]:
    """The metrics by their definitions. The rank leaves out right answers that come later, and other right ones before it."""
    measured = {}
    for way, lists in queries.items():
        ranks = [answers.index(True) + 1 for answers in lists]
        for k in (1, 5, 10):
            measured[f"{way}_R@{k}"] = 100 * sum(any(answers[:k]) for answers in lists) / len(lists)
        measured[f"{way}_median_rank"] = statistics.median(ranks)
        measured[f"{way}_mean_rank"] = statistics.mean(ranks)
        of_query = []
        for answers in lists:
            R = sum(answers)
            of_query.append(sum(sum(answers[: place + 1]) / (place + 1) for place in range(R) if answers[place]) / R)
        measured[f"{way}_mAP@R"] = 100 * statistics.mean(of_query)
    measured["mean_recall"] = statistics.mean(value for name, value in measured.items() if "R@" in name and "mAP" not in name)
    return measured


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("captions", [1, 4, FEW + 3])
def test_metrics_equal_their_definitions(kind, captions):
    for seed in range(2):
        embeds = kind(seed, captions)
        items = retrieval_items(**embeds)
        measured = retrieval_measures(items, np.ones(IMAGES, int))
        words = [f"of {image}" for image in embeds["caption_image"].tolist()]
        assert measured == pytest.approx(plain_measures(plain_queries(embeds, words)), abs=1e-4)
        assert measured["mean_recall"] == pytest.approx(
            recalls(*retrieval_ranks(**embeds))["mean_recall"]
        )  # as training measures it
        if kind is constant_embeds and captions == 1:
            assert measured["mean_recall"] == 0 and measured["t2i_median_rank"] == IMAGES


@pytest.mark.parametrize("kind", KINDS)
def test_recurring_captions_equal_their_definition(kind):
    embeds = kind(5)
    owner = embeds["caption_image"].tolist()
    words = [f"of {image}" for image in owner]
    for text in (0, 7, 20, 21):
        words[text] = "two dogs play"
    words[3] = words[33] = "a dog"
    items = retrieval_items(**embeds, contents=contents_of(words))
    measured = retrieval_measures(items, np.ones(IMAGES, int))
    plain = plain_measures(plain_queries(embeds, words))
    for name, value in plain.items():
        if not name.endswith("_rank"):
            assert measured[f"{name}_recurring_right"] == pytest.approx(value, abs=1e-4)
    own = retrieval_measures(retrieval_items(**embeds), np.ones(IMAGES, int))
    assert {name: measured[name] for name in own} == own  # the plain numbers beside are those without recurring captions
    assert items["recurring"].sum() == len({owner[t] for t in (0, 7, 20, 21)}) + 2
    assert "text_rank_recurring_right" not in retrieval_items(**embeds, contents=np.arange(len(owner)))


def test_many_recurring_captions_equal_their_definition():
    """As in data with a caption per class: each query has more right answers than are counted one after the other."""
    embeds = tied_embeds(1, captions=1)
    words = [str(text % 2) for text in range(IMAGES)]
    measured = retrieval_measures(retrieval_items(**embeds, contents=contents_of(words)), np.ones(IMAGES, int))
    plain = plain_measures(plain_queries(embeds, words))
    assert {name: measured[f"{name}_recurring_right"] for name in plain if not name.endswith("_rank")} == pytest.approx(
        {name: value for name, value in plain.items() if not name.endswith("_rank")}, abs=1e-4
    )


@pytest.mark.parametrize("chunk", [5, 16])
def test_blocks_change_nothing(chunk):
    images, texts, owner = validated(*tied_embeds(1).values())
    pairs = pairs_of_contents(np.arange(len(owner)) % 3, owner.numpy(), np.zeros(IMAGES, int))  # wide
    for text, image in ((torch.arange(len(owner)), owner), map(torch.from_numpy, pairs)):
        for whole, in_blocks in zip(
            pair_ranks(images, texts, text, image), pair_ranks(images, texts, text, image, chunk), strict=True
        ):
            np.testing.assert_array_equal(whole, in_blocks)


@pytest.mark.parametrize("captions", [1, FEW + 3])
def test_embeddings_of_zeros_find_nothing(captions):
    """All scores tie, and their rounding error is zero as well."""
    owner = torch.arange(4).repeat(captions)
    text_ranks, image_ranks = retrieval_ranks(torch.zeros(4, 2), torch.zeros(len(owner), 2), owner)
    assert set(text_ranks) == {4} and set(image_ranks) == {1 + 3 * captions}


def test_average_precision_of_an_example():
    """Right answers at the places 1, 3 and 4 of R = 3: (1/1 + 2/3) / 3. At 2 of R = 1: 0. At 1 and 2 of R = 2: 1."""
    ranks, query = np.array([2, 1, 2, 2, 1, 1]), np.array([0, 0, 0, 1, 2, 2])
    assert average_precision(ranks, query, 3).tolist() == pytest.approx([5 / 9, 0, 1])


def test_words_tell_what_recurs():
    texts = ["Two dogs play .", " two  dogs, play", "Two dogs played.", "?", "!", "दो कुत्ते", "दो कुत्ता", "STRASSE", "straße"]
    assert contents_of(texts).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 6]


def test_captions_recur_within_a_fold():
    owner, fold = np.array([0, 0, 1, 2, 3]), np.array([0, 0, 1, 1])
    pairs = pairs_of_contents([9, 9, 9, 9, 4], owner, fold)
    assert pairs.T.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1], [3, 2], [4, 3]]
    with pytest.raises(ValueError, match=r"contents \(2,\): expected a number per text, \(5,\)"):
        pairs_of_contents([1, 2], owner, fold)


# Folds


@pytest.mark.parametrize("kind", KINDS)
def test_folds_are_means_over_parts(kind):
    embeds = kind(2)
    owner = embeds["caption_image"]
    words = [f"of {image}" for image in owner.tolist()]
    for text in range(0, len(words), 3):
        words[text] = "a dog"
    ones = np.ones(IMAGES, int)
    items = retrieval_items(**embeds, contents=contents_of(words), folds=4)
    parts = []
    for images in np.array_split(np.arange(IMAGES), 4):
        here = (owner >= images[0]) & (owner <= images[-1])
        part = {
            "image_embeds": embeds["image_embeds"][images],
            "text_embeds": embeds["text_embeds"][here],
            "caption_image": owner[here] - images[0],
        }
        contents = contents_of([said for said, inside in zip(words, here, strict=True) if inside])
        parts.append(retrieval_measures(retrieval_items(**part, contents=contents), ones[: len(images)]))
    assert np.bincount(items["fold"]).tolist() == [8, 8, 7, 7]
    expected = {name: statistics.mean(part[name] for part in parts) for name in parts[0]}
    assert retrieval_measures(items, ones) == pytest.approx(expected)
    if kind is near_embeds:  # a smaller collection is easier
        assert expected["mean_recall"] > retrieval_measures(retrieval_items(**embeds), ones)["mean_recall"] + 5


def test_a_number_of_folds_that_does_not_fit():
    for folds in (0, IMAGES + 1):
        with pytest.raises(ValueError, match=rf"{folds} folds of 30 images: expected 1 to 30"):
            retrieval_items(**near_embeds(0), folds=folds)


# Draws


@pytest.mark.parametrize("folds", [1, 3])
def test_an_image_drawn_twice_counts_twice(folds):
    """Counts give what copies of the queries' ranks would give."""
    embeds = near_embeds(4)
    items = retrieval_items(**embeds, folds=folds)
    counts = np.random.default_rng(0).integers(0, 4, IMAGES)
    measured = retrieval_measures(items, counts)
    fold = items.get("fold", np.zeros(IMAGES, int))
    drawn = {
        "t2i": (items["text_rank"], items["text_rank"] == 1, items["caption_image"]),
        "i2t": (items["image_rank"], items["image_precision"], np.arange(IMAGES)),
    }
    for way, (ranks, precision, image) in drawn.items():
        medians, means, shares = [], [], []
        for number in range(folds):
            times = counts[image] * (fold[image] == number)
            medians.append(np.median(ranks.repeat(times)))
            means.append(ranks.repeat(times).mean())
            shares.append(100 * precision.repeat(times).mean())
        assert measured[f"{way}_median_rank"] == np.mean(medians)
        assert measured[f"{way}_mean_rank"] == pytest.approx(np.mean(means))
        assert measured[f"{way}_mAP@R"] == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("ranks, median", [([3], 3), ([1, 4], 2.5), ([1, 4, 9], 4), ([2, 2, 7, 9], 4.5)])
def test_the_median_of_an_even_number_is_the_middle(ranks, median):
    ranks = np.array(ranks)
    assert query_measures(ranks, ranks == 1, np.ones(len(ranks), int))["median_rank"] == median


def test_a_fold_of_which_nothing_is_drawn_is_left_out():
    items = retrieval_items(**near_embeds(4), folds=2)
    first = retrieval_measures(items, (items["fold"] == 0).astype(int))
    both = retrieval_measures(items, np.ones(IMAGES, int))
    assert all(np.isfinite(value) for value in first.values()) and first != both


def test_intervals_hold_every_metric():
    items = retrieval_items(**near_embeds(6), folds=2)
    measured = retrieval_measures(items, np.ones(IMAGES, int))
    intervals = bootstrap(retrieval_measures, items, IMAGES, samples=200)
    assert intervals.keys() == measured.keys()
    for name, (low, high) in intervals.items():
        assert low <= measured[name] <= high and low < high
    same = bootstrap(retrieval_measures, items, IMAGES, against=items, samples=20)
    assert set(map(tuple, same.values())) == {(0, 0)}  # paired: a model does not differ from itself


# Peers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("captions", [1, 4])
def test_recalls_equal_clip_benchmark(kind, captions):
    """CLIP_benchmark leaves ties to the order of torch.topk: its recall lies between ties against and for the model."""
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="clip-benchmark is not installed")
    embeds = kind(3, captions)
    owner = embeds["caption_image"]
    texts = {str(text): embeds["text_embeds"][text] for text in range(len(owner))}
    captions_of = [[str(text) for text in torch.nonzero(owner == image)[:, 0].tolist()] for image in range(IMAGES)]

    class Given:
        encode_image = staticmethod(lambda images: images)
        encode_text = staticmethod(lambda tokens: tokens)

    batches = [(embeds["image_embeds"][at : at + 8], captions_of[at : at + 8]) for at in range(0, IMAGES, 8)]
    found = peer.evaluate(
        Given, batches, lambda words: torch.stack([texts[word] for word in words]), "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    unit = embeds | {name: torch.nn.functional.normalize(embeds[name], dim=1) for name in ("image_embeds", "text_embeds")}
    ours = retrieval_measures(retrieval_items(**unit), np.ones(IMAGES, int))
    words = [str(image) for image in owner.tolist()]
    exact = {name: unit[name].double().mul(2**20).round() for name in ("image_embeds", "text_embeds")}  # ties stay ties
    at_best = plain_measures(plain_queries(unit | exact, words, ties_against=False))
    for way, name in (("t2i", "image_retrieval"), ("i2t", "text_retrieval")):
        for k in (1, 5, 10):
            theirs = 100 * found[f"{name}_recall@{k}"]
            if kind is near_embeds:
                assert ours[f"{way}_R@{k}"] == pytest.approx(theirs)
            assert ours[f"{way}_R@{k}"] - 1e-4 <= theirs <= at_best[f"{way}_R@{k}"] + 1e-4
