"""Loads a checkpoint as an encoder: an MP-CLIP model, a dual encoder of transformers, or a sentence-transformers model."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import is_sentence_transformer_model
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

from modeling_mpclip.source_names import refuse_missing_folder
from mpclip.hardware import best_device

from .encoder import Encoder, ModelEncoder, PeerEncoder, SentenceEncoder, text_only

# Model type -> arguments of the processor of another dual encoder, in addition to padding and truncation.
TEXT_OPTIONS = {"siglip": {"padding": "max_length"}, "siglip2": {"padding": "max_length", "max_length": 64}}


def load_encoder(name: str, dtype: str = "float32", device: str | None = None, **model_kwargs) -> Encoder:
    """Load a checkpoint as an encoder, in evaluation mode.

    The Python files of the checkpoint are run (trust_remote_code=True): load only checkpoints that you trust.

    Args:
        name: folder or Hub id.
        dtype: of the weights: "float32", "bfloat16" or "float16".
        device: torch device. Default: the GPU if there is one.
        model_kwargs: for `from_pretrained`, such as `quantization_config`.

    Raises:
        ValueError: the model is neither a dual encoder nor a sentence-transformers model; or its tokenizer or image processor
            cannot be read.
        OSError: there is no such folder or Hub id.
    """
    refuse_missing_folder(name)
    device = device or best_device()
    kwargs = {"dtype": getattr(torch, dtype), **model_kwargs}
    kind = _model_type(name)
    if kind != "mpclip" and is_sentence_transformer_model(name):
        model = SentenceTransformer(name, device=device, trust_remote_code=True, model_kwargs=kwargs)
        return SentenceEncoder(model.eval(), name)
    model = AutoModel.from_pretrained(name, trust_remote_code=True, **kwargs).to(device).eval()
    if kind == "mpclip":
        opener = AutoTokenizer if model.config.text_only else AutoProcessor
        return ModelEncoder(model, _opened(opener, name, trust_remote_code=True), name)
    _refuse_other_than_dual(name, type(model))
    return PeerEncoder(model, _opened(AutoProcessor, name), name, TEXT_OPTIONS.get(kind))


def refuse_unfit(name: str, pictures: bool = True) -> None:
    """Refuse a checkpoint whose small files already show that it is of no use here. No weights are read.

    Args:
        name: folder or Hub id.
        pictures: whether it must embed pictures too.

    Raises:
        ValueError: the model is neither a dual encoder nor a sentence-transformers model, or it embeds texts alone.
        OSError: there is no such folder or Hub id.
    """
    refuse_missing_folder(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    except (OSError, ValueError):
        return  # sentence-transformers may save it in a subfolder; for all others, loading says what is wrong
    if config.model_type == "mpclip":
        if pictures and config.text_only:
            raise ValueError(text_only(name))
    elif not is_sentence_transformer_model(name) and type(config) in MODEL_MAPPING:
        cls = MODEL_MAPPING[type(config)]
        for one in cls if isinstance(cls, tuple | list) else (cls,):
            _refuse_other_than_dual(name, one)


def _opened(opener: type, name: str, **kwargs):
    """The processor or tokenizer of a checkpoint.

    Raises:
        ValueError: its files cannot be read.
    """
    what = "tokenizer" if opener is AutoTokenizer else "tokenizer or image processor"
    try:
        return opener.from_pretrained(name, **kwargs)
    except Exception as error:  # the parser of tokenizers raises Exception itself; others raise a dozen types
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The {what} of {name} cannot be read ({type(error).__name__}: {reason}). Files such as tokenizer.json, "
            "tokenizer_config.json and processor_config.json are missing or damaged: copy them again from where the checkpoint "
            "was saved."
        ) from error


def _refuse_other_than_dual(name: str, cls: type) -> None:
    if not (hasattr(cls, "get_text_features") and hasattr(cls, "get_image_features")):
        raise ValueError(
            f"{name} is a {cls.__name__}, which does not embed both texts and pictures. Give an MP-CLIP checkpoint, a "
            "dual encoder such as CLIPModel or SiglipModel, or a sentence-transformers model."
        )


def _model_type(name: str) -> str | None:
    """The model type in config.json; None without such a file. sentence-transformers may save it in a subfolder."""
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=True).model_type
    except (OSError, ValueError):
        return None
