"""Right texts against wrong ones: what counts as right, Winoground's scores, the text-only judge, the command."""

import json

import numpy as np
import pytest
import torch
from conftest import TEXT_CONFIGS, make_tokenizer
from PIL import Image
from sentence_helpers import save_checkpoint
from transformers import AutoModel, AutoModelForCausalLM

import eval.__main__
from eval.likelihood import Likelihood
from eval.result import load_items
from eval.tasks.composition import Composition, measure
from mpclip.data.composition.choices import Choice, ChoiceSet
from mpclip.encoding import Encoder

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours(Encoder):
    """Embeds a picture as its mean colour, and a text as the colours that it names."""

    name, device = "colours", torch.device("cpu")

    def embed_texts(self, texts):
        named = [sum(torch.tensor(rgb) for word, rgb in COLOURS.items() if word in text) for text in texts]
        return torch.nn.functional.normalize(torch.stack(named).float(), dim=1)  # (B, 3)

    def embed_images(self, images):
        pixels = torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images]))
        return torch.nn.functional.normalize(pixels, dim=1)  # (B, 3)


class Constant(Colours):
    """Gives everything the same embedding."""

    def embed_texts(self, texts):
        return torch.full((len(texts), 131), 131**-0.5)

    def embed_images(self, images):
        return torch.full((len(images), 131), 131**-0.5)


def paint(folder, *names: str, left: str = "", right: str = "") -> None:
    for name in names:
        Image.new("RGB", (8, 8), name).save(folder / f"{name}.png")
    if left:
        both = Image.new("RGB", (16, 8), left)
        both.paste(Image.new("RGB", (8, 8), right), (8, 0))
        both.save(folder / f"{left}_{right}.png")


