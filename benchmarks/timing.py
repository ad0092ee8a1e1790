"""Ratios of running times. Slow and fast calls take turns, so that other load on the machine slows both alike."""

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

QUARTILES_FROM = 10  # rounds; with fewer, quartiles are little more than the extremes
PRODUCT_SIZES = {"cpu": (1024, 2048, 3072), "gpu": (2048, 4096, 8192)}  # rows of the square matrices of `matmul_peak`


def with_quartiles(head: list[str], rows: list[list], timed: list[dict]) -> tuple[list[str], list[list]]:
    """Add a last column of quartiles to a table, if any of its ratios has at least `QUARTILES_FROM` rounds.

    Args:
        head, rows: of the table.
        timed: for each row, `quartiles` and `rounds` as from `Clock.ratio`.

    Returns:
        Head and rows.
    """
    cells = [
        "{:.2f} to {:.2f}".format(*one["quartiles"]) if one["quartiles"] and one["rounds"] >= QUARTILES_FROM else None
        for one in timed
    ]
    if not any(cells):
        return head, rows
    return [*head, "quartiles"], [[*row, cell] for row, cell in zip(rows, cells, strict=True)]


class Clock:
    """Times calls.

    Args:
        device: the device that the calls use; its pending work is waited for before and after each call.
        seconds: how long one measurement lasts. It takes at least two rounds, however long they last.
    """

    def __init__(self, device: str, seconds: float):
        self.device, self.seconds = device, seconds

    def time(self, call: Callable) -> float:
        """Seconds of one call."""
        self._synchronize()
        started = time.perf_counter()
        call()
        self._synchronize()
        return time.perf_counter() - started

    def ratio(self, slow: Callable, fast: Callable) -> dict:
        """Time two calls in turns, after one round unmeasured.

        Returns:
            `ratio`, the median over rounds of time(slow) / time(fast); its `quartiles`, None for fewer than `QUARTILES_FROM`
            rounds; `rounds`; and `slow_ms` and `fast_ms`, the median milliseconds of each call.
        """
        slow(), fast()
        end, slows, fasts = time.monotonic() + self.seconds, [], []
        while len(slows) < 2 or time.monotonic() < end:
            slows.append(self.time(slow))
            fasts.append(self.time(fast))
        ratios = sorted(a / b for a, b in zip(slows, fasts, strict=True))
        enough = len(ratios) >= QUARTILES_FROM
        return {
            "ratio": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2] if enough else None,
            "rounds": len(ratios),
            "slow_ms": 1e3 * statistics.median(slows),
            "fast_ms": 1e3 * statistics.median(fasts),
        }

    def best_implementation(self, model, call: Callable, names: tuple[str, ...]) -> str:
        """Set the attention implementation with which `call` is fastest; returns its name.

        Args:
            model: the model that `call` runs.
            call: the call to time.
            names: attention implementations to choose from.
        """
        times = {}
        for name in names:
            model.set_attn_implementation(name)
            call()
            times[name] = min(self.time(call), self.time(call))
        best = min(times, key=times.get)
        model.set_attn_implementation(best)
        return best

    def matmul_peak(self, dtype: "torch.dtype") -> float:
        """Floating-point operations per second of the fastest of several square matrix products."""
        import torch

        best = 0.0
        for n in PRODUCT_SIZES["cpu" if self.device == "cpu" else "gpu"]:
            a, b = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
            product = lambda a=a, b=b: a @ b  # noqa: E731
            product()
            end, rounds = time.monotonic() + self.seconds / 6, 0
            while rounds < 2 or time.monotonic() < end:
                best, rounds = max(best, 2 * n**3 / self.time(product)), rounds + 1
        return best

    def _synchronize(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
