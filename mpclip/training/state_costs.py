"""What cached states take on a disk: bytes per caption and per picture, computed from the shapes of a model.

    python -m mpclip.training.state_costs --text_model smollm2-135m --vision_model efficientnet-lite0
    python -m mpclip.training.state_costs --num_prompts 1 --text_tokens 22 --captions 5
    python -m mpclip.training.state_costs --checkpoint runs/mine --negated --json costs.json

A caption takes (its tokens + the nodes of the prompt tree) x (channels of the LLM) numbers, a picture (its tokens) x (channels
of the encoder). Nothing is computed but shapes: weights are not loaded.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from mpclip.argument_types import count
from mpclip.cli import manual
from mpclip.command import start
from mpclip.files import write_json

TEXT_TOKENS = 14  # of a caption
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
SCALE_BYTES = {"int8": 4}  # in addition per token


def state_bytes(tokens: int, width: int, format: str) -> int:
    """Bytes of the states of a text or a picture.

    Args:
        tokens: number of tokens, those of prompts included.
        width: channels.
        format: of `mpclip.training.state_store.FORMATS`.
    """
    return tokens * (width * BYTES[format] + SCALE_BYTES.get(format, 0))


def costs(config, processor, text_tokens: int = TEXT_TOKENS, captions: int = 1, negated: bool = False) -> dict[str, Any]:
    """The bytes of cached states of a model.

    Args:
        config: an [`MPCLIPConfig`] with compiled prompts.
        processor: its [`MPCLIPProcessor`].
        text_tokens: tokens of a caption, without prompts.
        captions: of a picture.
        negated: whether the negated prompts are stored too, as training with negation_weight does.

    Returns:
        `text` and `image`, each `tokens` and `width`; and `formats`: format -> bytes `per_caption`, `per_picture`, and
        `per_million`, of a million pictures with their captions.
    """
    from modeling_mpclip import PromptTree

    tree = (
        PromptTree.from_dict(config.prompt_tree).select(negated=negated) if config.text_pooling == "prompts" else PromptTree()
    )
    text = {"tokens": text_tokens + len(tree), "width": config.text_config.hidden_size}
    tokens, width = picture_shape(config.vision_config, processor.image_processor)
    formats = {}
    for format in BYTES:
        per_caption = state_bytes(text["tokens"], text["width"], format)
        per_picture = state_bytes(tokens, width, format)
        per_million = 10**6 * (captions * per_caption + per_picture)
        formats[format] = {"per_caption": per_caption, "per_picture": per_picture, "per_million": per_million}
    return {"text": text, "image": {"tokens": tokens, "width": width}, "captions": captions, "formats": formats}


def picture_shape(vision_config, image_processor) -> tuple[int, int]:
    """The tokens of a picture and their channels: (N, C). Of an encoder that keeps the shape of pictures, for a square one."""
    import PIL.Image
    import torch

    from modeling_mpclip.vision_encoder import build_vision_model, run_vision_model

    inputs = image_processor([PIL.Image.new("RGB", (512, 512))] * 2, return_tensors="pt")
    mask = inputs.get("pixel_attention_mask")
    on_meta = {name: x if name == "spatial_shapes" else x.to("meta") for name, x in inputs.items()}
    with torch.device("meta"):  # tensors of this device have a shape and no numbers
        encoder = build_vision_model(vision_config).eval()
    with torch.inference_mode():
        shape = run_vision_model(encoder, **on_meta).last_hidden_state.shape  # (2, N, C)
    return (shape[1] if mask is None else int(mask[0].sum())), shape[2]


def table(found: dict[str, Any]) -> str:
    """Costs as a Markdown table."""
    head = f"| format | a caption, KB | a picture, KB | a million pictures with {found['captions']} caption(s), GB |"
    rows = [
        f"| {name} | {of['per_caption'] / 1e3:.1f} | {of['per_picture'] / 1e3:.1f} | {of['per_million'] / 1e9:,.0f} |"
        for name, of in found["formats"].items()
    ]
    shapes = "a caption is {text[tokens]} x {text[width]}, a picture {image[tokens]} x {image[width]} numbers".format(**found)
    return "\n".join([head, "| --- | --- | --- | --- |", *rows, "", shapes])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: words of the command line; None takes those of the process.

    Raises:
        SystemExit: a tower or a checkpoint is not found.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.training.state_costs",
        description=manual("mpclip.training.state_costs"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text_model", default="smollm2-135m", help="as in training (default: %(default)s)")
    parser.add_argument("--vision_model", default="efficientnet-lite0", help="as in training (default: %(default)s)")
    parser.add_argument("--checkpoint", help="an MP-CLIP checkpoint, instead of two towers")
    parser.add_argument("--num_prompts", type=count, default=6, help="of two towers (default: %(default)s)")
    parser.add_argument("--negated", action="store_true", help="negated prompts too, as with negation_weight")
    parser.add_argument("--text_tokens", type=count, default=TEXT_TOKENS, help="of a caption (default: %(default)s)")
    parser.add_argument("--captions", type=count, default=1, help="of a picture (default: 1)")
    parser.add_argument("--json", metavar="OUT.json", help="write the result")
    options = parser.parse_args(arguments)
    try:
        found = costs(*_model(options), options.text_tokens, options.captions, options.negated)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    if options.json:
        write_json(options.json, vars(options) | found)
    print(table(found))


def _model(options) -> tuple:
    """The config and the processor."""
    from transformers import AutoConfig

    from modeling_mpclip import MPCLIPConfig, MPCLIPProcessor
    from mpclip.data.backbones import resolve_backbone

    if options.checkpoint:
        return MPCLIPConfig.from_pretrained(options.checkpoint), MPCLIPProcessor.from_pretrained(options.checkpoint)
    text, vision = resolve_backbone(options.text_model), resolve_backbone(options.vision_model)
    vision_config = AutoConfig.from_pretrained(vision)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    config = MPCLIPConfig(AutoConfig.from_pretrained(text).get_text_config(), vision_config, num_prompts=options.num_prompts)
    processor = MPCLIPProcessor.from_pretrained_towers(text, vision, config.all_templates)
    config.compile_prompts(processor.tokenizer)
    return config, processor


if __name__ == "__main__":
    start(main)
