"""Texts from strangers: what looks like a special token, control characters, half characters, and texts of any length."""

import json

import datasets
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image
from transformers import AutoTokenizer

from modeling_mpclip import MPCLIPProcessor
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.training.collator import MPCLIPCollator, WithIds
from mpclip.training.finite import examples_named

MARKS = ["[APT-1]", "a [APT-3] cat", "<eos>", "<pad> a", "a<bos>b", "  [APT-2]", "[APT-1][APT-2]"]
ODD = ["\0", "a\0b", "\x1b[2J\x1b[31mred", "\u202etac a", "\u200b\ufeff", "\r\n\t", "e\u0301" * 50, "\U0010ffff", "🏳️‍🌈" * 9]


@pytest.fixture(scope="module")
def processor():
    tokenizer = make_tokenizer(bos=True)
    make_model(tokenizer=tokenizer)  # adds the adaptive tokens
    return make_processor(tokenizer)


def special(tokenizer) -> set[int]:
    """The ids of all special tokens but the one that the tokenizer puts in front."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - {tokenizer.bos_token_id}


@pytest.mark.parametrize("text", MARKS)
def test_a_special_token_in_a_text_is_read_as_letters(processor, tmp_path, text):
    tokenizer = processor.tokenizer
    ids = processor(text=[text])["input_ids"][0].tolist()
    assert ids[0] == tokenizer.bos_token_id and not special(tokenizer) & set(ids) and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:]) == text
    processor.save_pretrained(tmp_path)
    again = MPCLIPProcessor.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    for reader in (again.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "again"), tokenizer):
        assert reader(text)["input_ids"] == ids
    # As training reads it.
    batch = WithIds(MPCLIPCollator(processor))([{"captions": [text], "image": Image.new("RGB", (8, 8)), "index": 0}])
    assert batch["input_ids"][0].tolist() == ids


def test_a_text_cannot_stand_in_for_a_prompt(processor):
    """Its embedding is not that of the learned token, which it would be if the mark were read as one."""
    model = make_model(tokenizer=processor.tokenizer)
    mark = processor.tokenizer("[APT-1]", split_special_tokens=False, return_tensors="pt")
    assert special(processor.tokenizer) & set(mark["input_ids"][0].tolist())
    with torch.no_grad():
        embeds = [model(**dict(batch)).text_embeds for batch in (mark, processor(text=["[APT-1]"]))]
    assert (embeds[0] - embeds[1]).abs().max() > 1e-3


def test_other_texts_have_the_ids_that_they_always_had(processor):
    plain = make_tokenizer(bos=True)
    for text in ["The cat sits on the red mat.", "", "[APT] [APT-x] <", "[ APT-1 ]", *ODD]:
        assert processor.tokenizer(text)["input_ids"] == plain(text)["input_ids"]


@pytest.mark.parametrize("text", ODD)
def test_odd_characters_are_texts_like_others(processor, text):
    model = make_model(tokenizer=processor.tokenizer)
    with torch.no_grad():
        assert model(**processor(text=[text, "a"])).text_embeds.isfinite().all()


@pytest.mark.parametrize("text", [5, None, b"a", ["a", 5], ["a", None], "\ud83d", ["a", "b \udc00"]])
def test_what_is_no_text_is_refused_with_its_place(processor, text):
    if text is None:
        pytest.skip("None is no text given")
    i = 1 if isinstance(text, list) else 0
    with pytest.raises(ValueError, match=rf"text\[{i}\] is "):
        processor(text=text)


def test_a_caption_of_ten_megabytes(processor, tmp_path):
    """It is read, and cut like any long text. A message shows its beginning."""
    caption = "a red car " * 2**20
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "captions": [caption]}))
    rows = load_image_text(tmp_path, "train")
    [found] = rows["captions"][0]
    assert found == caption
    assert len(examples_named(ImageTextDataset(rows, "all", 0), [0])) < 200
    ids = processor(text=[found[:200_000]], truncation=True, max_length=16)["input_ids"]
    assert ids.shape == (1, 16)


def test_messages_hold_no_control_characters():
    rows = datasets.Dataset.from_dict({"captions": [["\x1b[2J\u202ea\nb"]]})
    told = examples_named(ImageTextDataset(rows, "all", 0, with_images=False), [0])
    assert told == 'row 0 ("�[2J�a�b")'
