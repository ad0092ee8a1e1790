"""Which token attends to which: positions and prompt-wise attention masks for a batch of texts, each followed by a prompt tree.

Columns of a row: N text tokens (padded left or right), then the T nodes of the tree, in the same columns for all texts. A
prompt token attends to the text, to its ancestors and to itself. Its position continues from the last text token. One pass over
text and tree therefore gives the result of K passes over "text + prompt k" (paper, section 1.2; the tree is ours). In some
layers the text's tokens may also attend to later ones of the text (`text_attention`, ours). They never attend to a prompt.

The masks are not built by `transformers.masking_utils`, which measures a sliding window in columns. Here it must be measured in
positions, which start again behind the text for every prompt.
"""

import functools
from dataclasses import dataclass

import torch

from .prompt_tree import PromptTree


@dataclass(frozen=True)
class TreeTensors:
    """A prompt tree as tensors on a device.

    Attributes:
        token_ids: (T,) int64.
        depths: (T,) int64, distance of each node from the text, 0 for the first.
        lineage: (T, T) bool, True where the node of the column is the node of the row or one of its ancestors.
        readouts: (R,) int64, the last node of each prompt, then of each negated prompt.
    """

    token_ids: torch.Tensor
    depths: torch.Tensor
    lineage: torch.Tensor
    readouts: torch.Tensor


def tree_tensors(tree: PromptTree, device: torch.device) -> TreeTensors:
    """The tensors of a tree on a device.

    They are made once per tree and device. While a graph is traced they are made anew: cached tensors must not enter it.
    """
    make = _tree_tensors.__wrapped__ if torch.compiler.is_compiling() else _tree_tensors
    return make(tree, device)


@functools.lru_cache(maxsize=128)
def _tree_tensors(tree: PromptTree, device: torch.device) -> TreeTensors:
    with torch.inference_mode(False):  # tensors of inference mode could not be used in training
        return TreeTensors(
            token_ids=torch.tensor(tree.token_ids, dtype=torch.long, device=device),
            depths=torch.tensor(tree.depths, dtype=torch.long, device=device),
            lineage=torch.tensor(tree.lineage, dtype=torch.bool, device=device).view(len(tree), len(tree)),
            readouts=torch.tensor([*tree.readouts, *tree.negated_readouts], dtype=torch.long, device=device),
        )


class PromptLayout:
    """Positions and attention masks of a batch of texts, each followed by a prompt tree. Computed once per batch.

    Args:
        attention_mask: (B, N), 1 for text and 0 for padding on either side; a text may be empty.
        tree: T nodes; may be empty.

    Attributes:
        tree: the tree.
        nodes: its tensors, on the device of `attention_mask`.
        positions: (B, N + T) int64 rotary positions.
    """

    def __init__(self, attention_mask: torch.Tensor, tree: PromptTree):
        self.attention_mask, self.tree = attention_mask, tree
        self.nodes = tree_tensors(tree, attention_mask.device)
        self.positions = prompt_position_ids(attention_mask, tree)
        self._allowed: dict[tuple[int | None, bool], torch.Tensor] = {}
        self._masks: dict = {}

    def allowed(self, window: int | None, both_ways: bool = False) -> torch.Tensor:
        """(B, 1, N + T, N + T) bool, True where the row attends to the column, as `prompt_attention_mask` returns it."""
        key = window, both_ways
        if key not in self._allowed:
            self._allowed[key] = prompt_attention_mask(self.attention_mask, self.tree, window, both_ways)
        return self._allowed[key]

    def mask(self, window: int | None, implementation: str, dtype: torch.dtype, both_ways: bool = False):
        """The mask `allowed(window, both_ways)` in the form that an attention implementation reads."""
        key = window, implementation, dtype, both_ways
        if key not in self._masks:
            self._masks[key] = mask_for_implementation(self.allowed(window, both_ways), implementation, dtype)
        return self._masks[key]


