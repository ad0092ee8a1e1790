"""The table of vision encoders: by model type, how the output of such an encoder becomes a sequence of tokens.

A family is listed only if tests/test_vision_families.py shows that a model on top of it gives the tokens of the untouched
encoder, trains all its weights, and is the same after saving and loading. docs/towers.md shows the table.
"""

from typing import Any, Literal, NamedTuple

from transformers import CONFIG_MAPPING, PreTrainedConfig


class VisionFamily(NamedTuple):
    """What differs between vision encoders.

    Attributes:
        models: checkpoints of the family, as people call them.
        output: `last_hidden_state` of the encoder. "tokens": (B, N, C), which contain their positions. "map": the feature map
            of a CNN or of a hierarchical transformer, (B, C, h, w). "pooled and map": (B, 1 + h * w, C), the mean of a feature
            map and the map itself, without positions. "patches": tokens of patches that the image processor has cut, as many
            as fit the proportions of a picture, padded and with a mask.
        class_tokens: number of class tokens, which come first, or the field of the config that has it.
        other_tokens: the same of the tokens between them and the patches: registers, or the distillation token of DeiT.
        unread: parts that the tokens do not depend on. They belong to the encoder's own pooled output or to its pretraining,
            and are frozen. The heads that an encoder can be built without are not among them.
        settings: fields that the encoder's config gets: no head of its own, and nothing random but dropout.
        arguments: the same for arguments of the encoder's class.
    """

    models: str
    output: Literal["tokens", "map", "pooled and map", "patches"] = "tokens"
    class_tokens: int | str = 0
    other_tokens: int | str = 0
    unread: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    arguments: dict[str, Any] = {}


_FIXED_POSITIONS = {"pos_embed_shift": None, "pos_embed_jitter": None, "pos_embed_rescale": None}

VISION_FAMILIES = {
    "aimv2_vision_model": VisionFamily("AIMv2", unread=("head.",)),
    "beit": VisionFamily("BEiT", class_tokens=1, unread=("pooler.",)),
    "bit": VisionFamily("BiT", "map"),
    "chinese_clip_vision_model": VisionFamily("Chinese CLIP", class_tokens=1, unread=("post_layernorm.",)),
    "clip_vision_model": VisionFamily("CLIP, MetaCLIP, DFN", class_tokens=1, unread=("post_layernorm.",)),
    "convnext": VisionFamily("ConvNeXt", "map", unread=("layernorm.",)),
    "convnextv2": VisionFamily("ConvNeXt V2", "map", unread=("layernorm.",)),
    "cvt": VisionFamily("CvT", "map"),
    "data2vec-vision": VisionFamily("Data2Vec", class_tokens=1, unread=("pooler.",)),
    "deit": VisionFamily("DeiT", class_tokens=1, other_tokens=1, unread=("pooler.",)),
    "dinov2": VisionFamily("DINOv2", class_tokens=1, unread=("embeddings.mask_token",)),
    "dinov2_with_registers": VisionFamily(
        "DINOv2 with registers", class_tokens=1, other_tokens="num_register_tokens", unread=("embeddings.mask_token",)
    ),
    "dinov3_convnext": VisionFamily("DINOv3 ConvNeXt", "pooled and map"),
    "dinov3_vit": VisionFamily(
        "DINOv3 ViT",
        class_tokens=1,
        other_tokens="num_register_tokens",
        unread=("embeddings.mask_token",),
        settings=_FIXED_POSITIONS,
    ),
    "donut-swin": VisionFamily("Donut"),
    "dpt": VisionFamily("DPT", class_tokens=1, unread=("pooler.",)),
    "efficientnet": VisionFamily("EfficientNet", "map"),
    "hiera": VisionFamily("Hiera", unread=("pooler.",)),
    "ijepa": VisionFamily("I-JEPA", unread=("pooler.",)),
    "internvl_vision": VisionFamily("InternViT", class_tokens=1),
    "levit": VisionFamily("LeViT"),
    "mlcd_vision_model": VisionFamily("MLCD", class_tokens=1, unread=("post_layernorm.",)),
    "mobilenet_v1": VisionFamily("MobileNet V1", "map"),
    "mobilenet_v2": VisionFamily("MobileNet V2", "map"),
    "mobilevit": VisionFamily("MobileViT", "map"),
    "mobilevitv2": VisionFamily("MobileViT V2", "map"),
    "pixio": VisionFamily("Pixio", class_tokens="n_cls_tokens"),
    "poolformer": VisionFamily("PoolFormer", "map"),
    "pvt": VisionFamily("PVT", class_tokens=1),
    "pvt_v2": VisionFamily("PVT v2", "map"),
    "radio": VisionFamily("RADIO", class_tokens="num_cls_tokens", other_tokens="num_registers"),
    "regnet": VisionFamily("RegNet", "map"),
    "resnet": VisionFamily("ResNet", "map"),
    "sapiens2": VisionFamily(
        "Sapiens 2",
        class_tokens=1,
        other_tokens="num_register_tokens",
        unread=("embeddings.mask_token",),
        settings=_FIXED_POSITIONS,
    ),
    "segformer": VisionFamily("SegFormer", "map"),
    "siglip2_vision_model": VisionFamily("SigLIP 2 NaFlex", "patches", settings={"vision_use_head": False}),
    "siglip_vision_model": VisionFamily("SigLIP, SigLIP 2", settings={"vision_use_head": False}),
    "swiftformer": VisionFamily("SwiftFormer", "map"),
    "swin": VisionFamily("Swin"),
    "swinv2": VisionFamily("Swin V2"),
    "tipsv2_vision_model": VisionFamily(
        "TIPS v2", class_tokens=1, other_tokens="num_register_tokens", unread=("embeddings.mask_token",)
    ),
    "vit": VisionFamily("ViT, DINO", class_tokens=1, arguments={"add_pooling_layer": False}),
    "vit_mae": VisionFamily("ViT-MAE", class_tokens=1, settings={"mask_ratio": 0.0}),
    "vit_msn": VisionFamily("MSN", class_tokens=1),
    "vitdet": VisionFamily("ViTDet", "map"),
}

