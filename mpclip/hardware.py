"""The machine: what it is, which torch devices it has, and the dtype that it computes fastest in.

    python -m mpclip.hardware                # the machine, its speeds and its choice
    python -m mpclip.hardware --json
    python -m mpclip.hardware --device cpu   # also where there is a GPU

Which dtype is fastest differs between machines. bfloat16 is several times faster than float32 on a CPU with AMX and on most
GPUs. On a CPU that has AVX2 and nothing newer it is a hundred times slower, because it is computed in software. So the speed
is measured: a matrix product in every dtype, and a short layer of a language model in those dtypes whose product is no slower
than that of float32. This takes a few tenths of a second. The result is kept for the machine in $MPCLIP_CACHE/hardware.json
(default folder: ~/.cache/mpclip); delete the file to measure anew.
"""

import argparse
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from mpclip.command import start
from mpclip.files import cache_folder, read_json, write_json

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS = get_args(Precision)
CLEARLY_FASTER = 1.2  # a dtype other than float32 is chosen if the layer runs so many times faster in it
ENOUGH = 5e-3  # seconds; a matrix product that takes as long is large enough to tell its speed


# Description ------------------------------------------------------------------------------------------------------


def describe_machine(device: str = "cpu") -> dict:
    """Describe everything about the machine that run times and rounding depend on.

    Args:
        device: the torch device that was used, such as "cpu" or "cuda:0".

    Returns:
        `cpu` (name), `cores` (number), `torch` and `transformers` (versions), and `gpu` (name) unless the device is the CPU.
    """
    import torch
    import transformers

    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.startswith("cpu"):
        return machine
    return machine | {"gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else device}


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(field: str) -> str:
    """A field of the first core in Linux's /proc/cpuinfo; "" if there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


# Devices ----------------------------------------------------------------------------------------------------------


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


# Precision --------------------------------------------------------------------------------------------------------


def choose_precision(asked: str = "auto", device: str | None = None) -> str:
    """The dtype to compute in.

    Args:
        asked: "auto" for the fastest, or the name of a dtype. A dtype that is slow here is used, with a warning in the log.
        device: the torch device that will compute. Default: `best_device`.

    Returns:
        "float32", "bfloat16" or "float16".

    Raises:
        ValueError: `asked` is not one of `PRECISIONS`.
    """
    if asked not in PRECISIONS:
        raise ValueError(f"precision={asked!r}: expected one of {', '.join(PRECISIONS)}")
    if asked == "float32":
        return asked  # nothing has to be measured
    device = str(device or best_device())
    found = speeds(device)
    fastest = found["dtype"]
    gflops = found["gflops"]
    if asked == "auto":
        return fastest
    speed = gflops.get(asked) or _matmul_gflops(asked, device)
    if speed < gflops[fastest] / CLEARLY_FASTER:
        logger.warning(
            "%s was asked for, and %s computes in it %.3g times slower than in %s (%.3g against %.3g GFLOPS). "
            "precision=auto chooses the faster one.",
            *(asked, device, gflops[fastest] / speed, fastest, speed, gflops[fastest]),
        )
    return asked


def precision_told(dtype: str, device: str) -> str:
    """What is computed in, and how fast that is here, as a line for a log."""
    found = speeds(str(device))
    told = ", ".join(f"{name} {speed:.3g}" for name, speed in found["gflops"].items())
    fastest = ", the fastest here" if dtype == found["dtype"] else ""
    return f"Computing in {dtype} on {device}{fastest} (GFLOPS of a matrix product: {told})"


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the option for the dtype of a model's weights to a command. Its value is for `choose_precision`."""
    parser.add_argument(
        "--precision",
        "--dtype",  # its name in earlier versions
        choices=PRECISIONS,
        default="auto",
        help="dtype of the model's weights; embeddings are float32 all the same. auto: the one that this machine computes "
        "fastest in, which python -m mpclip.hardware shows (default: %(default)s)",
    )


@cache
def speeds(device: str = "cpu") -> dict:
    """How fast a device computes in each dtype. Measured once per machine; later calls read the result from a file.

    Returns:
        `device` (its name), `gflops` (dtype -> 1e9 multiplications and additions per second of a matrix product; float16 on
        accelerators only), `layer_gflops` (the same for a short layer, of the dtypes that came into question) and `dtype` (the
        fastest).
    """
    import torch

    file = cache_folder() / "hardware.json"
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name() if device == "cpu" else device
    # What the speed depends on. CPUs of one name differ in their units for bfloat16; the two variables limit what torch uses.
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in _cpu_info("flags").split()]
    limits = [os.environ.get(variable, "") for variable in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    key = " | ".join(filter(None, [name, *units, torch.__version__, f"{torch.get_num_threads()} threads", *limits]))
    try:
        known = read_json(file)
    except ValueError:  # damaged; it is written anew
        known = {}
    if key in known:
        return known[key]
    measured = {"device": name, **_measure(device)}
    try:
        write_json(file, known | {key: measured})
    except OSError as error:  # such as a home that cannot be written
        logger.debug("%s was not written: %s", file, error)
    return measured


def _measure(device: str) -> dict:
    dtypes = ["float32", "bfloat16"] + (["float16"] if device != "cpu" else [])
    gflops = {dtype: _matmul_gflops(dtype, device) for dtype in dtypes}
    candidates = [dtype for dtype in dtypes if gflops[dtype] >= gflops["float32"]]
    layer = {dtype: _layer_gflops(dtype, device) for dtype in candidates}
    clearly = [dtype for dtype in candidates if layer[dtype] >= CLEARLY_FASTER * layer["float32"]]
    # bfloat16 is preferred to float16 at like speed: its range is that of float32, so nothing overflows.
    clearly.sort(key=lambda dtype: layer[dtype] * (CLEARLY_FASTER if dtype == "bfloat16" else 1))
    rounded = {
        kind: {d: round(v, 1) for d, v in found.items()} for kind, found in (("gflops", gflops), ("layer_gflops", layer))
    }
    return {**rounded, "dtype": clearly[-1] if clearly else "float32"}


def _matmul_gflops(dtype: str, device: str) -> float:
    """Speed of the product of two square matrices: of the smallest pair, by powers of two, that takes a few milliseconds."""
    import torch

    for n in (256, 512, 1024, 2048, 4096):
        a = torch.ones(n, n, dtype=getattr(torch, dtype), device=device)
        seconds = _seconds(lambda a=a: a @ a, device)
        if seconds > ENOUGH:
            break
    return 2 * n**3 / seconds / 1e9


def _layer_gflops(dtype: str, device: str) -> float:
    """Speed of one layer of a small language model: attention, an MLP, norms and their conversions of dtype."""
    import torch
    from torch import nn

    B, N, H = (8, 32, 512) if device == "cpu" else (64, 64, 2048)
    layer = nn.TransformerEncoderLayer(H, 8, 4 * H, 0.0, "gelu", batch_first=True, norm_first=True)
    layer = layer.to(device, getattr(torch, dtype)).eval().requires_grad_(False)
    x = torch.ones(B, N, H, dtype=getattr(torch, dtype), device=device)
    operations = 2 * B * N * 12 * H * H  # of the linear layers; attention over 32 tokens adds a hundredth
    return operations / _seconds(lambda: layer(x), device) / 1e9


def _seconds(compute: Callable[[], object], device: str) -> float:
    """The shortest of several runs, in seconds. The first one is not counted unless it is very slow."""
    import torch

    def once() -> float:
        started = time.perf_counter()
        compute()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with torch.inference_mode():
        first = once()
        return first if first > 20 * ENOUGH else min(once() for _ in range(5))


def main(argv: list[str] | None = None) -> None:
    """The command.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.hardware", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--device", help="torch device to measure (default: the GPU, if there is one)")
    options = parser.parse_args(argv)
    found = speeds(usable_device(options.device or best_device()))
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['device']}, {os.cpu_count()} cores")
    print("GFLOPS of a matrix product: " + ", ".join(f"{dtype} {speed:.1f}" for dtype, speed in found["gflops"].items()))
    print(f"Computes in {found['dtype']}" + (" (of a layer likewise)" if len(found["layer_gflops"]) > 1 else "") + ".")


if __name__ == "__main__":
    start(main)
