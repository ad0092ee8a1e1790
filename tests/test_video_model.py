"""Clips in the model: what tells their frames apart, and which way of pooling a clip gives which embedding."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXT_CONFIGS, VISION_CONFIGS, make_model, make_processor, make_tokenizer
from transformers import AutoModel

from modeling_mpclip import MPCLIPConfig
from modeling_mpclip.clip_frames import with_frame_position

ATTENTION = ["attention", "attention_per_prompt"]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def embedded(model, frames, mask=None) -> torch.Tensor:
    """(B, T, C, H, W) -> (B, D), without gradients."""
    with torch.no_grad():
        return model.get_video_features(frames, mask).pooler_output


@pytest.fixture
def frames():
    torch.manual_seed(1)
    return torch.randn(2, 4, 3, 32, 32)  # (B, T, C, H, W)


# Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ATTENTION)
@pytest.mark.parametrize("vision", ["vit", "siglip"])
def test_a_clip_and_its_reverse_differ_by_the_frame_position_alone(pooling, vision):
    torch.manual_seed(1)
    size = VISION_CONFIGS[vision]().image_size
    frames = torch.randn(2, 4, 3, size, size)
    for position, same in (("sinusoid", False), ("none", True)):
        model = make_model(vision=vision, image_pooling=pooling, frame_position=position)
        torch.nn.init.normal_(model.image_pooling.queries, std=30.0)
        difference = (embedded(model, frames) - embedded(model, frames.flip(1))).abs().max()
        assert (difference < 1e-5) if same else (difference > 1e-3), (position, difference)


def test_a_clip_of_one_frame_is_a_picture(frames):
    model = make_model(frame_position="sinusoid")
    image = model.get_image_features(frames[:, 0]).pooler_output
    torch.testing.assert_close(embedded(model, frames[:, :1]), image, **CLOSE)
    masked = embedded(model, frames, torch.tensor([[1, 0, 0, 0]] * 2))
    torch.testing.assert_close(masked, image, **CLOSE)


@pytest.mark.parametrize("clip_pooling", ["tokens", "mean"])
def test_padding_frames_do_not_count(frames, clip_pooling):
    model = make_model(clip_pooling=clip_pooling)
    short = embedded(model, frames[:, :3])
    padded = embedded(model, frames, torch.tensor([[1, 1, 1, 0]] * 2))
    torch.testing.assert_close(padded, short, **CLOSE)
    assert (embedded(model, frames) - short).abs().max() > 1e-3


def test_the_code_of_time():
    """Equal to its definition, token by token; nothing in the middle; of the tokens' own scale; any number of channels."""
    tokens = torch.randn(1, 5, 3, 13) * 7  # (B, T, N, C)
    added = with_frame_position(tokens) - tokens
    assert added[:, 2].abs().max() < 1e-5  # the middle of five frames
    frequency = torch.pi * torch.tensor([2 ** (3 * i / 5) for i in range(6)])  # from half a turn to four
    for t, time in enumerate((-0.4, -0.2, 0.0, 0.2, 0.4)):
        angle = time * frequency
        code = torch.cat([angle.sin(), angle.cos() - 1, torch.zeros(1)])  # (C,)
        for n in range(3):
            torch.testing.assert_close(added[0, t, n], code * tokens[0, t, n].std(), atol=1e-4, rtol=1e-4)
    normed = F.layer_norm(with_frame_position(tokens), (13,))
    torch.testing.assert_close(F.layer_norm(with_frame_position(tokens * 100), (13,)), normed, atol=1e-4, rtol=1e-4)


# Pooling ----------------------------------------------------------------------------------------------------------


def test_the_mean_over_frames_is_that_of_their_pictures(frames):
    model = make_model(clip_pooling="mean")
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        output = model.get_video_features(frames, mask)
        pictures = F.normalize(model.get_image_features(frames.flatten(0, 1)).pooler_output, dim=-1).unflatten(0, (2, 4))
    expected = torch.stack([pictures[0].mean(dim=0), pictures[1, :2].mean(dim=0)])
    torch.testing.assert_close(output.pooler_output, expected, **CLOSE)
    torch.testing.assert_close(output.prompt_embeds.flatten(1), expected, **CLOSE)
    N = output.last_hidden_state.shape[1] // 4
    assert output.last_hidden_state.shape == (2, 4 * N, 32) and output.pooling_attentions.shape == (2, 3, 2, 4 * N)
    torch.testing.assert_close(output.pooling_attentions.sum(dim=-1), torch.ones(2, 3, 2))
    assert (output.pooling_attentions[1, ..., 2 * N :] == 0).all()


@pytest.mark.parametrize("options", [{}, {"frame_position": "none"}, {"clip_pooling": "mean"}], ids=str)
def test_tokens_of_frames_in_place_of_their_pixels(frames, options):
    model = make_model(**options)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        tokens = model.vision_tokens(frames.flatten(0, 1)).unflatten(0, (2, 4))  # (B, T, N, C)
        output = model(vision_hidden_states=tokens, frame_mask=mask)
        expected = model(pixel_values_videos=frames, frame_mask=mask)
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, **CLOSE)
    with pytest.raises(ValueError, match="Give exactly one of pixel_values_videos and vision_hidden_states"):
        model.get_video_features(frames, vision_hidden_states=tokens)
    with pytest.raises(ValueError, match=r"vision_hidden_states has the shape .*expected \(B, T, N, C\)"):
        model.get_video_features(vision_hidden_states=tokens[0])
    with pytest.raises(ValueError, match="Give images or videos, not both"):
        model(vision_hidden_states=tokens, pixel_values=frames[:, 0])


# Config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, position",
    [
        ({}, "sinusoid"),
        ({"clip_pooling": "mean"}, "none"),
        ({"image_pooling": "mean"}, "none"),
        ({"image_pooling": "cls"}, "none"),
    ],
)
def test_the_default_sees_time_where_the_pooling_can(options, position):
    assert MPCLIPConfig(TEXT_CONFIGS["llama"](), VISION_CONFIGS["vit"](), **options).frame_position == position


@pytest.mark.parametrize("options", [{"clip_pooling": "mean"}, {"image_pooling": "mean"}, {"image_pooling": "cls"}], ids=str)
def test_time_that_a_mean_would_lose_is_refused(options):
    with pytest.raises(ValueError, match=r"in which their order is lost\. Set frame_position='none'"):
        MPCLIPConfig(TEXT_CONFIGS["llama"](), VISION_CONFIGS["vit"](), frame_position="sinusoid", **options)
    with pytest.raises(ValueError, match="frame_position='late' is unknown; use one of 'none', 'sinusoid'"):
        MPCLIPConfig(TEXT_CONFIGS["llama"](), VISION_CONFIGS["vit"](), frame_position="late")


def test_an_earlier_checkpoint_keeps_its_numbers(frames, tmp_path):
    """A config without the option is of a model without frame positions; a new one records what it has."""
    model = make_model(frame_position="none")
    model.save_pretrained(tmp_path)
    make_processor(make_tokenizer()).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["frame_position"], saved["clip_pooling"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert loaded.config.frame_position == "none"
    assert embedded(loaded, frames).equal(embedded(model, frames))

    new = make_model()
    new.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["frame_position"] == "sinusoid"
    again = AutoModel.from_pretrained(tmp_path / "new").eval()
    assert embedded(again, frames).equal(embedded(new, frames)) and not embedded(new, frames).equal(embedded(model, frames))