VIDEO_ENCODERS = {
    "pe_video_encoder": "Perception Encoder for videos",
    "timesformer": "TimeSformer",
    "videomae": "VideoMAE",
    "videoprism_vision_model": "VideoPrism",
    "vivit": "ViViT",
    "vjepa2": "V-JEPA 2",
}


NO_VIDEOS_IN_PATCHES = (
    "A model of SigLIP 2 NaFlex embeds pictures in their own proportions, and no videos. For videos, build it from a "
    "checkpoint of fixed resolution, such as google/siglip2-base-patch16-256."
)


def vision_family(config: PreTrainedConfig) -> VisionFamily:
    """The row of the table for a vision encoder.

    Args:
        config: of a vision encoder.

    Raises:
        ValueError: the table has no such row.
    """
    kind = config.model_type
    if kind in VIDEO_ENCODERS:
        raise ValueError(
            f"A vision model of type {kind!r} ({VIDEO_ENCODERS[kind]}) embeds clips of a fixed length, not pictures. Give an "
            "image encoder, such as SigLIP or DINOv2: get_video_features pools its tokens of all frames of a video."
        )
    if kind not in VISION_FAMILIES:
        known = ", ".join(name for name in VISION_FAMILIES if name in CONFIG_MAPPING)
        raise ValueError(
            f"A vision model of type {kind!r} is not an encoder of a supported family. Give a model of one of these types: "
            f"{known}."
        )
    return VISION_FAMILIES[kind]


def class_tokens(config: PreTrainedConfig) -> int:
    """The number of class tokens that a vision encoder puts before the other tokens."""
    return _count(config, vision_family(config).class_tokens)


def leading_tokens(config: PreTrainedConfig) -> int:
    """The number of tokens that a vision encoder puts before those of the patches: class tokens, registers and others."""
    return class_tokens(config) + _count(config, vision_family(config).other_tokens)


def _count(config: PreTrainedConfig, given: int | str) -> int:
    return getattr(config, given) if isinstance(given, str) else given
