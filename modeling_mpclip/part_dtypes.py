"""The dtypes of a model whose parts differ in them, such as a bfloat16 LLM with float32 projections: saved, and loaded again.

transformers knows one dtype for a whole checkpoint, that of the LLM.
"""

import torch
from transformers import PreTrainedModel


def note_part_dtypes(model: PreTrainedModel) -> None:
    """Enter in the config which parts have another dtype than the model: `part_dtypes`, child -> dtype, or None."""
    found = {}
    for name, part in model.named_children():
        # The logit scale is always float32.
        dtype = next((weight.dtype for weight in part.parameters() if weight.is_floating_point()), model.dtype)
        if name != "logit_scale" and dtype != model.dtype:
            found[name] = str(dtype).removeprefix("torch.")
    if found or getattr(model.config, "part_dtypes", None):
        model.config.part_dtypes = found or None


def kept_in_fp32(config) -> list[str]:
    """The parts that are loaded in float32, so that `restore_part_dtypes` can give them any dtype without loss."""
    return list(getattr(config, "part_dtypes", None) or {})


def restore_part_dtypes(model: PreTrainedModel, asked: torch.dtype | str | None) -> None:
    """Give a loaded model's parts the dtypes that they were saved in, or the one that was asked for.

    Args:
        model: changed in place. Weights that are offloaded stay as they are.
        asked: the argument `dtype` of `from_pretrained`. None and "auto": as saved.
    """
    for name, saved in (getattr(model.config, "part_dtypes", None) or {}).items():
        dtype = getattr(torch, saved) if asked in (None, "auto") else model.dtype
        weights = model.get_submodule(name).state_dict(keep_vars=True)  # with buffers, but not those that are computed
        for key, weight in weights.items():
            if weight.is_floating_point() and not weight.is_meta:
                # transformers makes the counter of a batch norm float32 as well.
                weight.data = weight.data.to(torch.long if key.endswith("num_batches_tracked") else dtype)
