"""What is no batch of texts or pictures is refused in one line; padding without a mask is told once."""

import re

import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer

IDS = torch.ones(2, 3, dtype=torch.long)
PIXELS = torch.zeros(2, 3, 32, 32)
OF_THE_SHAPE = "expected a tensor of the shape (2, 3), 1 for every token of a text and 0 for padding."


@pytest.fixture(scope="module")
def model():
    return make_model(adaptive_tokens="boundary")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"input_ids": IDS[0]}, "input_ids has the shape (3,); expected (B, N). For a batch of one give input_ids[None]."),
        ({"input_ids": IDS[None]}, "input_ids has the shape (1, 2, 3); expected (B, N)."),
        ({"input_ids": [[1, 2]]}, "input_ids is a list; expected a tensor (B, N)."),
        ({"input_ids": []}, "input_ids is a list; expected a tensor (B, N)."),
        ({"input_ids": torch.tensor([])}, "input_ids has the shape (0,); expected (B, N)."),
        ({"input_ids": IDS[:0]}, "input_ids has the shape (0, 3): there is nothing to embed."),
        ({"input_ids": IDS.float()}, "input_ids are torch.float32; expected token ids, torch.int64 or torch.int32."),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(3)},
            "attention_mask has the shape (3,); expected a tensor of the shape (2, 3)",
        ),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 4)},
            "attention_mask has the shape (2, 4); expected a tensor of the shape (2, 3)",
        ),
        ({"input_ids": IDS, "attention_mask": [[1, 1, 0]]}, "attention_mask is a list; expected a tensor of the shape (2, 3)"),
    ],
)
def test_texts_that_are_none(model, given, message):
    for embed in (model, model.get_text_features, model.lower_text):
        with pytest.raises(ValueError, match=re.escape(message)):
            embed(**given)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (
            PIXELS[0],
            "pixel_values has the shape (3, 32, 32); expected (B, C, H, W). For a batch of one give pixel_values[None].",
        ),
        (PIXELS[:, :1], "pixel_values has the shape (2, 1, 32, 32); expected (B, C, H, W) with C = 3 channels."),
        (PIXELS.movedim(1, -1), "pixel_values has the shape (2, 32, 32, 3); expected (B, C, H, W) with C = 3 channels."),
        (PIXELS[:0], "pixel_values has the shape (0, 3, 32, 32): there is nothing to embed."),
        (PIXELS.byte(), "pixel_values are torch.uint8; expected the normalised floats"),
        ([PIXELS[0]], "pixel_values is a list; expected a tensor (B, C, H, W)."),
    ],
)
def test_pictures_that_are_none(model, pixels, message):
    for embed in (model, model.get_image_features, model.vision_tokens):
        with pytest.raises(ValueError, match=re.escape(message)):
            embed(pixel_values=pixels)


def test_videos_and_tokens_that_are_none(model):
    for shape in ((0, 2, 3, 32, 32), (2, 0, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"pixel_values_videos has the shape .*: there is nothing to embed"):
            model.get_video_features(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"pixel_values_videos has .*; expected \(B, T, C, H, W\) with C = 3 channels"):
        model.get_video_features(torch.zeros(2, 2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"vision_hidden_states has the shape \(2, 32\); expected \(B, N, C\)"):
        model.get_image_features(vision_hidden_states=torch.zeros(2, 32))
    with pytest.raises(ValueError, match=r"vision_hidden_states .*; expected \(B, N, C\) with C = 32 channels"):
        model.get_image_features(vision_hidden_states=torch.zeros(2, 4, 16))
    states = model.lower_text(IDS)
    with pytest.raises(ValueError, match=r"attention_mask has the shape \(1, 3\); expected a tensor of the shape \(2, 3\)"):
        model.get_text_features(attention_mask=IDS[:1], text_hidden_states=states)


def test_no_texts_for_the_processor():
    with pytest.raises(ValueError, match="text is an empty list: give at least one text, or leave it out"):
        make_processor(make_tokenizer())(text=[])


@pytest.mark.parametrize("pooling", ["prompts", "mean", "last_token", "attention"])
def test_an_empty_text_alone_is_what_it_is_beside_others(pooling):
    model = make_model(text_pooling=pooling, **({} if pooling == "prompts" else {"num_prompts": 1}))
    processor = make_processor(make_tokenizer())
    alone = processor(text=[""])
    assert alone["input_ids"].shape == (1, 0)
    beside = model.get_text_features(**processor(text=["", "a dog"])).pooler_output
    torch.testing.assert_close(model.get_text_features(**alone).pooler_output, beside[:1], atol=1e-5, rtol=1e-5)


def test_other_integers_and_masks_are_what_they_were(model):
    expected = model.get_text_features(IDS, torch.tensor([[1, 1, 0], [1, 1, 1]])).pooler_output
    for mask in (torch.tensor([[True, True, False], [True] * 3]), torch.tensor([[1.0, 1, 0], [1, 1, 1]])):
        torch.testing.assert_close(model.get_text_features(IDS.int(), mask).pooler_output, expected)


# Padding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """The warnings that are logged once in a process, anew."""
    messages: list[str] = []
    monkeypatch.setattr("modeling_mpclip.tower_inputs.logger.warning_once", messages.append)
    return messages


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_mask_is_told(side, told):
    model = make_model()
    batch = make_processor(make_tokenizer())(text=["a cat", "The cat sits on the red mat"], padding_side=side)
    model.get_text_features(**batch)
    model.get_text_features(batch["input_ids"][1:])  # nothing to pad
    assert not told
    model.get_text_features(batch["input_ids"])
    assert len(told) == 1 and "Give the attention_mask that the tokenizer returned" in told[0]
    model(batch["input_ids"], torch.ones_like(batch["input_ids"]))  # as the message advises
    assert len(told) == 1


def test_the_padding_token_is_the_tokenizers_where_the_llm_names_none(told):
    model = make_model()
    model.config.text_config.pad_token_id = None
    assert model.config.pad_token_id == make_tokenizer().pad_token_id == 0
    model.get_text_features(torch.tensor([[5, 0]]))
    assert len(told) == 1
    model.config.pad_token_id = None  # as in an earlier checkpoint
    model.get_text_features(torch.tensor([[5, 0]]))
    assert len(told) == 1


def test_an_accelerator_is_asked_once(told, monkeypatch):
    model = make_model()
    looked = []
    monkeypatch.setattr("modeling_mpclip.text_side.warn_of_padding", lambda ids, pad: looked.append(ids.device.type))
    ids = torch.ones(1, 2, dtype=torch.long, device="meta")
    for _ in range(2):
        model._look_for_padding(ids)
    assert looked == ["meta"]
