"""Freezes the weights that no embedding depends on: they get no gradient, which DDP takes for an error."""

from torch import nn
from transformers import PreTrainedModel

# Parts of vision encoders that the vision tokens do not depend on, by model type. They belong to the encoder's own pooled
# output, or to its pretraining. The pooling heads that an encoder can be built without are not here: see `pooler_arguments`.
UNREAD = {
    "aimv2_vision_model": ("head.",),
    "beit": ("pooler.",),
    "clip_vision_model": ("post_layernorm.",),
    "convnext": ("layernorm.",),
    "convnextv2": ("layernorm.",),
    "deit": ("pooler.",),
    "dinov2": ("embeddings.mask_token",),
    "dinov2_with_registers": ("embeddings.mask_token",),
    "dinov3_vit": ("embeddings.mask_token",),
    "hiera": ("pooler.",),
}


def freeze_unused_weights(model: nn.Module) -> None:
    """Freeze what cannot be trained in an [`MPCLIPModel`], also in the copies that an adapter has made of its parts.

    That is: the parts in `UNREAD`; the input embeddings of adaptive tokens where boundary vectors are learned in their place;
    and embeddings of no token, where the prompts have no adaptive ones.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            freeze_unread(module)
    if model.text_model.boundary_embedding is not None:
        model.text_model.adaptive_embedding.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.numel() == 0:
            parameter.requires_grad_(False)


def freeze_unread(vision_model: PreTrainedModel) -> None:
    """Freeze the parts in `UNREAD` of a vision encoder. Any other model is left as it is."""
    unread = UNREAD.get(vision_model.config.model_type, ())
    for name, parameter in vision_model.named_parameters():
        if name.startswith(unread):
            parameter.requires_grad_(False)
