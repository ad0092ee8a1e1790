"""The metrics as modules of `evaluate`: loaded from their folders, offline, equal to our own functions."""

import ast
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest

from eval.metrics import flat, recalls, retrieval_metrics, retrieval_ranks
from eval.metrics.unwanted import found_first
from eval.tasks.composition import TIE, pair_margins, right_and_best_wrong

load_module = evaluate.load  # a test puts another in its place
METRICS = Path(__file__).parent.parent / "eval" / "metrics"
MODULES = ["retrieval_recall", "pair_accuracy", "exclusion"]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads a module from a copy of its folder, as a Space holds it. Nothing is written to the user's caches."""
    home = tmp_path_factory.mktemp("evaluate")

    def load(name: str, *config: str):
        copy = home / "spaces" / name
        if not copy.exists():
            shutil.copytree(METRICS / name, copy, ignore=shutil.ignore_patterns("__pycache__"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evaluate.config.HF_MODULES_CACHE", str(home / "modules"))
            patch.setattr("evaluate.config.HF_EVALUATE_CACHE", str(home / "cache"))
            return load_module(str(copy), *config, cache_dir=str(home / "cache"), keep_in_memory=True)

    return load


@pytest.mark.parametrize("name", MODULES)
def test_a_module_stands_alone(name):
    tree = ast.parse((METRICS / name / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {"numpy", "datasets", "evaluate"} and not any(
        isinstance(node, ast.ImportFrom) for node in ast.walk(tree)
    )
    assert (METRICS / name / "README.md").is_file()


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_readme(load, name, monkeypatch):
    """Each call gives what the comment below it says."""
    code = re.search(r"```python\n(.*?)```", (METRICS / name / "README.md").read_text(), re.DOTALL)[1]
    shown = [ast.literal_eval(line) for line in re.findall(r"# (\{.*?\})", code)]
    variables: dict = {}
    monkeypatch.setattr(evaluate, "load", lambda path, *config: load(Path(path).name, *config))
    found = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.Expr):
            found.append(eval(compile(ast.Expression(node.value), name, "eval"), variables))
        else:
            exec(compile(ast.Module([node], []), name, "exec"), variables)
    assert shown and all(one == pytest.approx(other, abs=0.05) for one, other in zip(found, shown, strict=True))


def random_embeds(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, texts and the image of each text."""
    generator = np.random.default_rng(0)
    owner = generator.permutation(np.r_[np.arange(40).repeat(3), generator.integers(40, size=7)])
    images = generator.normal(size=(40, 16)).astype(np.float32)
    texts = images[owner] + 1.5 * generator.normal(size=(len(owner), 16)).astype(np.float32)
    if kind == "constant":
        images, texts = np.ones_like(images), np.ones_like(texts)
    elif kind == "tied":  # images in groups of four, and many equal texts
        images, texts = images[np.arange(40) // 4], np.sign(texts)
    if kind != "not normalised":
        images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    return images, texts, owner


@pytest.mark.parametrize("kind", ["random", "not normalised", "tied", "constant"])
def test_retrieval_recall_equals_ours(load, kind):
    images, texts, owner = random_embeds(kind)
    metric = load("retrieval_recall")
    expected = flat(retrieval_metrics(images, texts, owner))
    assert metric.compute(predictions=texts, references=owner, image_embeds=images) == pytest.approx(expected)
    assert (expected["mean_recall"] == 0) == (kind == "constant")
    for at in range(0, len(texts), 50):
        metric.add_batch(predictions=texts[at : at + 50], references=owner[at : at + 50])
    few = metric.compute(image_embeds=images, k=5)
    assert few == pytest.approx({name: expected[name] for name in ("t2i_R@5", "i2t_R@5")} | {"mean_recall": few["mean_recall"]})
    text_ranks, image_ranks = retrieval_ranks(images, texts, owner)
    from_ranks = load("retrieval_recall", "ranks").compute(predictions=text_ranks)
    assert from_ranks == pytest.approx(recalls(text_ranks, image_ranks)["text_to_image"])


def test_chunks_change_nothing(load, monkeypatch):
    images, texts, owner = random_embeds("random")
    metric = load("retrieval_recall")
    whole = metric.compute(predictions=texts, references=owner, image_embeds=images)
    monkeypatch.setitem(type(metric)._compute.__globals__, "CHUNK", 9)
    assert metric.compute(predictions=texts, references=owner, image_embeds=images) == whole


def test_retrieval_recall_refuses(load):
    images, texts, owner = random_embeds("random")
    wrong = [
        (dict(predictions=texts, references=owner), "image_embeds is missing"),
        (dict(predictions=texts, references=owner, image_embeds=images[:, :3]), "one width"),
        (dict(predictions=texts, references=owner, image_embeds=images[:9]), "expected images from 0 to 8"),
        (dict(predictions=texts, references=owner, image_embeds=np.r_[images, images]), "40 of 80 images have no text"),
        (dict(predictions=texts * np.nan, references=owner, image_embeds=images), "not finite"),
        (dict(predictions=texts, references=owner, image_embeds=images, k=0), "k=.0.: expected"),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            load("retrieval_recall").compute(**given)
    with pytest.raises(ValueError, match="best rank is 1"):
        load("retrieval_recall", "ranks").compute(predictions=[0, 1])
    with pytest.raises(ValueError, match="no configuration 'rank'"):
        load("retrieval_recall", "rank")


@pytest.mark.parametrize("decimals", [6, 1], ids=["random", "tied"])
def test_pair_accuracy_equals_ours(load, decimals):
    generator = np.random.default_rng(1)
    sizes = generator.integers(2, 5, size=60)
    scores = [generator.normal(size=size).round(decimals).tolist() for size in sizes]  # the right one first
    choices = [SimpleNamespace(wrong=[""] * (size - 1)) for size in sizes]
    right, wrong = right_and_best_wrong(choices, np.concatenate(scores))
    places = generator.integers(sizes)
    shuffled = [row[1 : place + 1] + row[:1] + row[place + 1 :] for row, place in zip(scores, places, strict=True)]
    found = load("pair_accuracy").compute(predictions=shuffled, references=places)
    assert found == pytest.approx({"accuracy": 100 * np.mean(right - wrong > TIE)})
    kinds = ["swap" if n < 20 else "add" for n in range(60)]
    by_kind = load("pair_accuracy").compute(predictions=shuffled, references=places, kinds=kinds)
    assert by_kind["accuracy_swap"] == pytest.approx(100 * np.mean((right - wrong)[:20] > TIE))
    assert by_kind["accuracy"] == pytest.approx((by_kind["accuracy_swap"] + by_kind["accuracy_add"]) / 2)
    pairs = generator.normal(size=(50, 2, 2)).round(decimals)
    right, wrong = (
        np.stack(side, axis=1).ravel() for side in ((pairs[:, 0, 0], pairs[:, 1, 1]), (pairs[:, 0, 1], pairs[:, 1, 0]))
    )
    shares = 100 * (pair_margins(right, wrong).reshape(3, 50) > TIE).mean(axis=1)
    expected = dict(zip(("text_score", "image_score", "group_score"), shares, strict=True))
    assert load("pair_accuracy", "winoground").compute(predictions=pairs) == pytest.approx(expected)


def test_pair_accuracy_by_hand_and_what_it_refuses(load):
    metric = load("pair_accuracy")
    found = metric.compute(predictions=[[0.5, 0.5], [0.6, 0.5], [0.1, 0.2, 0.3]], references=[0, 0, 2])
    assert found["accuracy"] == pytest.approx(200 / 3)  # the tie is wrong
    text_alone = load("pair_accuracy", "winoground").compute(predictions=[[[0.9, 0.8], [0.95, 0.96]]])
    assert text_alone == {"text_score": 100.0, "image_score": 0.0, "group_score": 0.0}
    for given, message in (
        (dict(predictions=[[1.0]], references=[0]), "1 candidates"),
        (dict(predictions=[[1.0, 2.0]], references=[2]), "number 2 is right"),
        (dict(predictions=[[1.0, float("nan")]], references=[0]), "finite"),
        (dict(predictions=[[1.0, 2.0]], references=[0], kinds=["a", "b"]), "one name for each of the 1 choices"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.compute(**given)
    with pytest.raises(ValueError, match="2 images, 2 texts"):
        load("pair_accuracy", "winoground").compute(predictions=[[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]])


@pytest.mark.parametrize("decimals", [6, 1], ids=["random", "tied"])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_exclusion_equals_ours(load, decimals, k):
    generator = np.random.default_rng(2)
    scores = generator.normal(size=(12, 30)).round(decimals).astype(np.float32)
    wanted, unwanted = generator.random((12, 30)) < 0.4, generator.random((12, 30)) < 0.3
    count = found_first(scores, wanted, unwanted, k)
    first = min(k, 30)
    expected = {
        "pure": count.pure / (wanted & ~unwanted).sum(axis=1).clip(max=first),
        "recall": count.wanted / wanted.sum(axis=1).clip(max=first),
        "unwanted": count.unwanted / first,
    }
    found = load("exclusion").compute(predictions=scores, shows_wanted=wanted, shows_unwanted=unwanted, k=k)
    assert found == pytest.approx({name: 100 * shares.mean() for name, shares in expected.items()})


def test_exclusion_by_hand_and_what_it_refuses(load):
    shown = dict(shows_wanted=[[True, True, False, False]], shows_unwanted=[[False, True, True, False]])
    found = load("exclusion").compute(predictions=[[0.9, 0.5, 0.5, 0.5]], k=2, **shown)
    assert found == {"pure": 100.0, "recall": 100.0, "unwanted": 50.0}  # the second place is one of what is not wanted
    constant = load("exclusion").compute(predictions=[[0.5] * 4], k=2, **shown)
    assert (constant["pure"], constant["unwanted"]) == (0.0, 100.0)
    for given, message in (
        (dict(predictions=[[0.5] * 3], **shown), "expected one number"),
        (dict(predictions=[[0.5] * 4], shows_wanted=[[False] * 4], shows_unwanted=[[False] * 4]), "no right answer"),
        (dict(predictions=[[float("nan")] * 4], **shown), "not finite"),
        (dict(predictions=[[0.5] * 4], k=0, **shown), "1 or more pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            load("exclusion").compute(**given)
