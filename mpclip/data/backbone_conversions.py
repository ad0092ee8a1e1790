"""Conversions of pretrained weights from other formats into transformers models: GGUF files and EfficientNet-Lite0.

Each takes the file of weights and returns a model with its tokenizer or image processor, both ready for `save_pretrained`.
torch and transformers are imported when a conversion runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import EfficientNetImageProcessorPil, PreTrainedModel, PreTrainedTokenizerBase


def convert_gguf(source: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Dequantise a language model in GGUF format.

    The weights become float32. bfloat16 would take half the disk space and lose nothing that the next-token loss shows. But
    `from_pretrained` loads the dtype that it finds, so every run that names no dtype would train in bfloat16 and lose small
    steps.

    Args:
        source: the GGUF file.

    Returns:
        `(model, tokenizer)`: the decoder without its language-model head (in both models here the head is the transposed
        embedding), and the tokenizer as the file describes it, which pads on the right.

    Raises:
        ImportError: the package `gguf` is not installed (raised by transformers).
    """
    import torch
    from transformers import AutoModel, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    # The file names no padding side, and Gemma's default is left. An attribute set later would not be saved.
    tokenizer = AutoTokenizer.from_pretrained(**where, padding_side="right")
    # Without `dequantize` the model counts as quantised, and save_pretrained refuses it.
    model = AutoModel.from_pretrained(**where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
    # The tokenizer of the file has no length limit.
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


# EfficientNet-Lite0 has the seven stages of EfficientNet-B0 with its stem and head. It has no squeeze-and-excitation, and
# ReLU6 in place of swish (github.com/tensorflow/tpu, models/official/efficientnet/lite).
EFFICIENTNET_LITE0 = {
    "image_size": 224,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_act": "relu6",
    "hidden_dim": 1280,
    "batch_norm_eps": 1e-3,
    # TensorFlow's 0.99 in torch's convention. transformers' default would replace the running statistics at each step.
    "batch_norm_momentum": 0.01,
    # Lite0 was trained with stochastic depth 0.2. transformers has plain dropout of features in its place.
    "drop_connect_rate": 0.0,
    "dropout_rate": 0.2,
}

# sigmoid(30) is exactly 1 in float32 and bfloat16 and its gradient is 0, so the gates stay open in training too.
OPEN_GATE_BIAS = 30.0

_EFFICIENTNET_NAMES = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}
_EFFICIENTNET_BLOCK_NAMES = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def convert_efficientnet_lite0(source: Path) -> tuple["PreTrainedModel", "EfficientNetImageProcessorPil"]:
    """Load the weights of EfficientNet-Lite0 into an `EfficientNetModel` whose squeeze-and-excitation gates are always open.

    The model computes the same function as Lite0 for images with sides divisible by 32. (On feature maps with an odd side
    transformers pads another edge than TensorFlow.) The ImageNet classifier of the file is left out.

    Args:
        source: a state dict with the key names of `efficientnet_lite_pytorch`.

    Returns:
        `(model, image_processor)`. The processor resizes to 224 x 224, bicubic, and computes (byte - 127) / 128, as in the
        training of the weights. It works on PIL images and needs no torchvision.
    """
    import torch
    from transformers import EfficientNetConfig, EfficientNetImageProcessorPil, EfficientNetModel

    model = EfficientNetModel(EfficientNetConfig(**EFFICIENTNET_LITE0))
    weights = {
        _efficientnet_key(key): tensor
        for key, tensor in torch.load(source, map_location="cpu", weights_only=True).items()
        if not key.startswith("_fc.")
    }
    for key, tensor in model.state_dict().items():
        if ".squeeze_excite." in key:
            is_gate = key.endswith(".expand.bias")
            weights[key] = torch.full_like(tensor, OPEN_GATE_BIAS if is_gate else 0.0)
    model.load_state_dict(weights, strict=True)
    side = {"height": model.config.image_size, "width": model.config.image_size}
    image_processor = EfficientNetImageProcessorPil(
        size=side,
        crop_size=side,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        include_top=False,  # the default divides by image_std a second time
    )
    return model, image_processor


def _efficientnet_key(key: str) -> str:
    """`_blocks.3._bn1.weight` -> `encoder.blocks.3.depthwise_conv.depthwise_norm.weight`."""
    parts = key.split(".")
    if parts[0] == "_blocks":
        return ".".join(["encoder.blocks", parts[1], _EFFICIENTNET_BLOCK_NAMES[parts[2]], *parts[3:]])
    return ".".join([_EFFICIENTNET_NAMES[parts[0]], *parts[1:]])
