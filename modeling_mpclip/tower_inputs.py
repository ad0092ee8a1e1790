"""What a tower is given: checks of ids, masks and pixels, and small things that both sides of the model use.

Nothing is checked while a graph is traced: a check would become a part of it.
"""

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)


def asked(output_attentions: bool | None, output_hidden_states: bool | list[int] | None) -> dict:
    """Keyword arguments for a tower: what it shall return. None is left out, so that the tower's config decides."""
    asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
    return {"return_dict": True} | {name: value for name, value in asked.items() if value is not None}


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, L, C), mask (B, L) -> (B, C): the mean over columns with a nonzero mask; 0 if a row has none."""
    weights = mask.to(x.dtype)[..., None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def refuse_no_texts(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    """Raise a ValueError unless `input_ids` (B, N) is a batch of token ids and `attention_mask` None or (B, N)."""
    if torch.compiler.is_compiling():
        return
    _refuse_other_shape("input_ids", input_ids, "(B, N)", 2)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"input_ids are {input_ids.dtype}; expected token ids, torch.int64 or torch.int32. Give those that the tokenizer "
            "returns; hidden states are given as text_hidden_states."
        )
    if attention_mask is not None:
        refuse_other_mask(attention_mask, tuple(input_ids.shape))


def refuse_other_mask(mask: torch.Tensor, shape: tuple[int, int], name: str = "attention_mask") -> None:
    """Raise a ValueError unless `mask` is a tensor of the shape."""
    if torch.compiler.is_compiling():
        return
    if not isinstance(mask, torch.Tensor) or tuple(mask.shape) != shape:
        what, source = "token", "tokenizer returned with the ids"
        if name == "pixel_attention_mask":
            what, source = "patch", "processor returned with the pixels"
        raise ValueError(
            f"{name} {_described(mask)}; expected a tensor of the shape {shape}, 1 for every {what} and 0 for padding. Give "
            f"the one that the {source}."
        )


def refuse_foreign_ids(input_ids: torch.Tensor, highest: int) -> None:
    """Raise a ValueError for ids outside 0..highest. Only on the CPU: an accelerator would have to wait for the check."""
    if torch.compiler.is_compiling() or input_ids.device.type != "cpu" or input_ids.numel() == 0:
        return
    lowest_id, highest_id = (int(end) for end in input_ids.aminmax())
    if highest_id > highest or lowest_id < 0:
        raise ValueError(
            f"input_ids range from {lowest_id} to {highest_id}, but the ids of this model are 0 to {highest}. Tokenize with "
            "the tokenizer that was saved with the model."
        )


def warn_of_padding(input_ids: torch.Tensor, pad_token_id: int | None) -> None:
    """Warn, once in a process, if texts (B, N) without an attention mask seem to be padded."""
    if pad_token_id is None or torch.compiler.is_compiling() or input_ids.numel() == 0:
        return
    if (input_ids[:, [0, -1]] == pad_token_id).any():
        logger.warning_once(
            f"input_ids were given without an attention_mask, and some begin or end with the padding token {pad_token_id}. "
            "Without a mask, padding is read as text and changes the embeddings. Give the attention_mask that the tokenizer "
            "returned. If the token belongs to the texts, give a mask of ones."
        )


def refuse_no_pixels(name: str, pixels: torch.Tensor, dims: str, channels: int) -> None:
    """Raise a ValueError unless `pixels` is a float tensor with the dimensions, such as "(B, C, H, W)", and C channels."""
    if torch.compiler.is_compiling():
        return
    _refuse_other_shape(name, pixels, dims, dims.count(",") + 1)
    if pixels.shape[-3] != channels:
        raise ValueError(f"{name} {_described(pixels)}; expected {dims} with C = {channels} channels.")
    if not pixels.is_floating_point():
        raise ValueError(f"{name} are {pixels.dtype}; expected the normalised floats that the processor returns for pictures.")


def refuse_no_patches(pixel_values: torch.Tensor, mask: torch.Tensor | None, shapes: torch.Tensor | None) -> None:
    """Raise a ValueError unless the arguments are (B, N, C * p * p) patches, their mask (B, N) and their grids (B, 2)."""
    if torch.compiler.is_compiling():
        return
    if mask is None or shapes is None:
        raise ValueError(
            "pixel_values of SigLIP 2 NaFlex need pixel_attention_mask and spatial_shapes. Give all three that the processor "
            "returns."
        )
    _refuse_other_shape("pixel_values", pixel_values, "(B, N, C * p * p)", 3)
    refuse_other_mask(mask, tuple(pixel_values.shape[:2]), "pixel_attention_mask")


def refuse_no_tokens(tokens: torch.Tensor, channels: int, dims: str = "(B, N, C)") -> None:
    """Raise a ValueError unless `tokens` has the dimensions and C channels."""
    if torch.compiler.is_compiling():
        return
    _refuse_other_shape("vision_hidden_states", tokens, dims, dims.count(",") + 1)
    if tokens.shape[-1] != channels:
        raise ValueError(
            f"vision_hidden_states {_described(tokens)}; expected {dims} with C = {channels} channels. Give what "
            "`vision_tokens` of this model returned."
        )


def refuse_other_frames(frame_mask: torch.Tensor | None, shape: tuple[int, int]) -> None:
    """Raise a ValueError unless `frame_mask` is None or has the shape (B, T) and a frame in every video."""
    if frame_mask is None or torch.compiler.is_compiling():
        return
    if tuple(frame_mask.shape) != shape or not frame_mask.bool().any(dim=1).all():
        raise ValueError(
            f"frame_mask has the shape {tuple(frame_mask.shape)}; expected {shape} with a frame in every video. "
            "Leave out videos without frames."
        )


def _refuse_other_shape(name: str, given, dims: str, rank: int) -> None:
    if not isinstance(given, torch.Tensor):
        raise ValueError(f"{name} {_described(given)}; expected a tensor {dims}. Give what the processor returns.")
    if given.dim() != rank:
        advice = f"For a batch of one give {name}[None]." if given.dim() == rank - 1 else "Give what the processor returns."
        raise ValueError(f"{name} {_described(given)}; expected {dims}. {advice}")
    if 0 in (given.shape[:1] if name == "input_ids" else given.shape):  # a text may be empty
        raise ValueError(f"{name} {_described(given)}: there is nothing to embed. Leave out empty batches.")


def _described(given) -> str:
    return f"has the shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else f"is a {type(given).__name__}"
