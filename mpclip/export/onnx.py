"""Writes one tower of a checkpoint as an ONNX graph. onnxruntime runs the graph without torch.

    mpclip export onnx runs/demo/multi_prompt text.onnx
    mpclip export onnx runs/demo/multi_prompt image.onnx --tower image
    mpclip export onnx you/your-model text.onnx

text     input_ids, attention_mask (B, N) int64  ->  text_embeds (B, D) float32, L2-normalised
image    pixel_values (B, C, H, W) float32       ->  image_embeds (B, D) float32, L2-normalised

B and N may have any value. Texts may be padded on either side, and a text may be empty. H and W are those of the checkpoint's
processor. The graph contains prompts, masks and positions, so texts need only a tokenizer:

    texts = Tokenizer.from_file("runs/demo/multi_prompt/tokenizer.json")  # from the package tokenizers
    texts.enable_padding()
    texts.encode_special_tokens = True  # "[APT-1]" in a text is read as letters
    batch = texts.encode_batch(["a small cat left of a big dog", "a red car"])
    inputs = {"input_ids": [text.ids for text in batch], "attention_mask": [text.attention_mask for text in batch]}
    session = onnxruntime.InferenceSession("text.onnx")
    (embeds,) = session.run(None, {name: numpy.array(rows, dtype=numpy.int64) for name, rows in inputs.items()})

The weights of a graph of more than 1 GiB are in a second file beside it, text.onnx.data. The metadata of the graph
(`session.get_modelmeta().custom_metadata_map`) contains the name of the checkpoint, its number of prompts, its dimensions and
its templates. The new graph is compared with torch before it is put in place. If they differ, an existing file is not replaced.

The graph computes in float32, whatever the dtype of the checkpoint's weights. On a CPU, onnxruntime has no bfloat16 matrix
product, and float16 is no faster there (onnxruntime 1.32 on x86).

onnxruntime can also quantise the weights of the graph to int8, as below; docs/cost.md has the result. Its `quantize_dynamic` is
faster, but also rounds the inputs of the layers and is far less exact.

    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    graph = MatMulNBitsQuantizer("text.onnx", bits=8, block_size=64, is_symmetric=True, accuracy_level=4)
    graph.process()
    graph.model.save_model_to_file("text_int8.onnx", use_external_data_format=False)
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoProcessor, PreTrainedModel

from modeling_mpclip.vision_families import vision_family

TOLERANCE = 1e-4  # largest difference between components of embeddings of norm 1
ONE_FILE_BYTES = 2**30  # larger graphs have a second file; protobuf allows at most 2 GiB


class TextTower(nn.Module):
    """The text tower with the inputs and the output of its graph: (B, N) ids and mask -> (B, D).

    Args:
        model: [`MPCLIPModel`].
        checkpoint: where it was loaded from.
    """

    axes = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
    output = "text_embeds"

    def __init__(self, model: PreTrainedModel, checkpoint: str):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).text_embeds

    def examples(self) -> list[tuple[torch.Tensor, ...]]:
        """Inputs to compare the graph with torch: three batch sizes, padded on either side, one empty text."""
        rng = torch.Generator().manual_seed(0)
        batches = []
        for lengths in ([9, 6], [1], [17, 5, 0]):
            ids = torch.randint(self.model.config.text_config.vocab_size, (len(lengths), max(lengths)), generator=rng)  # (B, N)
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()  # (B, N)
            batches += [(ids, mask), (ids, mask.flip(1))]
        return batches


class ImageTower(nn.Module):
    """The image tower with the inputs and the output of its graph: (B, C, H, W) pixels -> (B, D).

    Args:
        model: [`MPCLIPModel`].
        checkpoint: where it was loaded from; its processor gives C, H and W.

    Raises:
        ValueError: the checkpoint is text-only, or its pictures come as patches in their own proportions.
    """

    axes = {"pixel_values": {0: "batch"}}
    output = "image_embeds"

    def __init__(self, model: PreTrainedModel, checkpoint: str):
        super().__init__()
        if model.config.text_only:
            raise ValueError(
                f"{checkpoint} is a text-only checkpoint. Export the image tower of the checkpoint that it was made from."
            )
        if vision_family(model.config.vision_config).output == "patches":
            raise ValueError(
                f"{checkpoint}: a vision tower of type {model.config.vision_config.model_type!r} has no ONNX graph: the "
                "number of its patches differs between pictures. Export a model whose vision tower has a fixed resolution, "
                "such as google/siglip2-base-patch16-256."
            )
        self.model = model
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
        self.size = processor(images=Image.new("RGB", (64, 64)))["pixel_values"].shape[1:]  # (C, H, W)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).image_embeds

    def examples(self) -> list[tuple[torch.Tensor, ...]]:
        """Inputs to compare the graph with torch: random pixels in three batch sizes."""
        rng = torch.Generator().manual_seed(0)
        return [(torch.randn(B, *self.size, generator=rng),) for B in (2, 1, 3)]


TOWERS = {"text": TextTower, "image": ImageTower}


def export(checkpoint: str, out: str | Path, tower: str = "text") -> float:
    """Write one tower of a checkpoint to an ONNX file.

    Args:
        checkpoint: folder or Hub id. Its Python files are run.
        out: the file to write; an existing file is replaced.
        tower: "text" or "image".

    Returns:
        The largest difference between a component of an embedding by onnxruntime and by torch.

    Raises:
        ValueError: the checkpoint is quantised, has no such tower, or its text tower has no graph.
        RuntimeError: onnxruntime and torch give different embeddings. `out` is not replaced, and the message says where the
            faulty graph is.
    """
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32).eval()
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{checkpoint} holds quantised weights. Export the checkpoint it was made from, and quantise the graph as "
            "`mpclip export onnx --help` describes."
        )
    if tower == "text" and getattr(model.text_model, "path", "tree") != "tree":
        raise ValueError(
            f"{checkpoint}: a text tower of type {model.config.text_config.model_type!r} has no ONNX graph, because its prompts"
            " continue from the cache of the text. Export a model whose text tower has the path 'tree' in docs/towers.md."
        )
    module, out = TOWERS[tower](model, checkpoint).eval(), Path(out)
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            module.examples()[0],
            dynamo=True,
            input_names=list(module.axes),
            output_names=[module.output],
            dynamic_shapes=module.axes,
            verbose=False,
        )
    program.model.metadata_props.update(metadata(model, checkpoint))
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())

    aside = out.with_name(out.name + ".part")
    aside.mkdir(parents=True, exist_ok=True)
    program.save(aside / out.name, external_data=weights > ONE_FILE_BYTES)
    worst = difference(aside / out.name, module)
    if not worst <= TOLERANCE:  # NaN too
        raise RuntimeError(
            f"onnxruntime and torch differ by {worst:.1e} in an embedding of norm 1; {TOLERANCE:.0e} is the limit. The graph "
            f"was left in {aside}, and {out} was not written. Try other versions of torch, onnxscript or onnxruntime."
        )
    for file in sorted(aside.iterdir(), reverse=True):  # the file of the weights before the graph that refers to it
        file.replace(out.with_name(file.name))
    aside.rmdir()
    return worst


def metadata(model: PreTrainedModel, checkpoint: str) -> dict[str, str]:
    """The metadata of a graph.

    Args:
        model: the exported model.
        checkpoint: folder or Hub id. Of a folder only the last part is recorded, as its path is private.

    Returns:
        `checkpoint`, `num_prompts`, `projection_dim` and `templates` (a JSON list).
    """
    config = model.config
    return {
        "checkpoint": Path(checkpoint).resolve().name if Path(checkpoint).exists() else checkpoint,
        "num_prompts": str(config.num_prompts),
        "projection_dim": str(config.projection_dim),
        "templates": json.dumps(config.templates, ensure_ascii=False),
    }


@torch.no_grad()
def difference(file: Path, module: nn.Module) -> float:
    """The largest difference between the outputs of a graph and of its module.

    Args:
        file: the ONNX file.
        module: the `TextTower` or `ImageTower`; its `examples` are the inputs.

    Returns:
        The difference of one component of an embedding; NaN if one is NaN.
    """
    import onnxruntime  # imported here, so that --help does not need it

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst = []
    for batch in module.examples():
        inputs = {name: tensor.numpy() for name, tensor in zip(module.axes, batch, strict=True)}
        worst.append((torch.from_numpy(session.run(None, inputs)[0]) - module(*batch)).abs().max())
    return float(torch.stack(worst).max())


def run(options: argparse.Namespace) -> str:
    """Run `mpclip export onnx`; returns the message to print."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its many messages do not concern the user
    warnings.filterwarnings("ignore", module=r"torch\.onnx|copyreg")
    worst = export(options.checkpoint, options.out, options.tower)
    files = [file for file in (options.out, options.out.with_name(options.out.name + ".data")) if file.exists()]
    size = sum(file.stat().st_size for file in files) / 1e6
    return f"written: {options.out}, {size:,.0f} MB; largest difference from torch {worst:.1e}"
