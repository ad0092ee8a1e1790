"""Several captions of a picture as one text: which texts there are, how they are drawn, cached and measured."""

import random

import pytest
import torch
from conftest import arguments
from tiny_pictures import records, write_folder

import train_hf
from modeling_mpclip import MPCLIPModel
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.data.joined_captions import JoinedCaptions, joined, sentence
from mpclip.data.shard_writing import write_shards
from mpclip.training.command_line import parse_options
from mpclip.training.resume import changed_options, shaping_options

pytestmark = pytest.mark.usefixtures("datasets_cache")

CAPTIONS = ["a dog .", "A brown dog runs", "Is it wet?", "grass and a dog"]


def test_a_caption_becomes_a_sentence():
    assert list(map(sentence, CAPTIONS)) == ["a dog.", "A brown dog runs.", "Is it wet?", "grass and a dog."]


def test_texts_depend_on_the_captions_alone():
    text = joined(CAPTIONS, 3)
    assert text == joined(list(CAPTIONS), 3) != joined(CAPTIONS, 3, draw=1)
    assert sum(sentence(caption) in text for caption in CAPTIONS) == 3
    assert joined(CAPTIONS, 9).count("dog") == 3 and joined(["a dog ."], 5) == "a dog ."


def test_the_texts_of_a_picture():
    by_default = JoinedCaptions.of("1")
    assert by_default.every(CAPTIONS) == CAPTIONS
    texts = JoinedCaptions.of("1-3", draws=2).every(CAPTIONS)
    assert texts[:4] == CAPTIONS and texts[4:] == [joined(CAPTIONS, n, draw) for n in (2, 3) for draw in (0, 1)]
    assert JoinedCaptions.of("3-5", draws=1).every(CAPTIONS[:2]) == [joined(CAPTIONS[:2], 2)]


def test_the_default_draws_as_before():
    for i in range(9):
        assert JoinedCaptions().drawn(5, random.Random(i)) == random.Random(i).choice(range(5))


def test_each_number_of_captions_is_drawn_as_often():
    of, draw = JoinedCaptions.of("1-3", draws=2), random.Random(0)
    drawn = [of.drawn(4, draw) for _ in range(3000)]
    assert set(drawn) == set(range(8))
    assert 900 < sum(one < 4 for one in drawn) < 1100  # one caption
    assert 900 < sum(4 <= one < 6 for one in drawn) < 1100


@pytest.mark.parametrize("told", ["0", "5-1", "all", "1-99", "-3"])
def test_what_is_no_number_of_captions_is_refused(tmp_path, told):
    with pytest.raises(ValueError, match=r"captions_joined='.*': expected how many captions make a text"):
        parse_options(["--output_dir", str(tmp_path), f"--captions_joined={told}"])


def test_items_have_texts_of_their_picture(tmp_path):
    rows = load_image_text(write_folder(tmp_path, records(8)), "train")
    joining = JoinedCaptions.of("1-2", draws=1)
    examples = ImageTextDataset(rows, with_images=False, joined=joining)
    lengths = set()
    for epoch in range(4):
        examples.set_epoch(epoch)
        texts = [examples[i]["captions"][0] for i in range(8)]
        assert all(text in joining.every(captions) for text, captions in zip(texts, rows["captions"][:], strict=True))
        assert examples.caption_lengths() == list(map(len, texts))
        lengths |= {text.count(".") for text in texts}
    assert lengths == {0, 2}
    everything = ImageTextDataset(rows, "all", with_images=False, joined=joining)[0]["captions"]
    assert everything == joining.every(rows[0]["captions"])


@pytest.mark.parametrize("streaming", [False, True])
def test_training_on_stored_states_equals_live_training(folder, tmp_path, streaming):
    data = write_folder(tmp_path / "data", records(8))
    if streaming:
        write_shards(str(data), "train", tmp_path / "shards", shards=1)
        data = tmp_path / "shards"
    shared = ["--captions_joined", "1-2", "--adam_epsilon", "1e-4", "--eval_split", "none", "--dataset", str(data)]
    shared += ["--streaming", str(streaming)]
    train_hf.main(arguments(folder, tmp_path / "live", *shared))
    cache = ("--cache_states", "true", "--cache_format", "float32")
    train_hf.main(arguments(folder, tmp_path / "cached", *shared, *cache))
    one, other = (MPCLIPModel.from_pretrained(tmp_path / name).state_dict() for name in ("live", "cached"))
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_run_on_other_texts_is_another_run(tmp_path):
    before, now = (
        shaping_options(parse_options(["--output_dir", str(tmp_path), *more])) for more in ([], ["--captions_joined", "1-5"])
    )
    assert changed_options(before, now) == {"captions_joined": ("1", "1-5")}
