"""What training and embedding at scale take, calculated from counts and assumptions; and the page docs/scale.md.

    python -m benchmarks.scale_page --print                        # the calculation; nothing is written
    python -m benchmarks.scale_page --pairs 1e9 --tflops 312 --utilisation 0.35 --dollars 1.2 --print
    python -m benchmarks.scale_page                                # writes docs/cost/scale.json, and the tables of
    docs/scale.md

Counted are multiply-adds (docs/cost/flops.json, by `python -m benchmarks.flops`) and parameters, of Gemma-2B's shape with six
prompts and ViT-B/16. All else is an assumption, an option of this command. A weight that is trained costs three times its
forward pass, a frozen one its forward pass alone.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import long_run, memory, steps
from benchmarks.cost_page import filled
from benchmarks.flops import SOURCE_MODEL
from benchmarks.record import command_parser, provenance
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import read_json, write_json, write_text

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "scale.md"
GPUS = (1, 8, 256)
TOKENS, WIDTH = 59, 2048  # states of a text: its 22 tokens and 37 of the prompts, in Gemma-2B
IMAGE_TOKENS, IMAGE_WIDTH = 197, 768  # of ViT-B/16
# Assumption -> its default, its unit, and where it comes from.
ASSUMED = {
    "pairs": (4e8, "pairs of an epoch", "the size of LAION-400M"),
    "images": (1e9, "pictures to embed", "a round number"),
    "tflops": (989.0, "TFLOPS of a GPU in bfloat16", "H100 SXM, as published, without sparsity"),
    "utilisation": (0.4, "of it that is reached", "assumed; 0.3 to 0.5 is usual for transformers"),
    "dollars": (2.5, "dollars per GPU and hour", "assumed"),
    "batch": (1024, "pairs per GPU and step", "assumed"),
    "dimensions": (768, "of an embedding", "the default of projection_dim"),
    "within": (450.0, "GB/s from GPU to GPU in a node, one way", "NVLink of an H100, as published"),
    "between": (50.0, "GB/s per GPU between nodes, one way", "400 Gbit/s per GPU"),
    "disk": (2.0, "GB/s that are read from disks per GPU", "assumed; several local NVMe disks per node"),
    "storage": (20.0, "dollars per TB and month", "assumed"),
    "picture": (50.0, "KB of a stored picture", "assumed"),
    "decoding": (300.0, "pictures decoded per core and second", "assumed"),
}


# The calculation ------------------------------------------------------------------------------------------------------


def parameters() -> dict[str, int]:
    """Numbers of weights: `llm`, its `last_layer` and final norm, `image_tower`, and `new` (pooling, projections, tokens)."""
    from benchmarks.flop_counts import meta_model
    from benchmarks.llm_shapes import TEXT_CONFIGS

    model = meta_model(TEXT_CONFIGS[SOURCE_MODEL]())
    count = lambda *modules: sum(weight.numel() for module in modules for weight in module.parameters())  # noqa: E731
    parts = {
        "llm": count(model.text_model),
        "last_layer": count(model.text_model.layers[-1], model.text_model.final_norm),
        "image_tower": count(model.vision_model),
    }
    return parts | {"new": count(model) - parts["llm"] - parts["image_tower"]}


def work(flops: dict) -> dict[str, float]:
    """GMACs per pair of a training step, by what is trained and cached.

    Args:
        flops: the content of docs/cost/flops.json.

    Returns:
        `live`: the LLM's last layer and the image tower are trained, texts run through the whole LLM. `texts cached`: the same
        from cached states of texts. `all cached`: the image tower is frozen too, and its states are cached. `filling`: the
        states of a text, once. `embedding`: a picture, without training.
    """
    rows = [row for row in flops["rows"] if row["text_model"] == SOURCE_MODEL and not row["negation"]]
    text = {row["mode"]: row["gmacs_text"] for row in rows}
    encoder, pooling = flops["image"]["encoder"], flops["image"]["pooling"]
    below = text["tree+readout"] - text["cached"]
    return {
        "live": below + 3 * (text["cached"] + encoder + pooling),
        "texts cached": 3 * (text["cached"] + encoder + pooling),
        "all cached": 3 * (text["cached"] + pooling),
        "filling": below,
        "embedding": encoder + pooling,
    }


def calculate(flops: dict, counted: dict[str, int], assumed: dict[str, float]) -> dict:
    """All tables.

    Args:
        flops: the content of docs/cost/flops.json.
        counted: as from `parameters`.
        assumed: a value for each of `ASSUMED`.

    Returns:
        `epochs`: hours and dollars by way of training, limited by computing or by reading; `exchange`: bytes per step and GPU
        by number of GPUs; `stores`: bytes per million captions and pictures by format; `embedding`: of many pictures.
    """
    a = argparse.Namespace(**assumed)
    rate = a.tflops * 1e12 * a.utilisation / 2e9  # GMACs per second and GPU
    done = work(flops)
    state_bytes = {"texts": 2 * TOKENS * WIDTH, "pictures": 2 * IMAGE_TOKENS * IMAGE_WIDTH}
    read = {"live": 0, "texts cached": state_bytes["texts"], "all cached": sum(state_bytes.values())}
    epochs = []
    for way in ("live", "texts cached", "all cached"):
        computed, readable = rate / done[way], a.disk * 1e9 / read[way] if read[way] else float("inf")
        speed = min(computed, readable)
        hours = a.pairs / speed / 3600
        epochs.append(
            {
                "way": way,
                "gmacs": done[way],
                "gpu_hours": hours,
                "hours": {str(n): hours / n for n in GPUS},
                "dollars": hours * a.dollars,
                "pairs_per_second": speed,
                "limit": "computing" if computed <= readable else "reading",
                "read_mb_per_second": read[way] * speed / 1e6,
                "stored_tb": read[way] * a.pairs / 1e12,
                "store_dollars_per_month": read[way] * a.pairs / 1e12 * a.storage,
            }
        )
    filling = a.pairs * done["filling"] / rate / 3600
    return {
        "epochs": epochs,
        "filling": {"gpu_hours": filling, "dollars": filling * a.dollars},
        "exchange": [exchanged(n, counted, a, rate / done["live"]) for n in GPUS[1:]],
        "stores": [
            {"what": what, "format": name, "gb_per_million": size * share / 2 / 1e9 * 1e6}
            for what, size in state_bytes.items()
            for name, share in (("float32", 4), ("bfloat16", 2), ("int8", 1))
        ],
        "embedding": {
            "gpu_hours": a.images * done["embedding"] / rate / 3600,
            "dollars": a.images * done["embedding"] / rate / 3600 * a.dollars,
            "pictures_per_second": rate / done["embedding"],
            "cores_per_gpu": rate / done["embedding"] / a.decoding,
            "read_tb": a.images * a.picture * 1e3 / 1e12,
            "float16_tb": a.images * a.dimensions * 2 / 1e12,
        },
    }


def exchanged(n: int, counted: dict[str, int], a: argparse.Namespace, pairs_per_second: float) -> dict:
    """Bytes that a GPU receives in a step of n GPUs, and the seconds that they take if nothing hides them.

    Args:
        n: number of GPUs; more than 8 stand in several nodes.
        counted: as from `parameters`.
        a: the assumptions.
        pairs_per_second: of a GPU that exchanges nothing.
    """
    speed = (a.within if n <= 8 else a.between) * 1e9
    trained = counted["last_layer"] + counted["image_tower"] + counted["new"]
    both = 2 * a.batch * a.dimensions * 4  # texts and pictures of a GPU, float32
    embeddings = 2 * (n - 1) * both  # gathered, and their gradients scattered
    ddp = 2 * (n - 1) / n * trained * 4  # all-reduce: reduce-scatter and all-gather
    whole = sum(counted[name] for name in ("llm", "image_tower", "new"))
    fsdp = (n - 1) / n * (2 * 2 * whole + 4 * trained)  # bfloat16 weights forward and backward; float32 gradients
    return {
        "gpus": n,
        "pairs": n * a.batch,
        "embeddings_mb": embeddings / 1e6,
        "ddp_mb": ddp / 1e6,
        "fsdp_mb": fsdp / 1e6,
        "seconds_ddp": (embeddings + ddp) / speed,
        "seconds_fsdp": (embeddings + fsdp) / speed,
        "seconds_compute": a.batch / pairs_per_second,
        "logits_mb": a.batch * a.batch * n * 4 / 1e6,
    }


# The tables -----------------------------------------------------------------------------------------------------------


def tables(result: dict) -> str:
    """The calculation in Markdown."""
    assumed, found = result["assumed"], result["calculated"]
    epochs, embedding = found["epochs"], found["embedding"]
    hours = [f"hours on {n}" for n in GPUS]
    head = [
        "texts and pictures",
        "GMACs per pair",
        *hours,
        "dollars",
        "pairs/s per GPU",
        "limit",
        "read, MB/s per GPU",
        "stored, TB",
    ]
    rows = [
        [
            row["way"],
            row["gmacs"],
            *(f"{row['hours'][str(n)]:,.1f}" for n in GPUS),
            f"{row['dollars']:,.0f}",
            f"{row['pairs_per_second']:,.0f}",
            row["limit"],
            f"{row['read_mb_per_second']:,.0f}",
            f"{row['stored_tb']:,.0f}",
        ]
        for row in epochs
    ]
    exchange = markdown_table(
        ["GPUs", "pairs per step", "embeddings, MB", "DDP, MB", "FSDP2, MB", "computing, s", "DDP, s", "FSDP2, s"],
        [
            [
                row["gpus"],
                f"{row['pairs']:,.0f}",
                *(f"{row[name]:,.0f}" for name in ("embeddings_mb", "ddp_mb", "fsdp_mb")),
                *(f"{row[name]:.3f}" for name in ("seconds_compute", "seconds_ddp", "seconds_fsdp")),
            ]
            for row in found["exchange"]
        ],
    )
    stores = markdown_table(
        ["states of", "format", "GB per million"],
        [[row["what"], row["format"], f"{row['gb_per_million']:,.0f}"] for row in found["stores"]],
    )
    cached = epochs[1]
    assumptions = markdown_table(
        ["assumption", "value", "from"],
        [[unit, f"{assumed[name]:,g}", source] for name, (_, unit, source) in ASSUMED.items()],
    )
    return "\n\n".join(
        [
            "**Assumptions**",
            assumptions,
            f"**An epoch of {assumed['pairs']:,.0f} pairs.** " + WAYS,
            markdown_table(head, rows),
            f"To fill the store of texts takes {found['filling']['gpu_hours']:,.0f} GPU hours "
            f"({found['filling']['dollars']:,.0f} dollars) once, and its {cached['stored_tb']:,.0f} TB cost "
            f"{cached['store_dollars_per_month']:,.0f} dollars a month. Each epoch from the store costs "
            f"{epochs[0]['dollars'] - cached['dollars']:,.0f} dollars less than a live one.",
            "**Bytes that a GPU receives in a step, at most.** Live texts; the image tower and the LLM's last layer are "
            "trained. The seconds are those that nothing hides; DDP and FSDP2 exchange while they compute.",
            exchange,
            "**Storage of cached states**",
            stores,
            f"**Embedding {assumed['images']:,.0f} pictures** takes {embedding['gpu_hours']:,.0f} GPU hours "
            f"({embedding['dollars']:,.0f} dollars), {embedding['pictures_per_second']:,.0f} pictures per second and GPU. They "
            f"are {embedding['read_tb']:,.0f} TB to read, and decoding keeps {embedding['cores_per_gpu']:,.0f} cores per GPU "
            f"busy, so decoding is what to plan for. The embeddings take {embedding['float16_tb']:,.1f} TB in float16.",
        ]
    )


WAYS = (
    "live: the image tower and the LLM's last layer are trained, and texts run through the whole LLM. texts cached: the same "
    "with cached states of texts. all cached: the image tower is frozen, and its states are cached too."
)
TABLES = {"memory": memory.summary, "steps": steps.tables, "long_run": long_run.table, "scale": tables}


def main(argv: list[str] | None = None) -> dict:
    """The command; returns what it calculated."""
    argv = sys.argv[1:] if argv is None else argv
    parser = command_parser("benchmarks.scale_page", __doc__)
    for name, (default, unit, source) in ASSUMED.items():
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{unit} (default: %(default)g, {source})")
    parser.add_argument("--print", action="store_true", help="print the calculation and write nothing")
    options = parser.parse_args(argv)
    assumed = {name: getattr(options, name) for name in ASSUMED}
    counted = parameters()
    found = calculate(read_json(DOCS / "cost" / "flops.json"), counted, assumed)
    result = {"assumed": assumed, "parameters": counted, "calculated": found}
    result |= provenance("benchmarks.scale_page", argv)
    print(tables(result))
    if not options.print:
        write_json(DOCS / "cost" / "scale.json", result)
        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), TABLES))
        print(f"\nwritten: {PAGE}")
    return result


if __name__ == "__main__":
    start(main)
