"""The slow, plain path that the attention pooling is compared with: keys and values of every token, torch's own attention."""

import torch
import torch.nn.functional as F

from modeling_mpclip.image_tower import AttentionPooling


def multi_head_attention(pooling: AttentionPooling, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, N, C) tokens, mask (B, N) -> (B, Q, width) pooled vectors. Every part of the pooling is called as a module."""
    x = pooling.norm(tokens)
    heads = lambda y: y.unflatten(-1, (pooling.heads, -1)).transpose(1, 2)  # noqa: E731
    queries = heads(pooling.queries.expand(len(tokens), -1, -1))
    keys, values = heads(pooling.key(x)), heads(pooling.value(x))
    mask = None if mask is None else mask[:, None, None]
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)
    out = pooling.output(out)
    return out + pooling.mlp(pooling.mlp_norm(out))
