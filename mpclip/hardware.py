"""The machine: a description of it, and the torch devices that can be used."""

import argparse
import os
import platform
from pathlib import Path


def describe_machine(device: str = "cpu") -> dict:
    """Describe everything about the machine that run times and rounding depend on.

    Args:
        device: the torch device that was used, such as "cpu" or "cuda:0".

    Returns:
        `cpu` (name), `cores` (number), `torch` and `transformers` (versions), and for a CUDA device `gpu` (name).
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
    """The fastest torch device: "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> str:
    """Check a device name; for `type=` of an argparse option.

    Args:
        name: a torch device, such as "cpu" or "cuda:0".

    Returns:
        `name`.

    Raises:
        argparse.ArgumentTypeError: torch does not know the device, or this machine does not have it.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
        has = "cpu" + "".join(f", cuda:{i}" for i in range(torch.cuda.device_count()))
        raise argparse.ArgumentTypeError(f"device {name!r} cannot be used; this machine has {has}") from error
    return name
