"""Freezes the weights that no embedding depends on: they get no gradient, which DDP takes for an error."""

from torch import nn
from transformers import PreTrainedModel

from .vision_families import VISION_FAMILIES


def freeze_unused_weights(model: nn.Module) -> None:
    """Freeze what cannot be trained in an [`MPCLIPModel`], also in the copies that an adapter has made of its parts.

    That is: the parts of the vision encoder that its tokens do not depend on; the input embeddings of adaptive tokens where
    boundary vectors are learned in their place; and embeddings of no token, where the prompts have no adaptive ones.

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
    """Freeze the parts of a vision encoder that its tokens do not depend on. Any other model is left as it is."""
    family = VISION_FAMILIES.get(vision_model.config.model_type)
    for name, parameter in vision_model.named_parameters():
        if family is not None and name.startswith(family.unread):
            parameter.requires_grad_(False)