def prompt_position_ids(attention_mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
    """Rotary positions of text and tree.

    Args:
        attention_mask: (B, N), 1 for text and 0 for padding on either side; a text may be empty.
        tree: T nodes; may be empty.

    Returns:
        (B, N + T) int64. Padding before the text has position 0, padding behind it that of the last text token.
    """
    text = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # (B, N)
    lengths = attention_mask.long().sum(dim=1, keepdim=True)  # (B, 1)
    return torch.cat([text, lengths + tree_tensors(tree, attention_mask.device).depths], dim=1)  # (B, N + T)


def prompt_attention_mask(
    attention_mask: torch.Tensor, tree: PromptTree, window: int | None = None, both_ways: bool = False
) -> torch.Tensor:
    """Which columns each token attends to.

    Args:
        attention_mask: (B, N) as in `prompt_position_ids`.
        tree: T nodes; may be empty.
        window: sliding window in positions: a token attends only to tokens fewer than `window` positions away. None: no window.
        both_ways: tokens of the text also attend to later tokens of the text. A window then has its width on either side.

    Returns:
        (B, 1, N + T, N + T) bool, True where the row attends to the column. Every token attends to itself; padding attends to
        nothing else.
    """
    B, N = attention_mask.shape
    T, device = len(tree), attention_mask.device
    is_text = attention_mask.bool()  # (B, N)

    mask = torch.zeros(B, N + T, N + T, dtype=torch.bool, device=device)
    mask[:, :N, :N] = is_text[:, None, :] & is_text[:, :, None]  # text: to text
    if not both_ways:
        mask[:, :N, :N] &= torch.ones(N, N, dtype=torch.bool, device=device).tril()  # and only to what stands before
    mask[:, N:, :N] = is_text[:, None, :]  # prompts: to the text
    mask[:, N:, N:] = tree_tensors(tree, device).lineage  # and to their ancestors, never to another prompt
    if window is not None:
        positions = prompt_position_ids(attention_mask, tree)  # (B, N + T)
        mask &= (positions[:, :, None] - positions[:, None, :]).abs() < window
    mask |= torch.eye(N + T, dtype=torch.bool, device=device)  # padding: to itself, so that no softmax is over nothing
    return mask[:, None]  # (B, 1, N + T, N + T)


def mask_for_implementation(mask: torch.Tensor, implementation: str, dtype: torch.dtype):
    """Convert a boolean mask to the form that an attention implementation reads.

    sdpa takes booleans. eager adds its mask to the scores, where booleans would give wrong results without an error.
    flex_attention takes a BlockMask. Flash attention cannot express a prompt-wise mask and is refused.

    Args:
        mask: (B, 1, Q, L) bool, True where row q attends to column l.
        implementation: "sdpa", "eager" or "flex_attention".
        dtype: of the hidden states.

    Returns:
        For sdpa `mask` itself. For eager (B, 1, Q, L) in `dtype`: 0 where the row attends to the column, else the lowest finite
        value. For flex_attention a `BlockMask`.

    Raises:
        ValueError: the implementation cannot express the mask, or flex_attention would run on a CPU.
    """
    if implementation == "sdpa":
        return mask
    if implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    if implementation == "flex_attention":
        if mask.device.type == "cpu":
            raise ValueError(
                "attn_implementation='flex_attention' is for GPUs: on CPUs with AMX, kernels that torch compiles gave wrong "
                "numbers. Use 'sdpa' or 'eager' on a CPU."
            )
        from torch.nn.attention.flex_attention import create_block_mask

        B, _, Q, L = mask.shape
        return create_block_mask(lambda b, h, q, k: mask[b, 0, q, k], B, None, Q, L, device=mask.device)
    raise ValueError(
        f"attn_implementation={implementation!r} cannot express prompt-wise attention. "
        "Use 'sdpa', 'eager' or 'flex_attention' for the text tower, e.g. attn_implementation={'text_config': 'sdpa'}."
    )
