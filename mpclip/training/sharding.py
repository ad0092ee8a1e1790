"""Weights that FSDP2 shards over the processes of a job."""

import torch
from torch.distributed.fsdp import FSDPModule


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether FSDP2 has sharded the weights of a model. All processes must then run it at the same time."""
    return isinstance(model, FSDPModule)


def whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight, gathered from all processes if it is sharded; then all of them must ask for it."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
