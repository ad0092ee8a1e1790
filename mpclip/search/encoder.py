"""A checkpoint as an encoder of pictures and of queries."""

from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

from modeling_mpclip.segments import assembled, checked_weights
from mpclip.encoding.fingerprint import model_fingerprint

QUERIES_AT_ONCE = 64


class Encoder:
    """
    Args:
        name: folder or Hub id of a checkpoint; the Python files in it are run.
        dtype: of the weights, "float32" or "bfloat16"; embeddings are normalised in fp32 all the same.
        device: by default the GPU if there is one.

    Attributes:
        aspects: K, into how many equal segments an embedding falls; 1 for checkpoints without prompts.
    """

    def __init__(self, name: str, dtype: str = "float32", device: str | None = None):
        self.name, self.dtype = _absolute(name), dtype
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModel.from_pretrained(name, trust_remote_code=True, dtype=getattr(torch, dtype))
        if getattr(model.config, "text_only", False):
            raise ValueError(f"{name} is a text-only checkpoint: it embeds no pictures. Give the model it was taken from")
        self.model = model.to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        self.aspects: int = getattr(model.config, "num_prompts", 1)

    def fingerprint(self) -> str:
        """SHA-256 of what embeddings of pictures and texts depend on: weights, config, how pictures are prepared."""
        return model_fingerprint(self.name, self.model)

    @torch.inference_mode()
    def embed_pictures(self, pictures: Sequence[PIL.Image.Image]) -> Tensor:
        """(B, D) fp32 on the CPU, L2-normalised."""
        pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.device, self.model.dtype)  # (B, C, H, W)
        return normalize(self.model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1).cpu()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) fp32 on the CPU, L2-normalised."""
        parts = []
        for start in range(0, len(texts), QUERIES_AT_ONCE):
            batch = list(texts[start : start + QUERIES_AT_ONCE])
            inputs = self.processor(text=batch, padding=True, truncation=True, return_tensors="pt")
            ids, mask = inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device)  # (B, N)
            embeds = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output  # (B, D)
            parts.append(normalize(embeds.float(), dim=-1).cpu())
        return torch.cat(parts)

    def embed_queries(
        self,
        texts: Sequence[str] = (),
        pictures: Sequence[PIL.Image.Image] = (),
        exclude: Sequence[str] = (),
        weights: Sequence[float] | None = None,
    ) -> Tensor:
        """What an inner-product index is searched with.

        Args:
            texts: Q queries.
            pictures: with texts, part of each query: the mean of the normalised embeddings of the text and of every picture,
                normalised again.
                Without texts each picture is a query of its own.
            exclude: texts that no query shall be about, by the model's own definition (`segments.excluding`).
            weights: K aspect weights. They multiply the segments of the query alone, after everything else: the inner
                product with a picture is then sum_k w_k v_k.t_k, so the index need not know of them. Norms are no longer 1.

        Returns:
            (Q, D) fp32 on the CPU.

        Raises:
            ValueError: no query, an empty exclusion, or not K finite weights.
        """
        if not texts and not pictures:
            raise ValueError("no query: give a text, a picture, or both")
        if not all(text.strip() for text in exclude):
            raise ValueError(f"exclude {list(exclude)}: an empty text names nothing; leave it out")
        K = self.aspects
        factors = None if weights is None else checked_weights(weights, K)  # (K,)
        queries = self.embed_pictures(pictures) if pictures else torch.empty(0)  # (P, D)
        if texts:
            shared = queries.sum(dim=0) if pictures else 0  # (D,)
            queries = self.embed_texts(texts) + shared  # (Q, D) the direction of the mean; `assembled` normalises
        segments = queries.unflatten(1, (K, -1))  # (Q, K, D/K)
        excluded = self.embed_texts(exclude).unflatten(1, (K, -1)) if exclude else None  # (E, K, D/K)
        return assembled(segments, factors, excluded)


def _absolute(name: str) -> str:
    """A folder's full path, so that an index finds its model from anywhere; a Hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
