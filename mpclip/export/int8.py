"""Writes a checkpoint whose LLM has int8 weights, a quarter of the size of float32.

    mpclip export int8 runs/demo/multi_prompt runs/demo/multi_prompt_int8
    mpclip export int8 you/your-model your_model_int8
    mpclip export int8 runs/demo/text runs/demo/text_int8     # of what `mpclip export text` has written

The new checkpoint loads like any other, if torchao is installed. The linear layers of the LLM have int8 weights and one scale
per output channel; their inputs are not quantised. Embeddings, norms, projections, pooling and vision encoder do not change.
The weights can also be quantised while a checkpoint is loaded, without a second checkpoint:

    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    int8 = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["vision_model", "image_pooling", "text_pooling"])
    model = AutoModel.from_pretrained("runs/demo/multi_prompt", trust_remote_code=True, quantization_config=int8)

`python -m eval retrieval --quantize int8` measures the loss in recall. Quantise last, after training, after merging an adapter
and after a text-only export (`mpclip export text`). To write the model card:
`python -m model_card runs/demo/multi_prompt_int8 --source runs/demo/multi_prompt`.
"""

import argparse
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, TorchAoConfig

from modeling_mpclip.source_names import refuse_missing_folder

from .text import keep_prompts

# The modules with all linear layers that do not belong to the LLM.
LEFT_ALONE = ["vision_model", "image_pooling", "text_pooling"]


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
    """Write an int8 checkpoint, with code, processor and sentence-transformers prompts.

    Args:
        checkpoint: folder or Hub id of the original checkpoint. Its Python files are run.
        out: folder for the new checkpoint; new or empty.

    Raises:
        FileExistsError: `out` is not empty.
        ImportError: torchao is not installed.
        ValueError: the checkpoint is already quantised.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty. Give a folder that does not exist yet.")
    refuse_missing_folder(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{checkpoint} holds quantised weights already. Copy it, or give the checkpoint it was made from.")
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True, quantization_config=int8_config())
    keep_prompts(checkpoint, out)
    model.save_pretrained(out)
    auto_class = AutoTokenizer if config.text_only else AutoProcessor
    auto_class.from_pretrained(checkpoint, trust_remote_code=True).save_pretrained(out)


def run(options: argparse.Namespace) -> str:
    """Run `mpclip export int8`; returns the message to print."""
    quantize(options.checkpoint, options.out)
    size = sum(file.stat().st_size for file in options.out.glob("*.safetensors")) / 1e6
    return f"written: {options.out}, weights of {size:,.0f} MB"
