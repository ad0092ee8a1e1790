"""From pixels to one embedding: a vision encoder's tokens, and the pooling that answers the prompts.

Video is the same pooling over the tokens of all frames (paper, section 1.4).
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel


def build_vision_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A randomly initialised vision encoder without the pooling head that this model replaces with its own."""
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"No transformers model for a vision config of type {config.model_type!r}.")
    return MODEL_MAPPING[type(config)](config, **pooler_arguments(config))


def pooler_arguments(config: PreTrainedConfig) -> dict:
    """What keeps a model class from building its own pooler, whose weights would get no gradient.

    SigLIP is told by its config (set here), ViT by an argument; the others' poolers have no weights of their own to train.
    """
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = False
    return {"add_pooling_layer": False} if config.model_type == "vit" else {}


def has_class_token(vision_model: PreTrainedModel) -> bool:
    return any(name.endswith(("cls_token", "class_embedding")) for name, _ in vision_model.named_parameters())


def vision_tokens(last_hidden_state: torch.Tensor) -> torch.Tensor:
    """An encoder's output as a sequence of tokens.

    A transformer's tokens know their place and stay as they are: (B, N, C). A CNN's feature map (B, C, h, w) becomes h * w
    tokens, normalised over channels, plus a fixed two-dimensional sinusoidal position (ours): without it a pooling
    cannot tell left from right. Nothing here is learned, so the result of a frozen encoder can be cached.
    """
    if last_hidden_state.dim() == 3:
        return last_hidden_state
    B, C, h, w = last_hidden_state.shape
    tokens = F.layer_norm(last_hidden_state.flatten(2).transpose(1, 2), (C,))  # (B, h*w, C)
    return tokens + sinusoidal_grid(h, w, C).to(tokens)


def sinusoidal_grid(h: int, w: int, channels: int) -> torch.Tensor:
    """(h * w, channels) float32: sines and cosines of the row in one half of the channels, of the column in the other.

    Positions count from -0.5 to 0.5 across the picture, so that a map of another resolution means the same places;
    frequencies go from half a turn to 16 turns across it.
    """
    quarter = channels // 4
    frequency = torch.pi * 2 ** torch.linspace(0, 5, quarter)  # (C/4,) radians per picture
    rows, columns = ((torch.arange(n) + 0.5) / n - 0.5 for n in (h, w))

    def waves(position: torch.Tensor) -> torch.Tensor:
        angle = position[:, None] * frequency  # (n, C/4)
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (n, C/2)

    row, column = waves(rows)[:, None].expand(h, w, -1), waves(columns)[None].expand(h, w, -1)
    grid = torch.cat([row, column], dim=-1).reshape(h * w, 4 * quarter)
    return F.pad(grid, (0, channels - 4 * quarter))


class AttentionPooling(nn.Module):
    """Q learned queries attend to the image tokens; each gives one vector (paper, section 1.4; a query per prompt is ours).

    The queries are constants, so keys and values never have to be computed per token: q . (W_k x) = (W_k^T q) . x, and the
    weighted mean is taken over x before W_v. The norm's scale g and shift b, x = g n + b, go into the weights in the same way:
    the mean of x is g (mean of n) + b, and what b adds to all scores of a query, the softmax cancels. Tokens of a frozen
    encoder then need no gradient at all. The function is that of a layer norm and ordinary multi-head attention (W_k has no
    bias, which the softmax would cancel too) at a small part of its cost.
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
        """
        Args:
            tokens: (B, N, C).
            mask: (B, N) bool, False for tokens of padding frames.

        Returns:
            (B, Q, width) pooled vectors and (B, Q, heads, N) attention weights.
        """
        Q, h = len(self.queries), self.heads
        n = F.layer_norm(tokens, self.norm.normalized_shape, eps=self.norm.eps)  # (B, N, C)
        query = self.queries.view(Q, h, -1)  # (Q, h, d)
        key = self.key.weight.view(h, query.shape[-1], -1)  # (h, d, C)
        probe = torch.einsum("qhd,hdc->qhc", query, key) / query.shape[-1] ** 0.5  # (Q, h, C)
        scores = torch.einsum("bnc,qhc->bqhn", n, probe * self.norm.weight)  # (B, Q, h, N)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        weights = scores.float().softmax(dim=-1).to(n.dtype)  # (B, Q, h, N)
        seen = torch.einsum("bqhn,bnc->bqhc", weights, n)  # (B, Q, h, C)
        value = (self.value.weight * self.norm.weight).view(h, query.shape[-1], -1)  # (h, d, C)
        pooled = torch.einsum("bqhc,hdc->bqhd", seen, value).flatten(2)  # (B, Q, width)
        pooled = pooled + self.value(self.norm.bias)
        pooled = self.output(pooled)
        return pooled + self.mlp(self.mlp_norm(pooled)), weights


class SegmentProjection(nn.Module):
    """Q vectors -> one embedding of Q segments, each by a projection of its own: (B, Q, C) -> (B, Q, D / Q).

    Of fewer vectors, the first segments: (B, m, C) -> (B, m, D / Q). With `shared` one projection serves all segments.
    """

    def __init__(self, num_segments: int, input_dim: int, projection_dim: int, shared: bool = False):
        super().__init__()
        projections = 1 if shared else num_segments
        self.weight = nn.Parameter(torch.empty(projections, input_dim, projection_dim // num_segments))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        # The weight of a shared projection, (1, C, D / Q), stands for that of any number of segments.
        weight = self.weight[: vectors.shape[1]].expand(vectors.shape[1], -1, -1)  # (m, C, D / Q)
        return torch.einsum("bqc,qcd->bqd", vectors, weight)
