"""Encoders: texts, pictures and clips -> vectors that are compared by inner product.

Every encoder returns (B, D) float32 embeddings on the CPU, L2-normalised. The model computes in its own dtype on its own
device. The normalisation is done in float32: in bfloat16 the norm would be off by 0.003.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import normalize

from modeling_mpclip.pictures import rgb_pictures

from .batches import by_length, in_batches
from .cache import tokenizer_hash
from .fingerprint import model_fingerprint

Picture = PIL.Image.Image


def text_only(name: str) -> str:
    """The message of the error for a model that is asked for embeddings of pictures and has none."""
    return (
        f"{name} embeds texts alone, and pictures are needed. Give a checkpoint with its image side (the card of a text-only "
        "export names the one it was made from), or another model for texts and pictures, such as CLIP."
    )


class Encoder(ABC):
    """A model together with the preparation of its inputs.

    Attributes:
        name: the folder or Hub id from which the model was loaded, or another name.
        segments: K, the number of equal segments of an embedding that stand for a prompt each; 1 for models without prompts,
            and for those whose segments all read all prompts (joint_projection).
        embeds_images: whether the model embeds pictures too, and not only texts.
        device: torch device of the model.
        model, processor: what the encoder runs, if it has been loaded from a checkpoint.
    """

    name: str
    segments: int = 1
    embeds_images: bool = True
    device: torch.device

    def texts(self, texts: Sequence[str], batch_size: int = 64, **options) -> Tensor:
        """(T, D) embeddings of texts. Equal texts are embedded once. `options` are those of `in_batches`."""
        distinct = by_length(texts)
        place = {text: i for i, text in enumerate(distinct)}
        embeds = in_batches(self.embed_texts, distinct, batch_size, **{"title": "Embedding texts", **options})
        return embeds[[place[text] for text in texts]]

    def images(self, images: Sequence, batch_size: int = 64, **options) -> Tensor:
        """(I, D) embeddings of pictures, which become RGB by `pictures.to_rgb`. `options` are those of `in_batches`.

        Raises:
            ValueError: the model embeds texts alone.
        """
        self.refuse_text_only()
        return in_batches(self.embed_images, images, batch_size, **{"title": "Embedding images", **options})

    def clips(self, clips: Sequence[Sequence[Picture]], batch_size: int = 8, **options) -> Tensor:
        """(V, D) embeddings of clips, each a list of pictures. `options` are those of `in_batches`; errors as in `images`."""
        self.refuse_text_only()
        return in_batches(self.embed_clips, clips, batch_size, **{"title": "Embedding clips", **options})

    def refuse_text_only(self) -> None:
        """Raise ValueError if the model embeds texts alone. For work that will need pictures."""
        if not self.embeds_images:
            raise ValueError(text_only(self.name))

    def fingerprint(self) -> str:
        """SHA-256 of everything that embeddings depend on: weights, config and image processor."""
        return model_fingerprint(self.name, self.model)

    def preparation(self) -> str:
        """What embeddings depend on beside the fingerprint and the code: how texts become tokens. For keys of caches."""
        return tokenizer_hash(getattr(self.processor, "tokenizer", self.processor))  # a text-only model's is the tokenizer

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """One batch of texts -> (B, D)."""

    @abstractmethod
    def embed_images(self, images: Sequence) -> Tensor:
        """One batch of pictures -> (B, D)."""

    @torch.inference_mode()
    def embed_clips(self, clips: Sequence[Sequence[Picture]]) -> Tensor:
        """One batch of clips -> (B, D): the normalised mean of the frames' embeddings. For models without video input."""
        frames = self.embed_images([frame for clip in clips for frame in clip])  # (sum of lengths, D)
        parts = frames.split([len(clip) for clip in clips])
        return normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)


