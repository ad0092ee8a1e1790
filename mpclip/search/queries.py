"""Texts and pictures, with what they exclude and how they weight the segments -> the vectors an index is searched with."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import PIL.Image
import torch
from torch import Tensor

from modeling_mpclip.segments import assembled, checked_weights, refuse_excluding_itself
from mpclip.data.forms.text_files import read_text
from mpclip.encoding import load_encoder
from mpclip.files import read_json
from mpclip.search.weights import aspect_names


class QueryEncoder:
    """A checkpoint as the encoder of an index: its pictures and its queries.

    Args:
        name: folder or Hub id of a checkpoint, ours or a peer's; the Python files in it are run.
        dtype: of the weights, "float32" or "bfloat16"; embeddings are normalised in float32 all the same.
        device: by default the GPU if there is one.

    Attributes:
        encoder: the [`Encoder`] that embeds.
        aspects: K, into how many equal segments an embedding falls; 1 for models without prompts.
        names: of the aspects; see weights.py.

    Raises:
        ValueError: the checkpoint embeds no pictures.
    """

    def __init__(self, name: str, dtype: str = "float32", device: str | None = None):
        self.name, self.dtype = _absolute(name), dtype
        self.encoder = load_encoder(name, dtype, device)
        config = getattr(self.encoder.model, "config", None)
        if getattr(config, "text_only", False):
            raise ValueError(f"{name} is a text-only checkpoint: it embeds no pictures. Give the model it was taken from")
        self.aspects = self.encoder.segments
        templates = getattr(config, "templates", None) or []
        if len(templates) != self.aspects:  # such as that of a peer, which has none
            templates = [f"[APT-{k}]" for k in range(1, self.aspects + 1)]
        self.names = aspect_names(templates, initial_words(name))

    def fingerprint(self) -> str:
        """SHA-256 of what embeddings depend on; see `mpclip.encoding.fingerprint`."""
        return self.encoder.fingerprint()

    def embed_pictures(self, pictures: Sequence[PIL.Image.Image]) -> Tensor:
        """(B, D) float32 on the CPU, L2-normalised."""
        return self.encoder.images(pictures, quiet=True)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) float32 on the CPU, L2-normalised."""
        return self.encoder.texts(texts, quiet=True)

    def embed_queries(
        self,
        texts: Sequence[str] = (),
        pictures: Sequence[PIL.Image.Image] = (),
        exclude: Sequence[str] = (),
        weights: Sequence[float] | None = None,
    ) -> Tensor:
        """The vectors of some queries.

        Args:
            texts: Q queries.
            pictures: with texts, part of each query: the mean of the normalised embeddings of the text and of every picture,
                normalised again. Without texts each picture is a query of its own.
            exclude: texts that no query shall be about; see `segments.excluding`.
            weights: K aspect weights. They multiply the segments of the query alone, after everything else: the inner
                product with a picture is then sum_k w_k v_k.t_k, so the index need not know of them. Norms are no longer 1.

        Returns:
            (Q, D) float32 on the CPU.

        Raises:
            ValueError: no query, an empty exclusion or one that is also a query, or not K finite weights.
        """
        if not texts and not pictures:
            raise ValueError("no query: give a text, a picture, or both")
        if not all(text.strip() for text in exclude):
            raise ValueError(f"exclude {list(exclude)}: an empty text names nothing; leave it out")
        if not pictures:  # with pictures, the rest of the query is what they show besides
            refuse_excluding_itself(texts, exclude)
        K = self.aspects
        factors = None if weights is None else checked_weights(weights, K)  # (K,)
        queries = self.embed_pictures(pictures) if pictures else torch.empty(0)  # (P, D)
        if texts:
            shared = queries.sum(dim=0) if pictures else 0  # (D,)
            queries = self.embed_texts(texts) + shared  # (Q, D) the direction of the mean; `assembled` normalises
        segments = queries.unflatten(1, (K, -1))  # (Q, K, D/K)
        excluded = self.embed_texts(exclude).unflatten(1, (K, -1)) if exclude else None  # (E, K, D/K)
        return assembled(segments, factors, excluded)


def read_queries(file: Path) -> list[str]:
    """The queries in a file, one per line; blank lines are none. UTF-8 or UTF-16, as editors write them.

    Raises:
        ValueError: another encoding.
    """
    lines = [line.strip().strip("\ufeff").strip() for line in re.split("\r\n|\r|\n", read_text(file))]
    return [line for line in lines if line]


def initial_words(name: str) -> list[str] | None:
    """The words that a checkpoint's adaptive tokens were initialised from, if the record of its training is on this machine."""
    file = Path(name, "training.json")
    if not Path(name).is_dir():
        cached = huggingface_hub.try_to_load_from_cache(name, "training.json")
        file = Path(cached) if isinstance(cached, str) else file
    return read_json(file).get("ModelArguments", {}).get("adaptive_init")


def _absolute(name: str) -> str:
    """A folder's full path, so that an index finds its model from anywhere; a Hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
