"""The engines that `benchmarks.serving` compares, and their measurement."""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor

from benchmarks.captions import captions
from benchmarks.ratios import retrieval_model
from benchmarks.serving import REFERENCE
from benchmarks.timing import Clock
from mpclip.export.int8 import int8_config
from mpclip.export.onnx import export

BATCH_SIZES = (1, 32)
TEXT_SIDE = ("text_model.", "text_projection.")
Engine = Callable[[dict[str, torch.Tensor]], torch.Tensor]  # ids and mask (B, N) -> embeddings (B, D)

TORCH = {
    "torch float32": dict(dtype=torch.float32),
    "torch bfloat16": dict(dtype=torch.bfloat16),
    "torch int8 weights": dict(dtype=torch.float32, int8=True),
    "torch int8 weights, bfloat16": dict(dtype=torch.bfloat16, int8=True),
}


def torch_engine(model: str, folder: Path, dtype: torch.dtype, int8: bool = False) -> tuple[Engine, int]:
    """A checkpoint loaded by transformers.

    Args:
        model: folder or Hub id.
        folder: where it is saved again in its precision, to see its size.
        dtype: of the weights; of the computation, if `int8`.
        int8: load the LLM's weights as int8.

    Returns:
        The engine, and the bytes of its text side as saved.
    """
    weights = {"quantization_config": int8_config()} if int8 else {}
    loaded = AutoModel.from_pretrained(model, trust_remote_code=True, dtype=dtype, **weights).eval()
    loaded.save_pretrained(folder)
    return lambda batch: loaded(**batch).text_embeds, text_bytes(folder)


def text_bytes(folder: Path) -> int:
    """Bytes of the LLM and its projection in a checkpoint's safetensors files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as saved:
            names = [name for name in saved.keys() if name.startswith(TEXT_SIDE)]  # noqa: SIM118 - it is no dict
            total += sum(saved.get_tensor(name).nbytes for name in names)
    return total


def onnx_engine(graph: Path) -> tuple[Engine, int]:
    """A graph loaded by onnxruntime; returns the engine and the bytes of the graph's files."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def embed(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0])

    return embed, sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))


def embed_all(engine: Engine, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """(texts, D) embeddings of all batches."""
    return torch.cat([engine(batch) for batch in batches])


def engines(model: str, folder: Path):
    """Yield name, engine and bytes on disk of each engine, the reference first.

    Each engine is made when it is asked for, so that few are in memory at once.

    Args:
        model: checkpoint, folder or Hub id.
        folder: where checkpoints and graphs are written.
    """
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
    """Measure all engines as the command line says; returns `rows`, and what they were measured with."""
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
