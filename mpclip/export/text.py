"""Writes a checkpoint with the text tower alone, for tasks without pictures (semantic similarity, text retrieval).

    mpclip export text runs/mine runs/mine_text
    mpclip export text you/your-model your_model_text
    mpclip export text runs/demo/multi_prompt runs/demo/text

The new checkpoint has neither vision weights nor an image processor, and gives the same text embeddings as the original one.
Load it with `AutoModel` and call `get_text_features`, or encode, train and save it with `SentenceTransformer`.
"""

import argparse
import shutil
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils import cached_file

from modeling_mpclip import MPCLIPConfig, MPCLIPModel
from modeling_mpclip.prompt_tree import read_as_text

PROMPTS_FILE = "config_sentence_transformers.json"


def export_text(checkpoint: str, out: str | Path) -> None:
    """Write the text-only checkpoint.

    Args:
        checkpoint: folder or Hub id of an `MPCLIPModel`.
        out: folder for the new checkpoint; new or empty.

    Raises:
        ValueError: `out` is not empty, or the checkpoint is already text-only or is quantised.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty. Give a folder that does not exist yet.")
    whole = MPCLIPModel.from_pretrained(checkpoint)
    if whole.config.text_only:
        raise ValueError(f"{checkpoint} is a text-only checkpoint already. Copy it.")
    if getattr(whole.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{checkpoint} holds quantised weights, which cannot be split. Export the checkpoint it was made from, and "
            "quantise the result: mpclip export int8."
        )
    config = MPCLIPConfig.from_dict({**whole.config.to_dict(), "text_only": True, "vision_config": None})
    model = MPCLIPModel(config, text_model=whole.text_model)
    for name in ("text_pooling", "text_projection", "logit_scale"):
        setattr(model, name, getattr(whole, name))

    tokenizer = read_as_text(AutoTokenizer.from_pretrained(checkpoint))
    tokenizer.init_kwargs.pop("auto_map", None)  # it names MPCLIPProcessor, which needs an image processor
    keep_prompts(checkpoint, out)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def keep_prompts(checkpoint: str, out: Path) -> None:
    """Copy the prompts and settings of sentence-transformers to a new folder. `save_pretrained` then keeps them.

    Args:
        checkpoint: folder or Hub id.
        out: the new folder; it is created.
    """
    out.mkdir(parents=True, exist_ok=True)
    if prompts := cached_file(checkpoint, PROMPTS_FILE, _raise_exceptions_for_missing_entries=False):
        shutil.copyfile(prompts, out / PROMPTS_FILE)


def run(options: argparse.Namespace) -> str:
    """Run `mpclip export text`; returns the message to print."""
    export_text(options.checkpoint, options.out)
    return f"written: {options.out}"
