"""Small things that both sides of the model use."""

import torch


def asked(output_attentions: bool | None, output_hidden_states: bool | list[int] | None) -> dict:
    """Keyword arguments for a tower: what it shall return. None is left out, so that the tower's config decides."""
    asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
    return {"return_dict": True} | {name: value for name, value in asked.items() if value is not None}


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, L, C), mask (B, L) -> (B, C): the mean over columns with a nonzero mask; 0 if a row has none."""
    weights = mask.to(x.dtype)[..., None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
