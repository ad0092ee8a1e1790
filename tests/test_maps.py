"""Maps of what each prompt sees: the three kinds against their definitions, places, drawing, the command."""

import functools

import numpy as np
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image
from tiny_vision import model_on
from transformers import CLIPImageProcessorPil

from modeling_mpclip import MPCLIPProcessor
from modeling_mpclip.segments import normalized
from mpclip.maps.__main__ import main
from mpclip.maps.drawing import colour_scale, draw_maps, heat_over
from mpclip.maps.gradients import FINER, gradient_maps, inner_state
from mpclip.maps.kinds import MAPS, _filled_by, attention_maps, occlusion_maps, token_segments, value_maps
from mpclip.maps.prompt_maps import enlarged, highest_places, prompt_maps
from mpclip.maps.seen import see, token_grid


def pictures(count: int, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (count, *size, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


@functools.cache
def model_of(**kwargs):
    """A model that no test changes; `kwargs` are `make_model`'s."""
    return make_model(**kwargs)


def text_segments(model, texts: list[str]) -> torch.Tensor:
    batch = make_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        embeds = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).text_embeds
    return embeds.unflatten(1, (model.config.num_prompts, -1))


def setting(vision: str = "vit", **kwargs):
    """A model, its processor, what it sees of two pictures, and the segments of a text for each."""
    model, processor = model_of(vision=vision, **kwargs), make_processor(make_tokenizer())
    return model, processor, see(model, processor, images=pictures(2)), text_segments(model, ["a red cat", "a boat"])


@pytest.mark.parametrize("vision", ["vit", "efficientnet"])
@pytest.mark.parametrize("pooling", ["attention_per_prompt", "mean"])
def test_a_value_is_the_score_of_the_token_alone(vision, pooling):
    model, _, seen, words = setting(vision, image_pooling=pooling)
    maps = value_maps(model, seen, words)  # (B, 1, K, h, w)
    assert maps.shape == (2, 1, 3, *seen.grid)
    row, column = 1, seen.grid[1] - 1
    token = seen.tokens[:, :, seen.leading + row * seen.grid[1] + column]  # (B, 1, C)
    with torch.no_grad():
        alone = normalized(model.get_image_features(vision_hidden_states=token).prompt_embeds).unflatten(1, (3, -1))
    torch.testing.assert_close(maps[:, 0, :, row, column], (alone * words).sum(-1))


@pytest.mark.parametrize("vision, tokens", [("vit", "all"), ("vit", "patches"), ("efficientnet", "all")])
@pytest.mark.parametrize("pooling", ["attention_per_prompt", "mean"])
def test_an_occlusion_is_what_the_score_loses(vision, tokens, pooling):
    model, _, seen, words = setting(vision, image_pooling=pooling, image_tokens=tokens)
    maps, w = occlusion_maps(model, seen, words), seen.grid[1]
    row, column = 0, w - 1  # a corner: its window is cut off
    assert w >= 4
    kept = torch.ones(2, seen.tokens.shape[2])
    for r in (0, 1):
        for c in (w - 2, w - 1):
            kept[:, seen.leading + r * w + c] = 0

    def parts(**mask):
        with torch.no_grad():
            output = model.get_image_features(vision_hidden_states=seen.tokens[:, 0], **mask)
        return (normalized(output.prompt_embeds).unflatten(1, (3, -1)) * words).sum(-1)  # (B, K)

    expected = parts() - parts(pixel_attention_mask=kept)
    torch.testing.assert_close(maps[:, 0, :, row, column], expected, atol=1e-5, rtol=1e-4)


def test_an_occluded_clip_loses_its_own_frames_tokens():
    model, processor = model_of(clip_pooling="mean", frame_position="none"), make_processor(make_tokenizer())
    frames, words = pictures(2), text_segments(model, ["a cat"])
    of_clip = occlusion_maps(model, see(model, processor, clips=[frames]), words)
    of_pictures = occlusion_maps(model, see(model, processor, images=frames), words.expand(2, -1, -1))
    torch.testing.assert_close(of_clip[0], of_pictures[:, 0])  # pooled alone


def test_attention_is_that_of_the_pooling():
    model, _, seen, _ = setting()
    with torch.no_grad():
        weights = model.get_image_features(vision_hidden_states=seen.tokens[:, 0]).pooling_attentions.mean(dim=2)
    torch.testing.assert_close(attention_maps(model, seen).flatten(3)[:, 0], weights[..., 1:])  # without the class token


def test_pooling_queries_belong_to_the_segments_they_fill():
    assert _filled_by(3, 1).tolist() == [[1.0]] * 3
    assert _filled_by(2, 4).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    torch.testing.assert_close(_filled_by(3, 2), torch.tensor([[1, 0], [0.5, 0.5], [0, 1]], dtype=torch.float64))
    model, _, seen, _ = setting(pooling_queries=6)
    assert attention_maps(model, seen).shape == (2, 1, 3, *seen.grid)


@pytest.mark.parametrize("pooling", ["attention_per_prompt", "cls"])
def test_gradients_are_those_of_captum(pooling):
    attr = pytest.importorskip("captum.attr", reason="the check of gradients: pip install captum")
    model, _, seen, words = setting(image_pooling=pooling)

    def scores(pixels, words):  # -> (B, K)
        segments = normalized(model.get_image_features(pixels).prompt_embeds).unflatten(1, (3, -1))
        return (segments * words).sum(-1)

    pixels = seen.pixels[:, 0].clone().requires_grad_()
    states = model.get_image_features(pixels, output_hidden_states=True).hidden_states
    place = next(i for i, s in enumerate(states) if s is inner_state(states, seen.grid, model.config.vision_config, (32, 32)))
    layers = model.vision_model.layers if hasattr(model.vision_model, "layers") else model.vision_model.encoder.layer
    method = attr.LayerGradientXActivation(scores, layers[place - 1])
    for prompt in range(3):
        terms = method.attribute(pixels, target=prompt, additional_forward_args=(words,))
        terms = terms[0] if isinstance(terms, tuple) else terms  # (B, 1 + N, C)
        expected = terms[:, 1:].detach().abs().sum(-1).unflatten(1, seen.grid)
        torch.testing.assert_close(gradient_maps(model, seen, words)[:, 0, prompt], expected)


def test_an_inner_layer_is_finer_where_there_is_one():
    states = [torch.zeros(1, 2, side, side) for side in (32, 16, 16, 8, 4)]
    assert inner_state(states, (4, 4), None, (64, 64)) is states[2] and FINER == 4
    assert inner_state(states[3:], (4, 4), None, (64, 64)) is states[4]  # the middle of two
    with pytest.raises(ValueError, match="'vit' shows no inner layer whose places are known"):
        inner_state(None, (4, 4), model_of(vision="vit").config.vision_config, (32, 32))


@pytest.mark.parametrize("family", ["dinov3_vit", "swin", "dinov3_convnext"])
def test_families_of_encoders(family):
    model, processor = model_on(family), make_processor(make_tokenizer())
    seen = see(model, processor, images=pictures(1))
    words = torch.nn.functional.normalize(torch.randn(1, model.config.projection_dim), dim=-1)
    words = words.unflatten(1, (model.config.num_prompts, -1))
    for make in MAPS.values():
        maps = make(model, seen, words)
        assert maps.shape[:3] == (1, 1, 2) and maps.isfinite().all() and maps.std() > 0


def test_a_picture_that_is_not_square():
    processor = MPCLIPProcessor(CLIPImageProcessorPil(size={"height": 32, "width": 64}, do_center_crop=False), make_tokenizer())
    model = model_of(vision="efficientnet")
    found = prompt_maps(model, processor, "a cat", image=pictures(1, (50, 90))[0])
    assert found.maps.shape == (1, 3, 32, 64) and found.pictures.shape == (1, 32, 64, 3)
    assert found.grid[1] == 2 * found.grid[0]


@pytest.mark.parametrize("kind", MAPS)
def test_clips_have_a_map_for_each_frame(kind):
    model, processor = model_of(vision="vit"), make_processor(make_tokenizer())
    frames = pictures(3)
    found = prompt_maps(model, processor, "a cat", clip=frames, kind=kind)
    assert found.maps.shape == (3, 3, 32, 32)
    with torch.no_grad():
        batch = processor(text=["a cat"], videos=[frames])
        output = model(**batch)
    assert found.score == pytest.approx(float(output.image_embeds @ output.text_embeds.T), abs=1e-5)
    one = prompt_maps(model, processor, "a cat", clip=frames[:1], kind=kind)  # a clip of one frame is a picture
    np.testing.assert_allclose(one.maps, prompt_maps(model, processor, "a cat", frames[0], kind=kind).maps, atol=1e-5)
    padded = see(model, processor, clips=[frames, frames[:1]])
    assert padded.frame_mask.tolist() == [[True] * 3, [True, False, False]]


def test_shares_sum_to_the_cosine():
    model, processor = make_model().train(), make_processor(make_tokenizer())
    (image,) = pictures(1)
    found = prompt_maps(model, processor, "a red cat", image=image)
    assert model.training  # as before
    with torch.no_grad():
        output = model.eval()(**processor(text=["a red cat"], images=[image]))
    assert found.score == pytest.approx(float(output.image_embeds @ output.text_embeds.T), abs=1e-5)
    assert found.shares.sum() == pytest.approx(found.score, abs=1e-6) and len(found.prompts) == 3
    np.testing.assert_allclose(found.pictures[0] * 255, np.asarray(image), atol=0.01)


def test_what_has_no_map_is_refused():
    processor, (image,) = make_processor(make_tokenizer()), pictures(1)
    with pytest.raises(ValueError, match="'mean' has no attention weights"):
        prompt_maps(model_of(vision="vit", image_pooling="mean"), processor, "a cat", image=image, kind="attention")
    with pytest.raises(ValueError, match=r"reads the class token alone.*'gradient'"):
        token_segments(model_of(vision="vit", image_pooling="cls"), see(model_of(vision="vit"), processor, images=[image]))
    with pytest.raises(ValueError, match="kind='heat'; expected one of"):
        prompt_maps(model_of(vision="vit"), processor, "a cat", image=image, kind="heat")
    with pytest.raises(ValueError, match="exactly one of image and clip"):
        prompt_maps(model_of(vision="vit"), processor, "a cat")


def test_places_of_maxima():
    maps = torch.zeros(3, 8, 8)
    maps[0, 2, 5] = 1
    maps[1, 2, 2] = maps[1, 4, 6] = 1  # a tie: the mean
    assert highest_places(maps).tolist() == [[2, 5], [3, 4], [3.5, 3.5]]
    coarse = torch.zeros(1, 1, 2, 2)
    coarse[..., 1, 0] = 1
    row, column = highest_places(enlarged(coarse, (40, 80)))[0, 0].tolist()
    assert 29 < row < 40 and 0 <= column < 20  # a plateau beyond the outermost token's centre


def test_colours_lie_where_the_weight_is():
    picture, weights = np.ones((40, 80, 3)), np.zeros((2, 4))
    weights[1, 3] = 1
    redness = (heat := heat_over(picture, weights, *colour_scale(weights)))[..., 0] - heat[..., 2]
    assert redness[30, 70] > 0.3 and abs(redness[:20, :40]).max() < 0.01
    shared = heat_over(picture, weights, 0.0, 10.0)  # on the scale of stronger maps
    assert (shared[..., 0] - shared[..., 2])[30, 70] < redness[30, 70] / 2
    flat = heat_over(picture, np.full((2, 4), 0.3), *colour_scale(np.full((2, 4), 0.3)))
    assert abs(flat - picture).max() < 1e-6  # not coloured


def test_grids_of_tokens():
    assert token_grid(49, 224, 224) == (7, 7)
    assert token_grid(28, 128, 224) == (4, 7)
    with pytest.raises(ValueError, match="11 tokens form no grid"):
        token_grid(11, 224, 224)


def test_a_sheet_of_several_texts(tmp_path):
    model, processor, images = model_of(vision="vit"), make_processor(make_tokenizer()), pictures(2)
    found = [prompt_maps(model, processor, text, image=one) for text, one in zip(["a cat", "a boat"], images, strict=True)]
    draw_maps(found[0], tmp_path / "one.png")
    draw_maps(found, tmp_path / "both.png")
    one, both = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("one.png", "both.png"))
    assert both.shape[1] == one.shape[1] and 1.6 * len(one) < len(both) < 2 * len(one)  # prompts are named once
    coloured = [(part.max(axis=-1) - part.min(axis=-1)).max(axis=1) > 40 for part in (one, both)]
    assert coloured[1].sum() == pytest.approx(2 * coloured[0].sum(), rel=0.1)


