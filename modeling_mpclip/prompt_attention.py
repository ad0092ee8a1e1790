"""Who sees whom: positions and prompt-wise attention masks for a batch of texts followed by one prompt tree.

Columns of a row: N text tokens (padded left or right), then the T nodes of the tree, at the same columns for all texts.
A prompt token sees the text, its ancestors and itself; its position counts on from the text's last token. One pass over
text and tree is therefore exactly K passes over "text + prompt k" (paper section 1.2; the tree is ours).

Why the masks are built here and not by `transformers.masking_utils`: a sliding window must be measured in positions,
which restart with every prompt, and the library measures it in columns.
"""

import torch

from .prompt_tree import PromptTree


def prompt_position_ids(attention_mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
    """Rotary positions of text and tree.

    Args:
        attention_mask: (B, N), 1 for text and 0 for padding on either side; a text may be empty.

    Returns:
        (B, N + T) int64; padding has position 0.
    """
    text = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # (B, N)
    depths = torch.tensor(tree.depths, dtype=torch.long, device=attention_mask.device)  # (T,)
    lengths = attention_mask.long().sum(dim=1, keepdim=True)  # (B, 1)
    return torch.cat([text, lengths + depths], dim=1)  # (B, N + T)


def prompt_attention_mask(attention_mask: torch.Tensor, tree: PromptTree, window: int | None = None) -> torch.Tensor:
    """Which columns each token attends to.

    Args:
        attention_mask: (B, N) as in `prompt_position_ids`.
        window: sliding window in positions: a token sees those fewer than `window` positions before it; None sees all.

    Returns:
        (B, 1, N + T, N + T) bool, True where the row attends to the column. Every token sees itself, padding nothing else.
    """
    B, N = attention_mask.shape
    T, device = len(tree), attention_mask.device
    is_text = attention_mask.bool()  # (B, N)
    lineage = torch.tensor(tree.lineage, dtype=torch.bool, device=device).view(T, T)
    causal = torch.ones(N, N, dtype=torch.bool, device=device).tril()

    mask = torch.zeros(B, N + T, N + T, dtype=torch.bool, device=device)
    mask[:, :N, :N] = causal & is_text[:, None, :] & is_text[:, :, None]  # text sees earlier text
    mask[:, N:, :N] = is_text[:, None, :]  # prompts see the text
    mask[:, N:, N:] = lineage  # and their ancestors, never another prompt
    if window is not None:
        positions = prompt_position_ids(attention_mask, tree)  # (B, N + T)
        mask &= positions[:, :, None] - positions[:, None, :] < window
    mask |= torch.eye(N + T, dtype=torch.bool, device=device)  # padding sees itself: no row without a key
    return mask[:, None]  # (B, 1, N + T, N + T)


def mask_for_implementation(mask: torch.Tensor, implementation: str, dtype: torch.dtype):
    """The same mask in the form that an attention implementation reads.

    sdpa takes the booleans; eager *adds* its mask to the scores, so that booleans would be silently wrong there; flex_attention
    takes a BlockMask. Flash attention has no form for it and is refused.

    Args:
        mask: (B, 1, Q, L) bool, True where the query attends to the key.
        dtype: of the hidden states.
    """
    if implementation == "sdpa":
        return mask
    if implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        B, _, Q, L = mask.shape
        return create_block_mask(lambda b, h, q, k: mask[b, 0, q, k], B, None, Q, L, device=mask.device)
    raise ValueError(
        f"attn_implementation={implementation!r} cannot express prompt-wise attention. "
        "Use 'sdpa', 'eager' or 'flex_attention' for the text tower, e.g. attn_implementation={'text_config': 'sdpa'}."
    )
