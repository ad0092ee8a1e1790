"""The learned scale and bias from similarity to logit; and the conversion of checkpoints in which they were plain numbers."""

import torch
from torch import nn
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter


class LogitScale(nn.Module):
    """Similarity -> logit: exp(log_scale) * similarity + bias. It is a module so that adapters can train and save it.

    Scale and bias are vectors of one element. In earlier checkpoints they are 0-dimensional, which FSDP could not shard.

    Args:
        has_bias: whether there is a learned bias, as for the sigmoid loss.
    """

    MAX_SCALE = 100.0  # CLIP's bound

    def __init__(self, has_bias: bool):
        super().__init__()
        # float32 whatever the model's dtype: bfloat16 would round the small steps of the scale away.
        self.log_scale = nn.Parameter(torch.empty(1, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(1, dtype=torch.float32)) if has_bias else None

    def forward(self, similarity: torch.Tensor) -> torch.Tensor:
        """Similarities of any shape -> float32 logits of the same shape."""
        logits = similarity.float() * self.log_scale.float().exp().clamp(max=self.MAX_SCALE).squeeze()
        return logits if self.bias is None else logits + self.bias.float().squeeze()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # Resumed runs and peft's adapters come in here.
        for name in ("log_scale", "bias"):
            if (value := state_dict.get(prefix + name)) is not None:
                state_dict[prefix + name] = value.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _ToShapeOfModel(ConversionOps):
    """Gives a loaded scale or bias the shape that the model has. Earlier code, which a checkpoint may bring along, has none."""

    def convert(self, input_dict, source_patterns, target_patterns, *, full_layer_name, model, **kwargs):
        tensors = next(iter(input_dict.values()))
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        return {target_patterns[0]: tensor.reshape(model.get_parameter(full_layer_name).shape)}

    @property
    def reverse_op(self) -> ConversionOps:
        return _AsItIs()


class _AsItIs(ConversionOps):
    """Saves a weight unchanged."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return {target_patterns[0]: next(iter(input_dict.values()))}

    @property
    def reverse_op(self) -> ConversionOps:
        return _ToShapeOfModel()


# For `from_pretrained`, which does not pass through `load_state_dict`. It holds for every weight of the module of this name.
register_checkpoint_conversion_mapping(
    "mpclip", [WeightConverter("logit_scale", "logit_scale", [_ToShapeOfModel()])], overwrite=True
)
