"""Selects which weights of the two towers are trained: none, the LLM's last layers, LoRA adapters, or all.

Projections, pooling, logit scale and adaptive tokens are always trained.
"""

import re
from collections.abc import Iterable

from torch import nn

from .options import ModelArguments

PASSED_OVER = {"gate", "router", "altup"}  # parts of a decoder layer without adapters; see `linear_parts`


def boundary_layer(num_layers: int, arguments: ModelArguments) -> int:
    """Index of the first layer that training changes.

    Args:
        num_layers: layers of the LLM.
        arguments: `text_tuning`, `trained_layers` and `lora_layers` are used.

    Returns:
        0 to `num_layers`; `num_layers` if no layer is trained.

    Raises:
        ValueError: more layers, or fewer than one, are to be trained than the LLM has.
    """
    if arguments.text_tuning == "frozen":
        return num_layers
    if arguments.text_tuning == "last":
        if not 1 <= arguments.trained_layers <= num_layers:
            raise ValueError(
                f"trained_layers={arguments.trained_layers} is outside 1..{num_layers}: the LLM has {num_layers} layers."
            )
        return num_layers - arguments.trained_layers
    if arguments.text_tuning == "lora" and arguments.lora_layers is not None:
        if not 1 <= arguments.lora_layers <= num_layers:
            raise ValueError(
                f"lora_layers={arguments.lora_layers} is outside 1..{num_layers}: the LLM has {num_layers} layers."
            )
        return num_layers - arguments.lora_layers
    return 0


def prepare_tuning(model, arguments: ModelArguments) -> nn.Module:
    """Freeze the weights that are not trained, and add the LoRA adapters.

    Args:
        model: [`MPCLIPModel`]; changed in place.
        arguments: the options of the tuning.

    Returns:
        The model to train: `model` itself, or its `PeftModel` for text_tuning="lora".

    Raises:
        ValueError: as `boundary_layer`.
    """
    text = model.text_model
    learned_at_input = text.boundary_embedding is None
    text.requires_grad_(arguments.text_tuning == "full")
    if arguments.text_tuning == "last":
        for layer in text.layers[boundary_layer(len(text.layers), arguments) :]:
            layer.requires_grad_(True)
    if arguments.text_tuning in ("last", "full"):
        text.final_norm.requires_grad_(True)
    text.adaptive_embedding.requires_grad_(learned_at_input)
    if not learned_at_input:
        text.boundary_embedding.requires_grad_(True)
    model.vision_model.requires_grad_(arguments.vision_tuning == "full")
    model.freeze_unused()
    if arguments.text_tuning != "lora":
        return model

    from peft import LoraConfig, get_peft_model

    trained = ["image_pooling", "image_projection", "text_pooling", "text_projection", "logit_scale"]
    trained += ["adaptive_embedding" if learned_at_input else "boundary_embedding"]
    trained += ["vision_model"] if arguments.vision_tuning == "full" else []
    first = boundary_layer(len(text.layers), arguments)
    layers = "|".join(map(str, range(first, len(text.layers))))
    parts = "|".join(re.escape(part) for part in linear_parts(text.layers[first:]))
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha,
            # A pattern for whole paths: "q_proj" alone would also match the layers of a CLIP vision tower.
            target_modules=rf"text_model\.layers\.({layers})\.({parts})",
            modules_to_save=[name for name in trained if getattr(model, name, None) is not None or "embedding" in name],
        ),
    )
    model.freeze_unused()  # also in the copies of modules_to_save
    return adapted


def linear_parts(layers: Iterable[nn.Module]) -> list[str]:
    """Names within a decoder layer of the linear layers that get adapters: all projections of attention and MLP.

    Left out are the routers of experts, and blocks whose code reads weights without calling the layer that holds them.

    Args:
        layers: of the LLM; they may differ in kind.

    Raises:
        ValueError: there is none.
    """
    parts = {
        name
        for layer in layers
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
        and not PASSED_OVER & set(name.split("."))
        and not _is_mamba(layer.get_submodule(name.rpartition(".")[0]))
    }
    if not parts:
        raise ValueError("text_tuning='lora': these layers of the LLM have no linear layer to adapt. Use 'last' or 'full'.")
    return sorted(parts)


def _is_mamba(module: nn.Module) -> bool:
    """Whether a module is a Mamba mixer, whose fast code reads weights past their modules."""
    return hasattr(module, "A_log") and hasattr(module, "D")


def learning_rate_group(name: str) -> str:
    """Name of the training argument that sets the learning rate of the parameter `name`."""
    if "adaptive_embedding" in name or "boundary_embedding" in name:
        return "adaptive_learning_rate"
    if "text_model." in name:
        return "text_learning_rate"
    if "vision_model." in name:
        return "vision_learning_rate"
    return "learning_rate"
