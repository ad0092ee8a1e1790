"""What it takes to embed a text: milliseconds and megabytes of torch and onnxruntime, in several precisions, side by side.

    python -m benchmarks.serving --quick                                 # a glance, some minutes for the export
    python -m benchmarks.serving --json docs/cost/serving.json
    python -m benchmarks.serving --model runs/demo/multi_prompt --json docs/cost/serving.json

torch float32        the reference of speed and of the embeddings
torch bfloat16       the checkpoint loaded with dtype=bfloat16
torch int8 weights   of the LLM (mpclip/export/int8.py), computed in float32 or in bfloat16
onnxruntime float32  the exported graph (mpclip/export/onnx.py)
  int8 weights       that graph with the weights of its linear layers in int8 (onnxruntime's MatMulNBitsQuantizer)
  int8               with weights and inputs of its linear layers in int8 (onnxruntime's quantize_dynamic)

Every engine embeds the same tokenized captions, one by one and in batches of 32 padded to their longest, on the CPU with as
many threads as torch has. Reference and engine take turns. The median of the ratios of neighbours is reported, from ten rounds
on with its quartiles. Milliseconds are shown for the reference alone: the machine was not equally busy for all engines, so that
their own milliseconds would contradict the ratios. The size on disk is that of the text side alone; the cosine is the lowest
between an engine's embeddings and the reference's.
Without --model it is SmolLM2-135M with 6 prompts and a projection drawn at random, which changes neither time nor size.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor

from benchmarks.record import provenance
from benchmarks.speed import captions, retrieval_model
from benchmarks.timing import Clock, with_quartiles
from eval.tables import markdown_table
from mpclip.export.int8 import int8_config
from mpclip.export.onnx import export
from mpclip.files import write_json

BATCH_SIZES = (1, 32)
TEXT_SIDE = ("text_model.", "text_projection.")
Engine = Callable[[dict[str, torch.Tensor]], torch.Tensor]  # ids and mask (B, N) -> embeddings (B, D)

TORCH = {
    "torch float32": dict(dtype=torch.float32),
    "torch bfloat16": dict(dtype=torch.bfloat16),
    "torch int8 weights": dict(dtype=torch.float32, int8=True),
    "torch int8 weights, bfloat16": dict(dtype=torch.bfloat16, int8=True),
}
REFERENCE = "torch float32"


def torch_engine(model: str, folder: Path, dtype: torch.dtype, int8: bool = False) -> tuple[Engine, int]:
    """The loaded checkpoint, and the bytes of its text side as saved."""
    weights = {"quantization_config": int8_config()} if int8 else {}
    loaded = AutoModel.from_pretrained(model, trust_remote_code=True, dtype=dtype, **weights).eval()
    loaded.save_pretrained(folder)
    return lambda batch: loaded(**batch).text_embeds, text_bytes(folder)


def text_bytes(folder: Path) -> int:
    """Bytes of the LLM and its projection in a saved checkpoint."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as saved:
            names = [name for name in saved.keys() if name.startswith(TEXT_SIDE)]  # noqa: SIM118 - it is no dict
            total += sum(saved.get_tensor(name).nbytes for name in names)
    return total


def onnx_engine(graph: Path) -> tuple[Engine, int]:
    """The graph in onnxruntime, and its bytes."""
    import onnxruntime  # here and below, so that docs/cost.md can be made without it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def embed(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0])

    return embed, sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))


def embed_all(engine: Engine, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([engine(batch) for batch in batches])


def engines(model: str, folder: Path):
    """Yields name, engine and bytes, one engine at a time beside the reference."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for number, (name, weights) in enumerate(TORCH.items()):
        yield name, *torch_engine(model, folder / str(number), **weights)
    export(model, folder / "text.onnx")
    yield "onnxruntime float32", *onnx_engine(folder / "text.onnx")
    graph = MatMulNBitsQuantizer(
        str(folder / "text.onnx"), bits=8, block_size=64, is_symmetric=True, accuracy_level=4, op_types_to_quantize=("MatMul",)
    )
    graph.process()
    graph.model.save_model_to_file(str(folder / "int8_weights.onnx"), use_external_data_format=True)
    yield "onnxruntime int8 weights", *onnx_engine(folder / "int8_weights.onnx")
    quantize_dynamic(folder / "text.onnx", folder / "int8.onnx", op_types_to_quantize=["MatMul"], per_channel=True)
    yield "onnxruntime int8", *onnx_engine(folder / "int8.onnx")


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict:
    texts, data = captions(options.data)
    texts = texts[: max(BATCH_SIZES)]
    clock, rows = Clock("cpu", 0.0 if options.quick else options.seconds), []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            model = f"{folder}/model"
            for part in retrieval_model():
                part.save_pretrained(model)
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=True)
        batches = {
            size: [dict(processor(text=texts[at : at + size], truncation=True)) for at in range(0, len(texts), size)]
            for size in BATCH_SIZES
        }
        for name, engine, size in engines(model, Path(folder)):
            if name == REFERENCE:
                reference = engine
                expected = embed_all(reference, batches[1])  # (texts, D)
            cosine = (embed_all(engine, batches[1]) * expected).sum(dim=1).min()
            for batch_size, parts in batches.items():
                timed = clock.ratio(partial(embed_all, reference, parts), partial(embed_all, engine, parts))
                rows.append(
                    {
                        "engine": name,
                        "batch_size": batch_size,
                        "ms_per_text": timed["fast_ms"] / len(texts),
                        "speedup": timed["ratio"],
                        "quartiles": timed["quartiles"],
                        "rounds": timed["rounds"],
                        "megabytes": size / 1e6,
                        "cosine": float(cosine),
                    }
                )
                print(f"{name}, {batch_size} at a time: {rows[-1]['ms_per_text']:.1f} ms per text", flush=True)
    return {
        "model": options.model or "SmolLM2-135M",
        "data": data,
        "texts": len(texts),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("onnxruntime", "onnxscript", "torchao")},
        "quick": options.quick,
        "rows": rows,
    }


def table(result: dict) -> str:
    """Markdown: how many times as fast each engine is as the reference, of which alone the milliseconds are shown."""
    head = ["engine", "texts at a time", "times as fast as float32", "ms per text", "MB on disk", "lowest cosine", "rounds"]
    rows = []
    for row in result["rows"]:
        speed = [None, row["ms_per_text"]] if row["engine"] == REFERENCE else [row["speedup"], None]
        size = f"{row['megabytes']:,.0f}"
        rows.append([row["engine"], row["batch_size"], *speed, size, f"{row['cosine']:.4f}", row["rounds"]])
    return markdown_table(*with_quartiles(head, rows, result["rows"]))


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="checkpoint: a folder or a Hub id; its Python files are run (default: see above)")
    parser.add_argument("--quick", action="store_true", help="two rounds for each ratio")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--data", help="captions of this data set (default: Flickr8k if it is in data/, else the demo's)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each ratio, two rounds at least (%(default)s)")
    options = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    result = {**measure(options), **provenance("benchmarks.serving", given)}
    print(f"\n{table(result)}")
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
