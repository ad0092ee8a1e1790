"""What the image side adds to a vision encoder: the attention pooling over its tokens, and the projection to segments.

A video is pooled in the same way, over the tokens of all its frames (paper, section 1.4).
"""

import torch
import torch.nn.functional as F
from torch import nn


class AttentionPooling(nn.Module):
    """Q learned pooling queries attend to the vision tokens; each gives one vector (paper, section 1.4).

    A layer norm followed by multi-head attention. One pooling query per prompt is ours.

    Args:
        num_queries: Q.
        token_dim: C, channels of a vision token.
        width: channels of a pooling query and of a pooled vector.
        heads: attention heads; a divisor of `width`.
    """

    def __init__(self, num_queries: int, token_dim: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(token_dim)
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.key = nn.Linear(token_dim, width, bias=False)
        self.value = nn.Linear(token_dim, width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Pool the vision tokens of B images or videos.

        Args:
            tokens: (B, N, C).
            mask: (B, N) bool, False for the tokens of padding frames. None: all tokens count.

        Returns:
            (B, Q, width) pooled vectors and (B, Q, heads, N) attention weights.
        """
        tokens = tokens.to(self.queries)  # the encoder may have another dtype or device
        attend = self._attend_folded if is_plain(self.norm, self.key, self.value) else self._attend
        pooled, weights = attend(tokens, mask)  # (B, Q, width), (B, Q, heads, N)
        pooled = self.output(pooled)
        return pooled + self.mlp(self.mlp_norm(pooled)), weights

    def _attend(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention by its definition. Every weight is used through its module, whatever has been wrapped around that."""
        x = self.norm(tokens)  # (B, N, C)
        query = self.queries.view(len(self.queries), self.heads, -1)  # (Q, h, d)
        key, value = (project(x).unflatten(-1, query.shape[1:]) for project in (self.key, self.value))  # (B, N, h, d)
        weights = _softmax(torch.einsum("qhd,bnhd->bqhn", query, key) / query.shape[-1] ** 0.5, mask)
        weights = weights.to(x.dtype)  # (B, Q, h, N)
        return torch.einsum("bqhn,bnhd->bqhd", weights, value).flatten(2), weights

    def _attend_folded(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The result of `_attend` at a small part of its cost.

        * The pooling queries do not depend on the image, so keys and values are not computed per token. The score is
          q . (W_k x) = (W_k^T q) . x, and W_v is applied after the weighted mean of x.
        * The scale g and shift b of the layer norm, x = g n + b, are applied to the weights: the mean of x is g (mean of n) +
          b. In the scores b adds the same number for all tokens, which the softmax cancels. A bias of W_k would cancel too, so
          W_k has none.
        * The tokens of a frozen encoder then need no gradient.
        """
        n = F.layer_norm(tokens, self.norm.normalized_shape, eps=self.norm.eps)  # (B, N, C)
        query = self.queries.view(len(self.queries), self.heads, -1)  # (Q, h, d)
        key = self.key.weight.view(*query.shape[1:], -1)  # (h, d, C)
        probe = torch.einsum("qhd,hdc->qhc", query, key) / query.shape[-1] ** 0.5  # (Q, h, C)
        weights = _softmax(torch.einsum("bnc,qhc->bqhn", n, probe * self.norm.weight), mask).to(n.dtype)  # (B, Q, h, N)
        seen = torch.einsum("bqhn,bnc->bqhc", weights, n)  # (B, Q, h, C)
        value = (self.value.weight * self.norm.weight).view(*query.shape[1:], -1)  # (h, d, C)
        pooled = torch.einsum("bqhc,hdc->bqhd", seen, value).flatten(2)  # (B, Q, width)
        return pooled + self.value(self.norm.bias), weights


def _softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, Q, h, N) scores -> float32 weights, 0 for the tokens at which the mask (B, N) is False."""
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
    return scores.float().softmax(dim=-1)


def is_plain(*modules: nn.Module) -> bool:
    """Whether modules compute what their weights say, so that the weights may be used without calling the modules.

    They do not if an adapter or a quantised layer has taken their place, if a weight is quantised, sharded or offloaded, or if
    a hook or another forward has been put on one.

    Args:
        modules: that are `nn.Linear` or `nn.LayerNorm` in the untouched model.
    """
    return all(
        type(module) in (nn.Linear, nn.LayerNorm)
        and "forward" not in module.__dict__  # accelerate replaces it
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
        and not any(weight.is_meta or hasattr(weight, "__tensor_flatten__") for weight in module.parameters())
        for module in modules
    )


class SegmentProjection(nn.Module):
    """Projects Q vectors to the Q segments of an embedding, each vector with a matrix of its own.

    Args:
        num_segments: Q.
        input_dim: C, channels of a vector.
        projection_dim: D, dimensions of the embedding.
        shared: use one matrix for all segments.
    """

    def __init__(self, num_segments: int, input_dim: int, projection_dim: int, shared: bool = False):
        super().__init__()
        projections = 1 if shared else num_segments
        self.weight = nn.Parameter(torch.empty(projections, input_dim, projection_dim // num_segments))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, m, C) -> (B, m, D / Q): the first m segments, from the first m vectors."""
        # A shared matrix, (1, C, D / Q), is expanded to any number of segments.
        weight = self.weight[: vectors.shape[1]].expand(vectors.shape[1], -1, -1)  # (m, C, D / Q)
        return torch.einsum("bqc,qcd->bqd", vectors.to(weight), weight)  # the tower may have another dtype or device
