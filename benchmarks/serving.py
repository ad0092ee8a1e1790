"""The cost of embedding a text: time and size on disk, of torch and onnxruntime in several precisions.

    python -m benchmarks.serving --quick                                 # two rounds per ratio; the exports take minutes
    python -m benchmarks.serving --json docs/cost/serving.json
    python -m benchmarks.serving --model runs/demo/multi_prompt --json docs/cost/serving.json

torch float32            the reference
torch bfloat16           the checkpoint loaded with dtype=bfloat16
torch int8 weights       the LLM's weights in int8 (mpclip/export/int8.py), computed in float32 or in bfloat16
onnxruntime float32      the exported graph (mpclip/export/onnx.py)
onnxruntime int8 weights the graph with the weights of its linear layers in int8 (onnxruntime's MatMulNBitsQuantizer)
onnxruntime int8         the graph with weights and inputs of its linear layers in int8 (onnxruntime's quantize_dynamic)

Every engine embeds the same tokenized captions on the CPU, one by one and in batches of 32 padded to their longest text, with
as many threads as torch uses. Reference and engine take turns. The speedup is the median over rounds of their ratio; from ten
rounds on, its quartiles are shown. Milliseconds are shown for the reference alone: the machine may have been busier for one
engine than for another, and then the engines' own milliseconds would contradict the ratios. The size on disk is that of the
text side. The cosine is the lowest one between an engine's embedding of a text and the reference's.

Without --model, the model is SmolLM2-135M with 6 prompts and a random projection; time and size do not depend on its values.
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

from benchmarks.ratios import retrieval_model
from benchmarks.record import command_parser, provenance
from benchmarks.speed import captions
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
    import onnxruntime  # not at the top: `benchmarks.cost_page` imports this module without it

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


def table(result: dict) -> str:
    """The speedups in Markdown, and the milliseconds of the reference alone (see the module's docstring)."""
    head = ["engine", "texts at a time", "times as fast as float32", "ms per text", "MB on disk", "lowest cosine", "rounds"]
    rows = []
    for row in result["rows"]:
        speed = [None, row["ms_per_text"]] if row["engine"] == REFERENCE else [row["speedup"], None]
        size = f"{row['megabytes']:,.0f}"
        rows.append([row["engine"], row["batch_size"], *speed, size, f"{row['cosine']:.4f}", row["rounds"]])
    return markdown_table(*with_quartiles(head, rows, result["rows"]))


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    parser = command_parser("benchmarks.serving", __doc__)
    parser.add_argument("--model", help="checkpoint, folder or Hub id; its Python files are run (default: see above)")
    parser.add_argument("--quick", action="store_true", help="two rounds for each ratio")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--data", help="data set with captions (default: Flickr8k if it is in data/, else OpenMoji scenes)")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="for each ratio, but at least two rounds (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    result = {**measure(options), **provenance("benchmarks.serving", given)}
    print(f"\n{table(result)}")
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