class ModelEncoder(Encoder):
    """An [`MPCLIPModel`] with its processor. The model can also be in training.

    Args:
        model: the model, or its `PeftModel`, on its device and in evaluation mode.
        processor: its [`MPCLIPProcessor`]; for a text-only model its tokenizer.
        name: folder or Hub id of the model, for `fingerprint`.
        text_inputs: texts -> arguments of the model's forward, such as cached states. Default: the processor.
        image_inputs: items of `images` -> arguments of the model's forward. Default: the processor.
        context: gives a context manager for every forward pass, such as the mixed precision of a Trainer.
    """

    def __init__(
        self,
        model,
        processor,
        name: str = "model",
        text_inputs: Callable[[Sequence[str]], dict[str, Tensor]] | None = None,
        image_inputs: Callable[[Sequence[Any]], dict[str, Tensor]] | None = None,
        context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self.model, self.processor, self.name, self.context = model, processor, name, context
        self.segments = 1 if model.config.joint_projection else model.config.num_prompts
        self.embeds_images = not model.config.text_only
        self.device = next(model.parameters()).device
        self._text_inputs = text_inputs or self._tokenized
        self._image_inputs = image_inputs or self._processed

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self._forward(self._text_inputs(list(texts))).text_embeds.cpu()  # (B, D)

    def embed_images(self, images: Sequence) -> Tensor:
        return self._forward(self._image_inputs(list(images))).image_embeds.cpu()  # (B, D)

    def embed_clips(self, clips: Sequence[Sequence[Picture]]) -> Tensor:
        """One batch of clips -> (B, D): the model's own pooling over the tokens of all frames."""
        return self._forward(self.processor(videos=[list(clip) for clip in clips])).image_embeds.cpu()  # (B, D)

    @torch.inference_mode()
    def _forward(self, inputs: dict[str, Tensor]):
        with self.context():
            return self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})

    def _tokenized(self, texts: list[str]) -> dict[str, Tensor]:
        # The processor of a text-only model is a tokenizer.
        tokenize = getattr(self.processor, "tokenizer", self.processor)
        batch = tokenize(texts, padding=True, truncation=True, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}  # (B, N) each

    def _processed(self, images: list) -> dict[str, Tensor]:
        return dict(self.processor(images=images))  # pixel_values (B, C, H, W)


class PeerEncoder(Encoder):
    """Another dual encoder of transformers, such as `CLIPModel`, `SiglipModel` or `Siglip2Model`.

    Args:
        model: has the methods `get_text_features` and `get_image_features`. On its device and in evaluation mode.
        processor: its processor.
        name: folder or Hub id of the model, for `fingerprint`.
        text_options: for the processor. SigLIP needs every text padded to the length that it was trained with.
    """

    def __init__(self, model, processor, name: str = "model", text_options: dict | None = None):
        self.model, self.processor, self.name = model, processor, name
        self.device = model.device
        self.text_options = {"padding": True, "truncation": True, **(text_options or {})}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self._features(self.model.get_text_features, text=list(texts), **self.text_options)

    def embed_images(self, images: Sequence) -> Tensor:
        return self._features(self.model.get_image_features, images=rgb_pictures(images))

    @torch.inference_mode()
    def _features(self, embed: Callable, **inputs) -> Tensor:
        batch = self.processor(return_tensors="pt", **inputs)
        batch = {
            name: tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.items()
        }
        return normalize(embed(**batch).pooler_output.float(), dim=-1).cpu()  # (B, D)


class SentenceEncoder(Encoder):
    """Any sentence-transformers model. Only some of them can embed pictures.

    Args:
        model: a `SentenceTransformer`.
        name: folder or Hub id of the model, for `fingerprint`.
    """

    def __init__(self, model, name: str = "model"):
        self.model, self.name, self.device = model, name, model.device
        self.embeds_images = model.supports("image")

    def preparation(self) -> str:
        """The tokenizer, and the model's modules with their settings, such as the pooling and the longest text."""
        return f"{tokenizer_hash(getattr(self.model, 'tokenizer', None))} {self.model}"

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self._encode(list(texts))

    def embed_images(self, images: Sequence) -> Tensor:
        return self._encode(rgb_pictures(images))

    def _encode(self, inputs: list) -> Tensor:
        embeds = self.model.encode(inputs, batch_size=len(inputs), convert_to_tensor=True, show_progress_bar=False)
        return normalize(embeds.float(), dim=-1).cpu()  # (B, D)
