"""Vision encoders of all families behind one interface: build one, run it, and get its output as (B, N, C) tokens."""

import functools
import json

import torch
import torch.nn.functional as F
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .vision_families import VisionFamily, vision_family

USUAL_SIZE = 224  # pixels; where a config does not say for which pictures the encoder was trained

OF_A_CHECKPOINT = ("_name_or_path", "architectures", "dtype", "transformers_version")  # say nothing of the encoder's shapes


def vision_model_class(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], dict]:
    """The class of a vision encoder, and its arguments: without a pooling head, whose weights would get no gradient.

    Args:
        config: of a vision encoder. What some families read from it, such as the share of patches that are masked, is set in
            place.

    Returns:
        The class, and keyword arguments for its constructor or for its `from_pretrained`.

    Raises:
        ValueError: the encoder is of no supported family.
    """
    return MODEL_MAPPING[type(config)], settle(config).arguments


def settle(config: PreTrainedConfig) -> VisionFamily:
    """Set in a config of a vision encoder what its family needs (`VisionFamily.settings`), and return the family.

    Raises:
        ValueError: the encoder is of no supported family.
    """
    family = vision_family(config)
    for name, value in family.settings.items():
        setattr(config, name, value)
    return family


def build_vision_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a randomly initialised vision encoder without its pooling head; [`MPCLIPModel`] has a pooling of its own.

    Args:
        config: of a vision encoder; changed as `vision_model_class` says.

    Raises:
        ValueError: the encoder is of no supported family.
    """
    model_class, arguments = vision_model_class(config)
    return model_class(config, **arguments)


def token_width(config: PreTrainedConfig) -> int:
    """C, the number of channels of a vision token: that of an encoder without weights, which is run once.

    Args:
        config: of a vision encoder.
    """
    built = {name: value for name, value in config.to_dict().items() if name not in OF_A_CHECKPOINT}
    return _width(type(config), json.dumps(built, sort_keys=True, default=str))


@functools.lru_cache  # a process builds a model, saves it, loads it: once for all
def _width(config_class: type[PreTrainedConfig], as_json: str) -> int:
    config = config_class.from_dict(json.loads(as_json))
    with torch.device("meta"), torch.no_grad():  # tensors of this device have a shape and no numbers
        blank = _blank(config)
        output = build_vision_model(config)(**blank, **in_order(config, blank["pixel_values"]), return_dict=True)
    shape = output.last_hidden_state.shape  # (2, N, C) or (2, C, h, w)
    return shape[1] if len(shape) == 4 else shape[2]


def _blank(config: PreTrainedConfig) -> dict[str, torch.Tensor | None]:
    """Inputs of the size that a config names: two pictures, because a batch norm in training mode refuses a single value."""
    channels = getattr(config, "num_channels", 3)
    if vision_family(config).output == "patches":
        side = int(config.num_patches**0.5)
        return {
            "pixel_values": torch.empty(2, side**2, channels * config.patch_size**2),  # (B, N, C * p * p)
            "pixel_attention_mask": None,  # no patch is padding
            "spatial_shapes": torch.full((2, 2), side, device="cpu"),  # (B, 2), whose numbers are read
        }
    size = getattr(config, "image_size", None) or USUAL_SIZE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return {"pixel_values": torch.empty(2, channels, height, width)}  # (B, C, H, W)


def run_vision_model(vision_model: PreTrainedModel, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutput:
    """Run a vision encoder.

    Args:
        vision_model: of a family of the table.
        pixel_values: (B, C, H, W), or (B, N, C * p * p) for an encoder that takes patches.
        kwargs: for the encoder, such as `pixel_attention_mask`, `spatial_shapes` and `output_attentions`.

    Returns:
        `last_hidden_state` are the (B, N, C) tokens; `hidden_states` and `attentions` are those of the encoder.
    """
    config = vision_model.config
    output = vision_model(
        pixel_values=pixel_values.to(vision_model.dtype), **in_order(config, pixel_values), **{"return_dict": True, **kwargs}
    )
    tokens = output.last_hidden_state
    if vision_family(config).output == "pooled and map":
        # Of a ConvNeXt, whose stem divides the sides by 4 and each further stage by 2.
        stride = 2 ** (len(config.hidden_sizes) + 1)
        h, w = (side // stride for side in pixel_values.shape[-2:])
        tokens = tokens[:, 1:].transpose(1, 2).unflatten(2, (h, w))  # (B, C, h, w)
    return BaseModelOutput(
        last_hidden_state=vision_tokens(tokens),
        hidden_states=output.hidden_states,
        attentions=getattr(output, "attentions", None),  # the output of a CNN has no such field
    )


def in_order(config: PreTrainedConfig, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """An argument that keeps the patches of ViT-MAE in their order. It sorts them by noise, even where it masks none.

    Args:
        config: of a vision encoder.
        pixel_values: (B, C, H, W).

    Returns:
        `noise` (B, number of patches); nothing for another family.
    """
    if config.model_type != "vit_mae":
        return {}
    patch = config.patch_size
    rows, columns = (side // patch for side in pixel_values.shape[-2:])
    noise = torch.arange(rows * columns, dtype=torch.float32, device=pixel_values.device)
    return {"noise": noise.expand(len(pixel_values), -1)}


def vision_tokens(last_hidden_state: torch.Tensor) -> torch.Tensor:
    """The output of a vision encoder as a sequence of tokens.

    The tokens of a transformer already contain their position and are returned unchanged. The feature map of a CNN becomes
    h * w tokens, normalised over channels. Each gets a fixed two-dimensional sinusoidal position (ours): without it the
    pooling could not tell left from right. Nothing here is learned, so the tokens of a frozen encoder can be cached.

    Args:
        last_hidden_state: (B, N, C) of a transformer, or (B, C, h, w) of a CNN.

    Returns:
        (B, N, C), with N = h * w for a CNN.
    """
    if last_hidden_state.dim() == 3:
        return last_hidden_state
    B, C, h, w = last_hidden_state.shape
    tokens = F.layer_norm(last_hidden_state.flatten(2).transpose(1, 2), (C,))  # (B, h*w, C)
    return tokens + sinusoidal_grid(h, w, C).to(tokens)


def sinusoidal_grid(h: int, w: int, channels: int) -> torch.Tensor:
    """Position encoding of a grid: sines and cosines of the row in the first half of the channels, of the column in the second.

    Positions run from -0.5 to 0.5 across the picture, so feature maps of different resolutions share one coordinate system.
    The frequencies run from half a turn to 16 turns across the picture.

    Args:
        h, w: rows and columns of the grid.
        channels: C. Up to three channels that remain after the division by 4 are zero.

    Returns:
        (h * w, C) float32.
    """
    quarter = channels // 4
    frequency = torch.pi * 2 ** torch.linspace(0, 5, quarter)  # (C/4,) radians per picture
    rows, columns = ((torch.arange(n) + 0.5) / n - 0.5 for n in (h, w))

    def waves(position: torch.Tensor) -> torch.Tensor:
        angle = position[:, None] * frequency  # (n, C/4)
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (n, C/2)

    row, column = waves(rows)[:, None].expand(h, w, -1), waves(columns)[None].expand(h, w, -1)
    grid = torch.cat([row, column], dim=-1).reshape(h * w, 4 * quarter)
    return F.pad(grid, (0, channels - 4 * quarter))