@pytest.fixture
def rows(tmp_path):
    """Rows of our own form: two kinds of different size, one wrong choice in each, several wrong texts in one."""
    paint(tmp_path, *COLOURS)
    lines = [
        {"file_name": "red.png", "kind": "easy", "right": "a red square", "wrong": ["a blue square", "a green square"]},
        {"file_name": "blue.png", "kind": "easy", "right": "a blue square", "wrong": "a red square"},
        {"file_name": "blue.png", "kind": "easy", "right": "blue or red", "wrong": ["green", "blue"]},  # the second is closer
        {"file_name": "green.png", "kind": "tied", "right": "it is green", "wrong": ["green it is"]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows.jsonl"


def test_right_is_above_every_wrong_text(rows):
    task = Composition()
    result = task.run(Colours(), task.load(str(rows), "all"), quiet=True)
    assert result.metrics == {"accuracy": pytest.approx(100 / 3), "easy": pytest.approx(200 / 3), "tied": 0.0}
    assert result.counts == {"images": 3, "choices": 4, "choices_easy": 3, "choices_tied": 1}
    assert result.items["unit"].tolist() == [0, 1, 1, 2]  # the bootstrap draws pictures, with all their choices
    assert set(result.intervals) == set(result.metrics) and result.intervals["easy"] == [50, 100]


def test_a_constant_model_gets_nothing(rows):
    task = Composition()
    assert set(task.run(Constant(), task.load(str(rows), "all"), quiet=True).metrics.values()) == {0.0}


def random_set(paired: bool = False, seed: int = 0) -> tuple[ChoiceSet, dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    if paired:
        choices = [Choice("winoground", i, f"{i}", (f"{i ^ 1}",)) for i in range(80)]
        units = [i // 2 for i in range(80)]
    else:
        wrong = generator.integers(1, 4, 60)
        choices = [Choice("abc"[i % 3], i // 2, f"{i}", tuple(f"{i}, {j}" for j in range(n))) for i, n in enumerate(wrong)]
        units = [i // 2 for i in range(60)]
    size = sum(1 + len(choice.wrong) for choice in choices)
    scores = {judge: generator.normal(size=size).astype(np.float32) for judge in ("", "text_only_", "text_only_per_token_")}
    return ChoiceSet([None] * 80, choices, units, paired=paired), scores


@pytest.mark.parametrize("paired", [False, True])
def test_items_give_the_metrics_again(paired):
    result = measure(*random_set(paired))
    units = Composition.units(result.items)
    ones = np.ones(units, dtype=int)
    assert Composition.metrics_of(result.items, ones) == result.metrics and result.primary in result.metrics
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high
    # A unit that is drawn twice counts as two.
    counts = ones.copy()
    counts[3] = 2
    unit = result.items["unit"]
    drawn = np.concatenate([np.arange(len(unit)), np.flatnonzero(unit == 3)])
    again = {name: cells if name == "kinds" else cells[drawn] for name, cells in result.items.items()}
    assert Composition.metrics_of(again, ones) == pytest.approx(Composition.metrics_of(result.items, counts))


def test_accuracy_where_the_likelier_text_is_wrong():
    choice_set, scores = random_set()
    result = measure(choice_set, scores)
    right, blind = (result.items[name] > 0 for name in ("margin", "text_only_margin"))
    assert result.metrics["where_text_only_fails"] == pytest.approx(100 * right[~blind].mean())
    all_known = scores | {"text_only_": np.concatenate([[1.0] + [0.0] * len(choice.wrong) for choice in choice_set.choices])}
    assert np.isnan(measure(choice_set, all_known).metrics["where_text_only_fails"])


def test_winoground_by_its_definition():
    choice_set, scores = random_set(paired=True)
    metrics = measure(choice_set, scores).metrics
    text = image = group = 0
    for pair in range(40):
        own, other, second_own, second_other = scores[""][4 * pair : 4 * pair + 4]
        # s[caption][picture]
        s = [[own, second_other], [other, second_own]]
        texts_right = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        images_right = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        text, image, group = text + texts_right, image + images_right, group + (texts_right and images_right)
    assert [metrics[name] for name in ("text_score", "image_score", "group_score")] == [
        100 * n / 40 for n in (text, image, group)
    ]
    assert 0 < group < text and "accuracy" not in metrics
    # A judge of texts alone gives both pictures the same scores, and can win none of the three.
    by_text = np.tile(np.asarray([1.0, 0.0, 0.0, 1.0]), 40)
    blind = measure(choice_set, scores | {"text_only_": by_text}).metrics
    assert blind["text_only_text_score"] == blind["text_only_image_score"] == blind["text_only_group_score"] == 0


def test_scores_that_are_no_numbers_are_refused():
    choice_set, scores = random_set()
    scores[""][[3, 5]] = np.nan
    with pytest.raises(ValueError, match=r"2 of .* scores are not finite"):
        measure(choice_set, scores)


def test_only_the_box_is_shown(tmp_path):
    paint(tmp_path, left="red", right="blue")
    row = {"image_path": "red_blue.png", "true_caption": "blue", "false_caption": "red", "relation_name": "left of"}
    boxes = [{"bbox_x": 8, "bbox_y": 0, "bbox_w": 8, "bbox_h": 8}, {"bbox_x": 0, "bbox_y": 0, "bbox_w": 8, "bbox_h": 8}]
    (tmp_path / "visual_genome_relation.json").write_text(json.dumps([row | box for box in boxes]))
    task = Composition()
    choice_set = task.load(str(tmp_path / "visual_genome_relation.json"), "relation")
    assert len(choice_set.pictures) == 2 and choice_set.units == [0, 0]
    result = task.run(Colours(), choice_set, quiet=True)
    assert (result.items["margin"] > 0).tolist() == [True, False] and result.metrics["relation"] == 50


# The judge of texts alone


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language_model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(TEXT_CONFIGS["llama"]()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_likelihood_equals_the_text_alone(language_model):
    texts = ["a red mat", "dog", "The cat sits on the red mat of this image", "dog"]
    judge = Likelihood(str(language_model))
    found = judge.of(texts, batch_size=3, quiet=True)
    for text, (total, tokens) in zip(texts, found.tolist(), strict=True):
        ids = judge.tokenizer(text).input_ids
        with torch.no_grad():
            loss = judge.model(torch.tensor([[1, *ids]]), labels=torch.tensor([[1, *ids]])).loss  # the mean over tokens
        assert tokens == len(ids) and total == pytest.approx(-float(loss) * len(ids), rel=1e-4)


def test_a_model_without_a_head_is_refused(tmp_path):
    AutoModel.from_config(TEXT_CONFIGS["llama"]()).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of a causal language model: lm_head"):
        Likelihood(str(tmp_path))


def test_the_command(rows, tmp_path, capsys, language_model):
    folder = save_checkpoint(tmp_path / "model")
    given = ["--model", str(folder), "--data", str(rows), "--split", "all", "--json", str(tmp_path / "out.json")]
    given += ["--precision", "float32", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    eval.__main__.main(["composition", *given, "--likelihood", str(language_model)])
    assert "accuracy *" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["primary"] == "accuracy" and {"text_only_easy", "text_only_per_token_accuracy"} < set(result["intervals"])
    items = load_items(tmp_path / "out.json")
    assert Composition.metrics_of(items, np.ones(3, dtype=int)) == pytest.approx(result["metrics"], nan_ok=True)


def test_a_set_is_built_by_the_command(tmp_path, capsys):
    paint(tmp_path, *COLOURS)
    captions = [f"a {name} ball with a blue hat is here" for name in COLOURS]
    lines = [{"file_name": f"{name}.png", "caption": text} for name, text in zip(COLOURS, captions, strict=True)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = save_checkpoint(tmp_path / "model")
    given = ["--model", str(folder), "--data", str(tmp_path), "--split", "train", "--json", str(tmp_path / "out.json")]
    given += ["--precision", "float32", "--device", "cpu", "--no_cache"]
    with pytest.raises(SystemExit, match="--build makes wrong texts"):
        eval.__main__.main(["composition", *given])
    with pytest.warns(UserWarning, match="no picture of 3 has a text of the kinds swap_relation, absent_object"):
        eval.__main__.main(["composition", *given, "--build", "--seed", "3"])
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["build"], result["seed"], result["choices"]) == (True, 3, 8)
    assert set(result["metrics"]) == {"accuracy", "swap_attribute", "replace_object", "insert_negation"}
