"""The machine: what it is, and which devices of it can be used."""

import argparse
import os
import platform
from pathlib import Path


def describe_machine(device: str = "cpu") -> dict:
    """What a time or a rounding may depend on.

    Args:
        device: the torch device that was used; "cuda" adds the GPU's name.

    Returns:
        `cpu`, `cores`, `torch`, `transformers`, and `gpu` for a CUDA device.
    """
    import torch
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    machine = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return machine | ({"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {})


def best_device() -> str:
    """The GPU if there is one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> str:
    """`name` itself, for argparse.

    Raises:
        argparse.ArgumentTypeError: torch does not know the device, or this machine does not have it.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        has = "cpu" + "".join(f", cuda:{i}" for i in range(torch.cuda.device_count()))
        raise argparse.ArgumentTypeError(f"device {name!r} cannot be used; this machine has {has}") from error
    return name
