import datasets
import numpy as np
import pytest
import torch
from conftest import make_model, make_processor
from PIL import Image
from transformers import AutoProcessor
from transformers.image_utils import ChannelDimension

from modeling_mpclip import MPCLIPProcessor


@pytest.fixture
def processor(tokenizer):
    make_model(tokenizer=tokenizer)  # adds [APT-i]
    return make_processor(tokenizer)


def test_texts_images_and_both(processor):
    image = Image.new("RGB", (50, 40), "blue")
    both = processor(text=["The cat", "A small boat on the mat"], images=[image, image])
    assert both["input_ids"].shape == both["attention_mask"].shape
    assert both["pixel_values"].shape == (2, 3, 32, 32)
    one = processor(text="The cat")
    assert one["input_ids"].shape[0] == 1 and "pixel_values" not in one
    with pytest.raises(ValueError, match="Nothing to process"):
        processor()


def test_images_in_any_form(processor):
    """One, a list, nested lists, an array of several, a column of a data set; test_pictures.py has the modes and numbers."""
    images = [Image.new("RGB", (12, 10), color) for color in ("red", "green", "blue")]
    expected = processor(images=images)["pixel_values"]
    arrays = np.stack([np.asarray(image) for image in images])  # (3, 10, 12, 3)
    column = datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))["image"]
    for form in (tuple(images), [[images[0]], images[1:]], arrays, torch.tensor(arrays), [arrays[:2], images[2]], column):
        assert torch.equal(processor(images=form)["pixel_values"], expected)
    assert torch.equal(processor(images=images[0])["pixel_values"], expected[:1])
    with pytest.raises(ValueError, match="images is an empty list"):
        processor(images=[])
    with pytest.raises(ValueError, match=r"Picture 1: .*NaN"):
        processor(images=[images[0], np.full((4, 4, 3), np.nan)])


def test_floats_that_are_not_to_be_rescaled(processor):
    """transformers asks for do_rescale=False with floats from 0 to 1; here it changes nothing for them."""
    array = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    expected = processor(images=array)["pixel_values"]
    for given in ({"do_rescale": False}, {"images_kwargs": {"do_rescale": False}}):
        assert torch.equal(processor(images=array / 255, **given)["pixel_values"], expected)
        raw = processor(images=[array], do_normalize=False, **given)["pixel_values"]
        assert torch.equal(raw[0], torch.tensor(array).permute(2, 0, 1))
    with pytest.raises(ValueError, match="only some images range from 0 to 1"):
        processor(images=[array, array / 255], do_rescale=False)


def test_the_channel_axis_of_an_ambiguous_shape(processor):
    array = np.random.default_rng(0).integers(0, 255, (3, 9, 3), dtype=np.uint8)
    expected = processor(images=Image.fromarray(array))["pixel_values"]
    for given in ({"input_data_format": "channels_last"}, {"images_kwargs": {"input_data_format": ChannelDimension.LAST}}):
        assert torch.equal(processor(images=array, **given)["pixel_values"], expected)
    turned = processor(images=array.transpose(2, 1, 0), input_data_format="channels_first")["pixel_values"]
    assert torch.equal(turned, processor(images=Image.fromarray(array.transpose(1, 0, 2)))["pixel_values"])
    with pytest.raises(ValueError, match="may come first or last"):
        processor(images=array)
    for wrong in ("channels_middle", "channels_first"):
        with pytest.raises(ValueError, match=f"{wrong}'; expected 'channels_first' or 'channels_last'"):
            processor(images=np.zeros((9, 9, 3)), input_data_format=wrong)


def test_videos_of_different_length_are_padded(processor):
    frames = [Image.fromarray(np.full((20, 20, 3), value, np.uint8)) for value in (0, 100, 200)]
    batch = processor(videos=[frames, frames[:1]])
    assert batch["pixel_values_videos"].shape == (2, 3, 3, 32, 32)
    assert batch["frame_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    single = processor(images=frames[:1])["pixel_values"]
    torch.testing.assert_close(batch["pixel_values_videos"][1, :1], single)
    array = np.stack([np.asarray(frame) for frame in frames])
    torch.testing.assert_close(processor(videos=[array])["pixel_values_videos"][0], batch["pixel_values_videos"][0])
    for one in (frames, array):
        torch.testing.assert_close(processor(videos=one)["pixel_values_videos"], batch["pixel_values_videos"][:1])
    with pytest.raises(ValueError, match=r"videos \[1\] have no frame"):
        processor(videos=[frames, []])


def test_long_texts_are_cut_when_asked(processor):
    processor.tokenizer.model_max_length = 8
    assert processor(text="cat " * 50, truncation=True)["input_ids"].shape[1] == 8


def test_what_was_called_before_saving_does_not_stay(processor, tmp_path):
    processor.tokenizer.model_max_length = 8
    processor(text="cat " * 50, truncation=True, padding="max_length")
    processor.save_pretrained(tmp_path)
    loaded = MPCLIPProcessor.from_pretrained(tmp_path)
    loaded.tokenizer.model_max_length = 12
    assert loaded(text="cat " * 50, truncation=True)["input_ids"].shape[1] == 12
    assert loaded(text="cat")["input_ids"].shape[1] < 8


def test_arguments_of_each_part(processor):
    image = Image.new("RGB", (64, 20), "red")
    plain = processor(text="cat", images=image)
    nested = {"text_kwargs": {"padding": "max_length", "max_length": 9}, "images_kwargs": {"do_normalize": False}}
    for batch in (processor(text="cat", images=image, **nested), processor(text="cat", images=image, **_flat(nested))):
        assert batch["input_ids"].shape == (1, 9)
        assert batch["pixel_values"].min() >= 0 and (batch["pixel_values"] - plain["pixel_values"]).abs().max() > 0.1
    assert isinstance(processor(text="cat", return_tensors="np")["input_ids"], np.ndarray)
    with pytest.raises(ValueError, match="passed two times"):
        processor(text="cat", text_kwargs={"padding": True}, padding=False)


def _flat(kwargs: dict[str, dict]) -> dict:
    return {name: value for part in kwargs.values() for name, value in part.items()}


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = MPCLIPProcessor.from_pretrained(tmp_path)
    automatic = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    image = Image.new("RGB", (50, 40), "green")
    expected = processor(text=["[APT-1] cat"], images=[image])
    for other in (loaded, automatic):
        for name, tensor in other(text=["[APT-1] cat"], images=[image]).items():
            torch.testing.assert_close(tensor, expected[name])
