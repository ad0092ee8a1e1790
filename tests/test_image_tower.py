import pytest
import torch
from conftest import VISION_CONFIGS, make_model
from plain_pooling import multi_head_attention

from modeling_mpclip.image_tower import AttentionPooling
from modeling_mpclip.vision_encoder import sinusoidal_grid, vision_tokens


@pytest.mark.parametrize("masked", [False, True])
def test_attention_pooling_equals_multi_head_attention(masked):
    torch.manual_seed(0)
    pooling = AttentionPooling(num_queries=3, token_dim=20, width=16, heads=4)
    torch.nn.init.normal_(pooling.queries, std=3.0)
    torch.nn.init.normal_(pooling.norm.weight, mean=1.0)
    torch.nn.init.normal_(pooling.norm.bias)
    tokens = torch.randn(2, 7, 20, requires_grad=True)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3]) if masked else None
    ours, weights = pooling(tokens, mask)
    theirs = multi_head_attention(pooling, tokens, mask)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 4))
    if masked:
        assert (weights[1, ..., 4:] == 0).all()
    parameters = [*pooling.parameters(), tokens]
    seed = torch.randn_like(ours)
    fast = torch.autograd.grad((ours * seed).sum(), parameters)
    slow = torch.autograd.grad((theirs * seed).sum(), parameters)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("family", VISION_CONFIGS)
@pytest.mark.parametrize("pooling", ["attention", "attention_per_prompt", "mean"])
def test_every_vision_family_and_pooling(family, pooling):
    model = make_model(vision=family, image_pooling=pooling)
    size = model.config.vision_config.image_size
    output = model.get_image_features(torch.randn(2, 3, size, size))
    assert output.pooler_output.shape == (2, 12) and output.prompt_embeds.shape == (2, 3, 4)
    assert output.pooler_output.isfinite().all()
    output.pooler_output.square().sum().backward()
    trained = [p for module in (model.vision_model, model.image_projection) for p in module.parameters() if p.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("family", ["vit", "clip", "dinov2"])
def test_cls_pooling_reads_the_class_token(family):
    model = make_model(vision=family, image_pooling="cls")
    pixels = torch.randn(2, 3, 32, 32)
    first = model.vision_tokens(pixels)[:, 0]
    expected = first @ model.image_projection.weight[0]
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected)


@pytest.mark.parametrize("family", ["siglip", "efficientnet"])
def test_cls_pooling_without_a_class_token_is_refused(family):
    with pytest.raises(ValueError, match="needs a class token"):
        make_model(vision=family, image_pooling="cls")


def test_a_feature_map_keeps_left_and_right():
    """A CNN map and its mirror image pool to the same without positions; with them they differ."""
    features = torch.randn(1, 16, 4, 4)
    tokens, mirrored = vision_tokens(features), vision_tokens(features.flip(-1))
    assert (tokens.mean(1) - mirrored.mean(1)).abs().max() < 1e-5
    torch.manual_seed(0)
    pooling = AttentionPooling(1, 16, 16, 2)
    torch.nn.init.normal_(pooling.queries, std=3.0)
    assert (pooling(tokens)[0] - pooling(mirrored)[0]).abs().max() > 1e-2


def test_grid_positions_are_distinct_and_do_not_depend_on_resolution():
    grid = sinusoidal_grid(7, 7, 64)
    assert grid.shape == (49, 64)
    assert (torch.cdist(grid, grid) + 10 * torch.eye(49)).min() > 0.5
    torch.testing.assert_close(sinusoidal_grid(3, 3, 64)[4], grid[24])  # the centre
    assert sinusoidal_grid(2, 3, 13).shape == (6, 13)


@pytest.mark.parametrize("pooling", ["attention", "attention_per_prompt", "mean", "cls"])
def test_a_video_of_one_frame_is_an_image_and_padding_frames_do_not_count(pooling):
    model = make_model(image_pooling=pooling)
    frames = torch.randn(2, 3, 3, 32, 32)  # (B, T, C, H, W)
    image = model.get_image_features(frames[:, 0]).pooler_output
    torch.testing.assert_close(model.get_video_features(frames[:, :1]).pooler_output, image, atol=1e-5, rtol=1e-4)
    masked = model.get_video_features(frames, torch.tensor([[1, 1, 0], [1, 1, 0]])).pooler_output
    expected = model.get_video_features(frames[:, :2]).pooler_output
    torch.testing.assert_close(masked, expected, atol=1e-5, rtol=1e-4)
    assert (masked - image).abs().max() > 1e-3


def test_video_refusals():
    model = make_model()
    with pytest.raises(ValueError, match=r"expected \(B, T, C, H, W\)"):
        model.get_video_features(torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match="with a frame in every video"):
        model.get_video_features(torch.randn(1, 2, 3, 32, 32), torch.zeros(1, 2))


@pytest.mark.parametrize("trained", [False, True])
def test_batch_norm_keeps_its_statistics(trained):
    model = make_model(vision="efficientnet")
    model.vision_model.requires_grad_(trained)
    model.train()
    assert model.training and model.vision_model.training == trained and model.text_model.training
    before = {n: b.clone() for n, b in model.vision_model.named_buffers()}
    model.get_image_features(torch.randn(2, 3, 64, 64))
    for name, buffer in model.vision_model.named_buffers():
        torch.testing.assert_close(buffer, before[name], atol=0, rtol=0)
    pixels = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        together, alone = (model.get_image_features(x).pooler_output[:1] for x in (pixels, pixels[:1]))
    torch.testing.assert_close(alone, together)


def test_one_prompt_may_be_matched_by_several_queries():
    model = make_model(num_prompts=1, pooling_queries=3)
    pixels = torch.randn(2, 3, 32, 32)
    output = model.get_image_features(pixels)
    assert output.prompt_embeds.shape == (2, 1, 12) and output.pooling_attentions.shape[1] == 3
    pooled, _ = model.image_pooling(model.vision_tokens(pixels))  # (2, 3, 16)
    segments = [pooled[:, q] @ model.image_projection.weight[q] for q in range(3)]
    torch.testing.assert_close(output.pooler_output, torch.cat(segments, dim=1))
