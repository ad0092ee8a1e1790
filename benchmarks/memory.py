"""Memory of large batches: what a step takes as a whole and in chunks (`forward_chunk`), and the time that chunks cost.

    python -m benchmarks.memory --json docs/cost/memory.json

Each row is a training step in a process of its own, on one CPU thread, of the packaged towers with the LLM's last layer
trained, on made-up states in bfloat16 from a store of cached states. Without chunks a batch is read as a whole. In chunks it is
read when it is needed (`late_states.py`), and large losses are computed in tiles (`tiled_loss.py`).

The peak is the memory of the process itself: libraries, weights, batch, graphs and loss, looked at every few milliseconds.
"With files" adds the pages of the store that the kernel keeps while there is room, and drops when memory is short. Times are
processor seconds, so that other load on the machine counts little.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.record import command_parser, provenance
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_json

CELLS = ((256, None), (256, 128), (4096, 128))  # pairs per step, pairs per chunk
TEXT_TOKENS, PROMPT_TOKENS, TEXT_WIDTH = 16, 37, 576  # of a caption, of six prompts, and of a state of SmolLM2-135M
VISION_TOKENS, VISION_WIDTH = 49, 1280  # of a picture of 224 x 224 in EfficientNet-Lite0
MEGABYTE = 2**20


def fill_stores(folder: Path, pairs: int) -> None:
    """Write made-up states of `pairs` texts and pictures to folder/text and folder/image, as stores of cached states."""
    import torch

    from mpclip.training.state_store import complete_key, open_store

    for kind, tokens, width in (
        ("text", TEXT_TOKENS + PROMPT_TOKENS, TEXT_WIDTH),
        ("image", VISION_TOKENS, VISION_WIDTH),
    ):
        states = torch.randn(tokens, width)
        key = complete_key({"kind": f"made-up {kind}"}, pairs, "bfloat16", "bfloat16")
        open_store(folder / kind, key, width, lambda rows, states=states: (states.roll(i, 0) for i in rows), f"{kind} states")


def states_in(folder: Path):
    """The stores of `fill_stores`, as a `LateStates`, whose `read` gives the inputs of rows."""
    from mpclip.training.collator import MPCLIPCollator
    from mpclip.training.late_states import LateStates
    from mpclip.training.state_cache import ImageStates, TextStates
    from mpclip.training.state_store import StateStore

    texts = StateStore(next((folder / "text").iterdir()), TEXT_WIDTH)
    images = StateStore(next((folder / "image").iterdir()), VISION_WIDTH)
    row_of = {f"text {i}": i for i in range(len(texts))}
    states = TextStates(texts, row_of, PROMPT_TOKENS, list(range(PROMPT_TOKENS))), ImageStates(images)
    return LateStates(MPCLIPCollator(None, *states))


def step_model():
    """The packaged towers with six prompts, of which the LLM's last layer is trained."""
    from modeling_mpclip import MPCLIPModel
    from mpclip.data.backbones import resolve_backbone
    from mpclip.training import ModelArguments, prepare_tuning

    text, vision = resolve_backbone("smollm2-135m"), resolve_backbone("efficientnet-lite0")
    boundary = {"adaptive_tokens": "boundary", "boundary_layer": 29}  # of 30 layers
    model = MPCLIPModel.from_pretrained_towers(str(text), str(vision), num_prompts=6, **boundary)
    return prepare_tuning(model, ModelArguments(text_tuning="last")).train()


def measure(pairs: int, chunk: int | None, steps: int, folder: Path) -> dict:
    """Train `steps` steps in this process.

    Args:
        pairs: B.
        chunk: pairs per chunk, or None for the whole batch at once.
        steps: at least 1.
        folder: from `fill_stores`, for at least as many pairs.

    Returns:
        `pairs`, `chunk`, `seconds` of processor time of the fastest step, `peak_mb` and `peak_with_files_mb` of the process,
        and `batch_mb`, the states of the batch, in MiB.
    """
    import torch

    from mpclip.training.gradient_cache import cached_step, chunks_of_rows
    from mpclip.training.tiled_loss import loss_of_pairs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = step_model()
    read = states_in(folder).read
    batch = {name: torch.arange(pairs) for name in ("text_row", "image_row")}
    optimizer = torch.optim.AdamW(weight for weight in model.parameters() if weight.requires_grad)

    def loss_of(embeds: dict) -> torch.Tensor:
        return loss_of_pairs(embeds, model.config, model.logit_scale)["loss"]

    def step() -> None:
        if chunk is None:
            loss_of(model(**read(batch))).backward()
        else:
            weights = list(model.logit_scale.parameters())
            cached_step(model, batch, chunks_of_rows(pairs, chunk), loss_of, weights, read=read)
        optimizer.step()
        optimizer.zero_grad()

    seconds = []
    with peak_memory() as peak:
        for _ in range(steps):
            started = time.process_time()
            step()
            seconds.append(time.process_time() - started)
    row = (TEXT_TOKENS + PROMPT_TOKENS) * TEXT_WIDTH + VISION_TOKENS * VISION_WIDTH  # numbers of a pair, of two bytes each
    return {
        "pairs": pairs,
        "chunk": chunk,
        "seconds": min(seconds),
        "peak_mb": peak[0] / MEGABYTE,
        "peak_with_files_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE,
        "batch_mb": 2 * row * pairs / MEGABYTE,
    }


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Context manager: a list whose one number becomes the most bytes that the process had to itself at any time."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], 1024 * int(status.split("RssAnon:")[1].split()[0]))

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        over.set()
        watching.join()


def table(cells: list[dict]) -> str:
    """The measurements as a Markdown table."""
    head = ["pairs", "chunk", "peak, MiB", "with files", "states of the batch", "seconds per step", "ms per pair"]
    rows = [
        [
            cell["pairs"],
            cell["chunk"] or "none",
            f"{cell['peak_mb']:.0f}",
            f"{cell['peak_with_files_mb']:.0f}",
            f"{cell['batch_mb']:.0f}",
            f"{cell['seconds']:.1f}",
            f"{1000 * cell['seconds'] / cell['pairs']:.1f}",
        ]
        for cell in cells
    ]
    return markdown_table(head, rows)


def summary(result: dict) -> str:
    """The table, and how the peak grows with the batch."""
    return f"{table(result['cells'])}\n\nThe peak at 4096 pairs is {result['ratio']:.2f} times that at 256, both in chunks."


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = command_parser("benchmarks.memory", __doc__)
    parser.add_argument("--json", help="file for the measurements")
    parser.add_argument("--steps", type=int, default=1, help="steps of which the fastest counts (default: 1)")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)  # measure in this process: pairs, chunk (0 is none), folder
    options = parser.parse_args(argv)
    if options.cell:
        pairs, chunk, folder = options.cell
        print(json.dumps(measure(int(pairs), int(chunk) or None, options.steps, Path(folder))))
        return
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        fill_stores(Path(folder), max(pairs for pairs, _ in CELLS))
        for pairs, chunk in CELLS:
            command = [sys.executable, "-m", "benchmarks.memory", "--steps", str(options.steps)]
            command += ["--cell", str(pairs), str(chunk or 0), folder]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            cells.append(json.loads(printed.splitlines()[-1]))
    small, large = (next(cell for cell in cells if cell["chunk"] and cell["pairs"] == n) for n in (256, 4096))
    ratio = large["peak_mb"] / small["peak_mb"]
    result = provenance("benchmarks.memory", argv) | {"cells": cells, "ratio": ratio}
    print(summary(result))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    start(main)
