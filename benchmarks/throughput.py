"""How fast one masked pass is: its share of the machine's peak, the padding of its batches, and its time over batch shapes."""

import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import Contenders, K
from benchmarks.timing import Clock
from mpclip.progress import track
from mpclip.training.samplers import LengthSampler

# What `sweep` varies, and its values.
SWEEPS = {"K": (1, 2, 4, 8, 16), "text tokens": (8, 32, 64, 128, 256), "batch size": (1, 4, 8, 16, 32)}


def padding_share(bench: Contenders, texts: list[str], size: int = 128) -> dict:
    """The share of the text-side tokens of training batches that are padding.

    Args:
        bench: gives the tokenizer and the prompt tree.
        texts: the captions of one epoch.
        size: texts in a batch.

    Returns:
        `random` and `by_length`, the share (0 to 1) in random order and with captions grouped by length.
    """
    lengths = [len(ids) for ids in bench.tokenizer(texts)["input_ids"]]
    prompts, shares = len(bench.tree()), {}
    by_length = LengthSampler(lambda: list(map(len, texts)), size, seed=0, epoch=lambda: 0)
    for name, order in (("random", range(len(texts))), ("by_length", list(by_length))):
        order = [lengths[i] for i in order][: len(texts) // size * size]
        padded = sum(size * (max(order[i : i + size]) + prompts) for i in range(0, len(order), size))
        shares[name] = 1 - (sum(order) + prompts * len(order)) / padded
    return shares


@torch.inference_mode()
def peak_share(bench: Contenders, clock: Clock, texts: list[str], size: int) -> dict:
    """Time one masked pass against the machine's fastest matrix product.

    Args:
        bench: the LLM.
        clock: times the calls.
        texts: texts to choose a batch from.
        size: texts in the batch.

    Returns:
        `tokens_per_second` of the pass; `flops` and `peak_flops`, floating-point operations per second of the pass and of the
        product; and `share`, the first divided by the second.
    """
    # Texts of about one length: padding would count as work.
    ids, mask = bench.batch(sorted(texts, key=len)[len(texts) // 2 :][:size])  # (B, N)
    tree = bench.tree()
    run = lambda: bench.masked(ids, mask, tree)  # noqa: E731
    with FlopCounterMode(display=False) as counter:
        run()
    peak, times = clock.matmul_peak(bench.dtype), []
    end = time.monotonic() + clock.seconds
    while len(times) < 2 or time.monotonic() < end:
        times.append(clock.time(run))
    peak = max(peak, clock.matmul_peak(bench.dtype))  # the machine may have been busier before
    rate = counter.get_total_flops() / statistics.median(times)
    tokens = ids.shape[0] * (ids.shape[1] + len(tree))
    return {"share": rate / peak, "tokens_per_second": tokens / statistics.median(times), "flops": rate, "peak_flops": peak}


def peak_shares(
    bench: Contenders, clock: Clock, texts: list[str], size: int, names: tuple[str, ...], compiled: bool
) -> list[dict]:
    """`peak_share` with several attention implementations.

    Args:
        names: the attention implementations.
        compiled: measure each under torch.compile too.

    Returns:
        A row for each measurement: `attention`, `compiled`, and the values of `peak_share`.
    """
    rows, plain_forward = [], bench.prompted.forward
    for name in names:
        bench.prompted.set_attn_implementation(name)
        for compile in (False, True) if compiled else (False,):
            bench.prompted.forward = torch.compile(plain_forward) if compile else plain_forward
            rows.append({"attention": name, "compiled": compile, **peak_share(bench, clock, texts, size)})
            print(f"{name}{' compiled' if compile else ''}: {rows[-1]['share']:.0%} of the peak", flush=True)
    bench.prompted.forward = plain_forward
    return rows


@torch.inference_mode()
def sweep(bench: Contenders, clock: Clock, size: int) -> list[dict]:
    """Time one masked pass, separate passes and prefix caching over K, text length and batch size, one of them at a time.

    Args:
        bench: the LLM.
        clock: times the calls; each is called three times, the first time unmeasured.
        size: texts in a batch, where K or the text length varies.

    Returns:
        A row for each shape: `axis` and `value` (what varies), `tokens` of a text with the prompt tree, `separate_tokens` of
        its K passes, and `masked_ms`, `separate_ms` and `prefix_cached_ms`, milliseconds per batch.
    """
    cells = [("K", k, k, 16, size) for k in SWEEPS["K"]]
    cells += [("text tokens", n, K, n, size) for n in SWEEPS["text tokens"]]
    cells += [("batch size", b, K, 16, b) for b in SWEEPS["batch size"]]
    rows = []
    for axis, value, num_prompts, length, batch_size in track(cells, "sweeps", len(cells), "cell"):
        tree = bench.tree(num_prompts)
        ids = torch.randint(100, 10000, (batch_size, length), device=bench.device)  # (B, N)
        mask = torch.ones_like(ids)
        row = {"axis": axis, "value": value, "tokens": length + len(tree), "separate_tokens": num_prompts * (length + 7)}
        for name in ("masked", "separate", "prefix_cached"):
            call = partial(getattr(bench, name), ids, mask, tree)
            call()
            row[f"{name}_ms"] = 1e3 * statistics.median(clock.time(call) for _ in range(2))
        rows.append(row)
    return rows


def plot(rows: list[dict], path: str | Path) -> None:
    """Draw a sweep: a panel for each axis.

    A dashed line is proportional to the tokens of text and prompt tree, and meets the measured time at the middle of the sweep.

    Args:
        rows: as from `sweep`.
        path: the PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), constrained_layout=True)
    names = {"separate": "K separate passes", "prefix_cached": "prefix cache, K continuations", "masked": "one masked pass"}
    colors = {"separate": "#c44e52", "prefix_cached": "#dd8452", "masked": "#2a6f97"}
    for panel, axis in zip(panels, SWEEPS, strict=True):
        part = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in part]
        for name, label in names.items():
            panel.plot(values, [row[f"{name}_ms"] for row in part], "o-", color=colors[name], label=label, markersize=4)
        middle = part[len(part) // 2]
        work = [row["tokens"] * (row["value"] if axis == "batch size" else 1) for row in part]
        unit = middle["masked_ms"] / work[len(part) // 2]
        panel.plot(values, [unit * w for w in work], "--", color="gray", label="proportional to the tree's tokens", zorder=0)
        panel.set(xlabel={"K": "prompts K", "text tokens": "tokens of the text", "batch size": "texts in a batch"}[axis])
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("milliseconds per batch")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
