"""Whether memory or open files grow in long runs: training and embedding for minutes on tiny towers.

    python -m benchmarks.long_run --minutes 12 --json docs/cost/long_run.json

train     epochs of short steps with a loader's worker, an evaluation and a checkpoint per epoch, a log every 50 steps
embed     the pictures of a table, and texts that are new each time

Each runs in a process of its own, for the given minutes from its first step on. Memory is that of the process without the
pages of files. What is recorded in the first third is warm-up. A straight line is fitted to the rest: its growth from the first
to the last point, against the mean of the memory, decides. The towers are tiny, so there are many steps and nothing that hides
a leak of a few bytes per step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from benchmarks.record import command_parser, provenance
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_json

PROGRAMS = ("train", "embed")
WARM_UP = 1 / 3  # of the time
ALLOWED = 2.0  # percent of the mean memory that the fitted line may grow by
MEGABYTE = 2**20
COLORS = ("red", "green", "blue", "yellow", "black", "white", "pink", "brown", "gray", "orange", "purple", "cyan")
WORDS = ("a", "an", "the", "square", "in", "all", "over", "on", "of", "small", "large", "picture", *COLORS)


# What runs ------------------------------------------------------------------------------------------------------------


def tiny_model():
    """A random model of two layers per tower, and its processor."""
    import torch
    from transformers import CLIPImageProcessorPil, LlamaConfig, ViTConfig

    from benchmarks.flop_counts import word_tokenizer
    from modeling_mpclip import MPCLIPConfig, MPCLIPModel, MPCLIPProcessor, default_templates
    from modeling_mpclip.prompt_tree import add_adaptive_tokens

    templates = default_templates(3)
    tokenizer = word_tokenizer([*templates, *default_templates(3, negated=True), " ".join(WORDS)])
    tokenizer.padding_side = "left"
    text = LlamaConfig(
        vocab_size=len(tokenizer) + 16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    vision = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = MPCLIPConfig(
        text, vision, num_prompts=3, projection_dim=48, pooling_width=32, pooling_heads=2, adaptive_tokens="input"
    )
    config.compile_prompts(tokenizer)
    add_adaptive_tokens(tokenizer, templates)
    torch.manual_seed(0)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    return MPCLIPModel(config), MPCLIPProcessor(images, tokenizer)


def table_of_pictures(count: int):
    """`count` noisy squares, each with two captions."""
    import datasets
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(count)]
    captions = [[f"a {COLORS[i % 12]} square", f"the {COLORS[i // 12 % 12]} picture"] for i in range(count)]
    return datasets.Dataset.from_dict({"image": pictures, "captions": captions})


def train(over: Callable[[], bool]) -> None:
    """Train until `over`, which is asked after every step."""
    from transformers import TrainerCallback

    from mpclip.training import ModelArguments, MPCLIPTrainer, MPCLIPTrainingArguments, prepare_tuning

    class Until(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = over()

    model, processor = tiny_model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = MPCLIPTrainingArguments(
            folder,
            use_cpu=True,
            precision="float32",
            per_device_train_batch_size=16,
            num_train_epochs=1e6,
            load_best_model_at_end=False,
            logging_steps=50,
            dataloader_num_workers=1,
            disable_tqdm=True,
        )
        rows = table_of_pictures(2048 + 64)
        trainer = MPCLIPTrainer(
            prepare_tuning(model, ModelArguments(text_tuning="lora", lora_rank=4)),
            arguments,
            train_dataset=rows.select(range(64, len(rows))),
            eval_dataset=rows.select(range(64)),
            processing_class=processor,
            callbacks=[Until()],
        )
        trainer.train()


def embed(over: Callable[[], bool]) -> None:
    """Embed until `over`, which is asked after every 64 pictures and 64 texts."""
    from mpclip.encoding import ModelEncoder, encode_images, encode_texts

    model, processor = tiny_model()
    encoder, rows = ModelEncoder(model.eval(), processor), table_of_pictures(64)
    count = 0
    while not over():
        texts = [" ".join(WORDS[(count + i) * prime % len(WORDS)] for prime in (1, 5, 7)) for i in range(64)]
        encode_images(encoder, rows, 16, quiet=True)
        encode_texts(encoder, texts, 16, quiet=True)
        count += 64


# What is measured -----------------------------------------------------------------------------------------------------


def record(program: str, minutes: float, seconds: float) -> dict:
    """Run a program in this process, and look at its memory and its handles every few seconds.

    Args:
        program: one of `PROGRAMS`.
        minutes: how long it runs after its first step.
        seconds: between two looks, of which the first comes after the first step.

    Returns:
        `steps` and `points`: for each look `minute`, `steps`, `memory_mb`, `files` (open files and sockets) and `threads`.
    """
    import psutil

    steps, points, started, ended = [0], [], [], threading.Event()

    def over() -> bool:
        steps[0] += 1
        if not started:
            started.append(time.monotonic())
            watching.start()
        return time.monotonic() > started[0] + 60 * minutes

    def look() -> None:
        process = psutil.Process()
        while not ended.wait(seconds):
            memory = process.memory_info()
            points.append(
                {
                    "minute": round((time.monotonic() - started[0]) / 60, 3),
                    "steps": steps[0],
                    "memory_mb": round((memory.rss - memory.shared) / MEGABYTE, 2),
                    "files": process.num_fds(),
                    "threads": process.num_threads(),
                }
            )

    watching = threading.Thread(target=look, daemon=True)
    {"train": train, "embed": embed}[program](over)
    ended.set()
    watching.join()
    return {"program": program, "steps": steps[0], "points": points}


def judged(found: dict) -> dict:
    """Add to what `record` returns the fitted line and the verdict.

    Added are `memory_mb`, the mean after the warm-up; `growth_mb` and `growth_percent` of the fitted line from its first to its
    last point, `growth_mb_error`, its standard error; `bytes_per_step`; `files` and `threads`, smallest and largest;
    and `grows`, whether the line grows by more than `ALLOWED` percent and twice its error, or open files increase.

    Raises:
        ValueError: there are fewer than 6 points after the warm-up.
    """
    import numpy as np
    from scipy.stats import linregress

    last = found["points"][-1]["minute"] if found["points"] else 0
    kept = [point for point in found["points"] if point["minute"] >= WARM_UP * last]
    if len(kept) < 6:
        raise ValueError(f"Only {len(kept)} points were recorded after the warm-up; 6 are needed. Raise --minutes.")
    minutes, memory, files, threads = (
        np.array([p[name] for p in kept]) for name in ("minute", "memory_mb", "files", "threads")
    )
    line, span = linregress(minutes, memory), minutes[-1] - minutes[0]
    growth, error, mean = line.slope * span, line.stderr * span, memory.mean()
    half = len(files) // 2
    more_files = bool(np.median(files[half:]) > np.median(files[:half]))
    return found | {
        "memory_mb": round(float(mean), 1),
        "growth_mb": round(float(growth), 3),
        "growth_mb_error": round(float(error), 3),
        "growth_percent": round(float(100 * growth / mean), 3),
        "bytes_per_step": round(float(growth) * MEGABYTE / (kept[-1]["steps"] - kept[0]["steps"]), 1),
        "files": [int(files.min()), int(files.max())],
        "threads": [int(threads.min()), int(threads.max())],
        "grows": more_files or bool(100 * growth / mean > ALLOWED and growth > 2 * error),
    }


def table(result: dict) -> str:
    """The verdicts in Markdown."""
    head = [
        "program",
        "minutes",
        "steps",
        "memory, MiB",
        "growth after the first third",
        "bytes per step",
        "open files",
        "grows",
    ]
    rows = [
        [
            row["program"],
            f"{row['points'][-1]['minute']:.1f}",
            row["steps"],
            f"{row['memory_mb']:.0f}",
            f"{row['growth_mb']:+.2f} ± {2 * row['growth_mb_error']:.2f} MiB ({row['growth_percent']:+.2f}%)",
            f"{row['bytes_per_step']:,.0f}",
            "{} to {}".format(*row["files"]),
            "yes" if row["grows"] else "no",
        ]
        for row in result["rows"]
    ]
    return markdown_table(head, rows)


def main(argv: list[str] | None = None) -> dict:
    """The command; returns what it writes."""
    argv = sys.argv[1:] if argv is None else argv
    parser = command_parser("benchmarks.long_run", __doc__)
    parser.add_argument("--minutes", type=float, default=12.0, help="for each program (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="between two looks (default: %(default)s)")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="which (default: both)")
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args(argv)
    if options.program:
        print(json.dumps(record(options.program, options.minutes, options.seconds)))
        return {}
    rows = []
    for program in options.programs:
        command = [sys.executable, "-m", "benchmarks.long_run", "--program", program]
        command += ["--minutes", str(options.minutes), "--seconds", str(options.seconds)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(judged(json.loads(printed.splitlines()[-1])))
    result = {"rows": rows, "allowed_percent": ALLOWED} | provenance("benchmarks.long_run", argv)
    print(table(result))
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    start(main)
