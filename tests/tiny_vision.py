"""A tiny random vision encoder of every family of the table, its tokens, and a model on it."""

import torch
from conftest import TEXT_CONFIGS, make_tokenizer
from PIL import Image
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from modeling_mpclip import MPCLIPConfig, MPCLIPModel
from modeling_mpclip.vision_encoder import sinusoidal_grid
from modeling_mpclip.vision_families import VISION_FAMILIES

FOUND = [name for name in VISION_FAMILIES if name in CONFIG_MAPPING]  # an older transformers lacks some

_LAYERS = dict(
    image_size=32,
    patch_size=8,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=2,
    drop_path_rate=0.0,
)
_REGISTERS = _LAYERS | dict(num_register_tokens=3)
_STAGES = dict(image_size=32, hidden_sizes=[8, 16], depths=[1, 1])
_CONVNEXT = _STAGES | dict(num_stages=2)
_WINDOWS = dict(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, drop_path_rate=0.0)
_PYRAMID = _STAGES | dict(
    num_encoder_blocks=2,
    sr_ratios=[2, 1],
    sequence_reduction_ratios=[2, 1],
    patch_sizes=[4, 2],
    strides=[4, 2],
    num_attention_heads=[1, 2],
    mlp_ratios=[2, 2],
    drop_path_rate=0.0,
)
_MOBILE = dict(image_size=32, depth_multiplier=0.1, min_depth=4)
OWN = {
    "bit": dict(image_size=32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4),
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "cvt": dict(
        image_size=32,
        embed_dim=[8, 16, 16],
        num_heads=[1, 2, 2],
        depth=[1, 2, 3],  # transformers needs a layer more in every stage
        drop_rate=[0.0, 0.0, 0.0],
        attention_drop_rate=[0.0, 0.0, 0.0],
        drop_path_rate=[0.0, 0.0, 0.0],
    ),
    "dinov2_with_registers": _REGISTERS,
    "dinov3_convnext": _STAGES,
    "dinov3_vit": _REGISTERS,
    "donut-swin": _WINDOWS,
    "efficientnet": dict(
        image_size=32,
        width_coefficient=0.25,
        depth_coefficient=0.1,
        hidden_dim=320,
        in_channels=[32, 16],
        out_channels=[16, 24],
        kernel_sizes=[3, 3],
        strides=[1, 2],
        num_block_repeats=[1, 1],
        expand_ratios=[1, 2],
        depthwise_padding=[],
    ),
    "hiera": dict(image_size=[32, 32], depths=[1, 1], num_heads=[1, 2], embed_dim=8, masked_unit_size=[4, 4], num_query_pool=1),
    "levit": dict(
        image_size=64,
        hidden_sizes=[8, 16, 16],
        depths=[1, 1, 1],
        num_attention_heads=[1, 2, 2],
        key_dim=[4, 4, 4],
    ),
    "mobilenet_v1": _MOBILE,
    "mobilenet_v2": _MOBILE | dict(finegrained_output=False),
    "mobilevit": dict(
        image_size=64,
        hidden_sizes=[8, 8, 8],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        hidden_dropout_prob=0,
    ),
    "mobilevitv2": dict(image_size=64, width_multiplier=0.125, n_attn_blocks=[1, 1, 1], base_attn_unit_dims=[64, 64, 64]),
    "poolformer": _PYRAMID | dict(padding=[0, 0], patch_size=4, stride=4),
    "pvt": _PYRAMID,
    "pvt_v2": _PYRAMID,
    "regnet": dict(image_size=32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4),
    "resnet": dict(image_size=32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    "radio": _LAYERS | dict(mlp_ratio=2.0, max_img_size=32, num_cls_tokens=2, num_registers=3),
    "segformer": _PYRAMID,
    "siglip2_vision_model": {**_LAYERS, "num_patches": 16},
    "swiftformer": dict(image_size=32, depths=[1, 1], embed_dims=[8, 16], mlp_ratio=2, downsamples=[True, True]),
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "vitdet": _LAYERS | dict(pretrain_image_size=32, window_size=2),
}

PICTURES = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((40, 32), (32, 40), (90, 20))]


def tiny_vision_config(family: str) -> PreTrainedConfig:
    """The config of a tiny encoder, without stochastic depth."""
    return CONFIG_MAPPING[family](**OWN.get(family, _LAYERS))


def inputs_for(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Two pictures of noise, of the size that an encoder is made for. For patches: of 4 x 5 and 3 x 4 patches."""
    torch.manual_seed(2)
    if config.model_type == "siglip2_vision_model":
        mask = (torch.arange(20) < torch.tensor([[20], [12]])).long()  # (2, 20)
        patches = torch.randn(2, 20, 3 * config.patch_size**2)
        return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[4, 5], [3, 4]])}
    size = config.image_size
    return {"pixel_values": torch.randn(2, 3, *(size if isinstance(size, (list, tuple)) else (size, size)))}


def plain_encoder(family: str) -> PreTrainedModel:
    """The encoder as transformers makes it, with weights that are large enough to show a fault; always the same ones."""
    torch.manual_seed(1)
    encoder = AutoModel.from_config(tiny_vision_config(family)).eval()
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def plain_tokens(family: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The (B, N, C) tokens of `plain_encoder(family)`; of feature maps normalised and with the positions of the grid."""
    encoder = plain_encoder(family)
    if family == "vit_mae":
        encoder.config.mask_ratio = 0.0
        output = encoder(**inputs)  # in random order
        patches = output.last_hidden_state[:, 1:]
        order = output.ids_restore[..., None].expand_as(patches)
        return torch.cat([output.last_hidden_state[:, :1], patches.gather(1, order)], dim=1)
    output = encoder(**inputs, output_hidden_states=True)
    maps = output.last_hidden_state  # (B, C, h, w)
    if family == "dinov3_convnext":
        maps = encoder.layer_norm(output.hidden_states[-1].movedim(1, -1)).movedim(-1, 1)
    if maps.dim() == 3:
        return maps
    _, C, h, w = maps.shape
    return torch.nn.functional.layer_norm(maps.flatten(2).mT, (C,)) + sinusoidal_grid(h, w, C)


def model_on(family: str, **options) -> MPCLIPModel:
    """A tiny model whose vision encoder has the weights of `plain_encoder(family)`."""
    text = TEXT_CONFIGS["llama"]()
    text.num_hidden_layers = 1
    sizes = dict(num_prompts=2, projection_dim=8, pooling_width=8, pooling_heads=2)
    config = MPCLIPConfig(text, tiny_vision_config(family), **{**sizes, **options})
    config.compile_prompts(make_tokenizer())
    torch.manual_seed(0)
    model = MPCLIPModel(config)
    found = model.vision_model.load_state_dict(plain_encoder(family).state_dict(), strict=False)
    assert not found.missing_keys
    return model.eval()