def test_the_command_draws_and_refuses(tmp_path, capsys):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    make_processor(make_tokenizer()).save_pretrained(tmp_path / "model")
    pictures(1)[0].save(tmp_path / "picture.png")
    given = ["--model", str(tmp_path / "model"), "--image", str(tmp_path / "picture.png"), "--text", "a red cat"]
    main([*given, "--out", str(tmp_path / "maps.png"), "--device", "cpu"])
    shown = capsys.readouterr().out
    parts = [float(line.split()[-1]) for line in shown.splitlines()[1:4]]
    assert sum(parts) == pytest.approx(float(shown.split()[1].strip(",")), abs=0.003)
    with Image.open(tmp_path / "maps.png") as sheet:
        assert sheet.width > 5 * 180 and np.asarray(sheet.convert("RGB")).std() > 10
    with pytest.raises(SystemExit, match=r"--out .*maps.jpg: expected a name that ends in .png"):
        main([*given, "--out", str(tmp_path / "maps.jpg")])
    with pytest.raises(SystemExit, match=r"nowhere\.png"):
        main([*given[:3], str(tmp_path / "nowhere.png"), *given[4:], "--out", str(tmp_path / "x.png")])


def test_a_sheet_of_a_single_prompt(tmp_path):
    model, processor = make_model(num_prompts=1), make_processor(make_tokenizer())
    draw_maps(prompt_maps(model, processor, "a cat", image=pictures(1)[0]), tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").width < 3 * 220  # the picture and one map
