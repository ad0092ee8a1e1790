"""Memory of large batches: what a step takes as a whole and in chunks (`forward_chunk`), and the time that chunks cost.

    python -m benchmarks.memory --json docs/cost/memory.json

Each row is a training step in a process of its own, on one CPU thread, of the packaged towers with the LLM's last layer
trained, on made-up cached states in bfloat16. The peak is that of the whole process: libraries, weights, batch, graphs and
loss. The batch itself, which grows with its size in any case, is told beside it. Times are processor seconds, so that other
load on the machine counts little.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

from benchmarks.record import command_parser, provenance
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_json

CELLS = ((256, None), (256, 128), (4096, 128))  # pairs per step, pairs per chunk
TEXT_TOKENS, VISION_TOKENS = 16, 49  # of a caption, and of a picture of 224 x 224 in EfficientNet-Lite0
MEGABYTE = 2**20


def measure(pairs: int, chunk: int | None, steps: int) -> dict:
    """Train `steps` steps in this process.

    Args:
        pairs: B.
        chunk: pairs per chunk, or None for the whole batch at once.
        steps: at least 1.

    Returns:
        `pairs`, `chunk`, `seconds` of processor time of the fastest step, `peak_mb` of the process and `batch_mb`, in MiB.
    """
    import torch

    from modeling_mpclip import MPCLIPModel
    from modeling_mpclip.contrastive_losses import total_loss
    from mpclip.data.backbones import resolve_backbone
    from mpclip.training import ModelArguments, prepare_tuning
    from mpclip.training.gradient_cache import cached_step

    torch.set_num_threads(1)
    torch.manual_seed(0)
    text, vision = resolve_backbone("smollm2-135m"), resolve_backbone("efficientnet-lite0")
    boundary = {"adaptive_tokens": "boundary", "boundary_layer": 29}  # of 30 layers
    model = MPCLIPModel.from_pretrained_towers(str(text), str(vision), num_prompts=6, **boundary)
    prepare_tuning(model, ModelArguments(text_tuning="last")).train()
    width = model.config.text_config.hidden_size
    batch = {
        "text_hidden_states": torch.randn(pairs, TEXT_TOKENS + len(model.prompt_tree()), width, dtype=torch.bfloat16),
        "attention_mask": torch.ones(pairs, TEXT_TOKENS, dtype=torch.long),
        "vision_hidden_states": torch.randn(pairs, VISION_TOKENS, model.image_token_dim, dtype=torch.bfloat16),
    }
    optimizer = torch.optim.AdamW(weight for weight in model.parameters() if weight.requires_grad)

    def loss_of(embeds: dict) -> torch.Tensor:
        logits = model.logit_scale(embeds["image_embeds"] @ embeds["text_embeds"].T)  # (B, B)
        return total_loss({**embeds, "logits_per_image": logits}, model.config, model.logit_scale)["loss"]

    def step() -> None:
        if chunk is None:
            loss_of(model(**batch)).backward()
        else:
            cached_step(model, batch, chunk, loss_of, list(model.logit_scale.parameters()))
        optimizer.step()
        optimizer.zero_grad()

    seconds = []
    for _ in range(steps):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    return {
        "pairs": pairs,
        "chunk": chunk,
        "seconds": min(seconds),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE,
        "batch_mb": sum(value.nbytes for value in batch.values()) / MEGABYTE,
    }


def table(cells: list[dict]) -> str:
    """The measurements as a Markdown table."""
    head = ["pairs", "chunk", "peak, MiB", "of it the batch", "seconds per step", "ms per pair"]
    rows = [
        [
            cell["pairs"],
            cell["chunk"] or "none",
            f"{cell['peak_mb']:.0f}",
            f"{cell['batch_mb']:.0f}",
            f"{cell['seconds']:.1f}",
            f"{1000 * cell['seconds'] / cell['pairs']:.1f}",
        ]
        for cell in cells
    ]
    return markdown_table(head, rows)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = command_parser("benchmarks.memory", __doc__)
    parser.add_argument("--json", help="file for the measurements")
    parser.add_argument("--steps", type=int, default=1, help="steps of which the fastest counts (default: 1)")
    parser.add_argument("--cell", nargs=2, type=int, help=argparse.SUPPRESS)  # measure in this process; a chunk of 0 is none
    options = parser.parse_args(argv)
    if options.cell:
        print(json.dumps(measure(options.cell[0], options.cell[1] or None, options.steps)))
        return
    cells = []
    for pairs, chunk in CELLS:
        command = [sys.executable, "-m", "benchmarks.memory", "--steps", str(options.steps)]
        command += ["--cell", str(pairs), str(chunk or 0)]
        cells.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
    print(table(cells))
    if options.json:
        write_json(options.json, provenance("benchmarks.memory", argv) | {"cells": cells})


if __name__ == "__main__":
    start(main)
