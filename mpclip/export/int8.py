"""Writes a checkpoint whose LLM has int8 weights: a quarter of their size in float32, the inputs of a layer as they were.

    mpclip export int8 runs/demo/multi_prompt runs/demo/multi_prompt_int8

The new checkpoint loads like every other, where torchao is installed. The linear layers of the LLM get a weight of int8 and a
scale per output channel; embeddings, norms, projections, pooling and the vision encoder stay as they are. The same while
loading, without a second checkpoint:

    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    int8 = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["vision_model", "image_pooling"])
    model = AutoModel.from_pretrained("runs/demo/multi_prompt", trust_remote_code=True, quantization_config=int8)

What it costs in recall: `python -m eval retrieval --quantize int8`. It is the last step: training, merging an adapter
and a text-only export (`mpclip export text`) come before it. Its card is written by
`python -m model_card runs/demo/multi_prompt_int8 --source runs/demo/multi_prompt`.
"""

import argparse
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, TorchAoConfig

from .text import keep_prompts

# Every linear layer but the LLM's stands in one of these.
LEFT_ALONE = ["vision_model", "image_pooling"]


def int8_config() -> TorchAoConfig:
    """The `quantization_config` for `from_pretrained`.

    Raises:
        ImportError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise ImportError("int8 weights need torchao. Install it: pip install 'torchao>=0.18'") from error
    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=LEFT_ALONE)


def quantize(checkpoint: str, out: str | Path) -> None:
    """Write the int8 checkpoint of a checkpoint, with its code, processor and sentence-transformers prompts.

    Args:
        checkpoint: folder or Hub id; its Python files are run.
        out: the new folder.

    Raises:
        FileExistsError: `out` holds something already.
        ImportError: torchao is not installed.
        ValueError: the checkpoint is quantised already.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty. Give a folder that does not exist yet.")
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{checkpoint} holds quantised weights already; copy it, or give the checkpoint it was made from.")
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True, quantization_config=int8_config())
    keep_prompts(checkpoint, out)
    model.save_pretrained(out)
    auto_class = AutoTokenizer if config.text_only else AutoProcessor
    auto_class.from_pretrained(checkpoint, trust_remote_code=True).save_pretrained(out)


def run(options: argparse.Namespace) -> str:
    """`mpclip export int8`; returns what to print."""
    quantize(options.checkpoint, options.out)
    size = sum(file.stat().st_size for file in options.out.glob("*.safetensors")) / 1e6
    return f"written: {options.out}, weights of {size:,.0f} MB"
