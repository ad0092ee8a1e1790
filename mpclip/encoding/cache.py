"""Embeddings on disk: a killed encoding goes on from them, and a later one reads them.

    parts = kept_parts(encoder, "embeddings", batch_size=64, texts=texts)   # None without a folder
    encoder.texts(texts, 64, resume=parts)

A folder of the cache belongs to one key: the weights with their dtype, the model's code, config, tokenizer and image processor,
the versions of torch and transformers, the kind of device, the batch size and the inputs. Each file names its key and the hash
of its content. So a damaged file, or one that belongs elsewhere, is noticed; it is computed again, with a warning.
"""

import hashlib
import inspect
import json
import logging
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpclip.files import aside

if TYPE_CHECKING:
    from .encoder import Encoder

logger = logging.getLogger(__name__)


class Parts:
    """Embeddings of finished batches on disk.

    Args:
        folder: folder for the parts of all encodings.
        key: everything that the embeddings depend on: model, inputs, batch size. Each key has its own parts.
    """

    def __init__(self, folder: str | Path, key: dict):
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder, self.key[:20])
        self.writable = True

    def load(self) -> dict[int, Tensor]:
        """The stored embeddings: index of a batch's first item -> (B, D) float32. A faulty part is deleted with a warning."""
        found: dict[int, Tensor] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                found |= self._read(file)
            except FileNotFoundError:  # another process has found it faulty
                continue
            except (OSError, SafetensorError, ValueError) as error:
                logger.warning("%s is damaged or belongs elsewhere (%s); its embeddings are computed again.", file, error)
                if not isinstance(error, OSError):
                    file.unlink(missing_ok=True)
        return found

    def save(self, batches: dict[int, Tensor]) -> None:
        """Store some batches as one part: index of a batch's first item -> (B, D) float32.

        If the folder cannot be written, a warning says so, and the encoding goes on without a cache.
        """
        if not self.writable:
            return
        named = {str(start): embeds.contiguous() for start, embeds in batches.items()}
        try:
            with aside(self.folder / f"{min(batches):012d}.safetensors") as written:
                save_file(named, written, {"key": self.key, "xxh3": _content(named)})
        except (OSError, SafetensorError) as error:
            self.writable = False
            logger.warning("Embeddings cannot be kept in %s (%s); they are computed without a cache.", self.folder, error)

    def _read(self, file: Path) -> dict[int, Tensor]:
        with safe_open(file, "pt") as part:
            told = part.metadata() or {}
            named = {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118 (it is no dict)
        if told.get("key") != self.key:
            raise ValueError("it is of another model, other data or an older version")
        if told.get("xxh3") != _content(named):
            raise ValueError("its content has changed since it was written")
        return {int(start): embeds for start, embeds in named.items()}


def _content(batches: dict[str, Tensor]) -> str:
    """XXH3 of the names, shapes and values of some batches."""
    digest = xxhash.xxh3_128()
    for name, embeds in sorted(batches.items()):
        digest.update(f"{name} {embeds.dtype} {tuple(embeds.shape)} ".encode())
        digest.update(embeds.numpy())
    return digest.hexdigest()


# Keys -------------------------------------------------------------------------------------------------------------

_keys: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # encoder -> what all its keys share


def kept_parts(encoder: "Encoder", cache: str | Path | None, batch_size: int, **inputs: Any) -> Parts | None:
    """Where the embeddings of some inputs are kept.

    Args:
        encoder: the model. Its weights are hashed at the first call, so they must not change after it.
        cache: folder for the embeddings of all models and data. None: nothing is kept.
        batch_size: inputs per batch. Embeddings differ between batch sizes by rounding.
        inputs: what tells the inputs apart, as JSON values: their hash, or the inputs themselves.

    Returns:
        The parts, for the option `resume` of an encoder. None if nothing is kept. An encoder without a `model`, which has no
        weights to tell it by, is never kept.
    """
    if cache is None or not hasattr(encoder, "model"):
        return None
    if encoder not in _keys:
        _keys[encoder] = {
            "model": encoder.fingerprint(),
            "preparation": encoder.preparation(),
            "code": code_hash(type(encoder.model)),
            "versions": [torch.__version__, transformers.__version__],
            "device": encoder.device.type,
        }
    return Parts(cache, _keys[encoder] | {"batch_size": batch_size} | inputs)


def code_hash(cls: type) -> str:
    """SHA-256 of the Python files in the folder of a class: of a checkpoint's own code, if the class comes from there."""
    digest = hashlib.sha256()
    for file in sorted(Path(inspect.getfile(cls)).parent.glob("*.py")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def tokenizer_hash(tokenizer) -> str:
    """SHA-256 of what a tokenizer makes of texts: vocabulary, rules, special tokens, longest text, side of padding.

    Args:
        tokenizer: of transformers, or None.
    """
    if tokenizer is None:
        return ""
    told: dict[str, Any] = {
        name: getattr(tokenizer, name, None)
        for name in ("model_max_length", "padding_side", "truncation_side", "special_tokens_map")
    }
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # sentence-transformers has both kinds
    if not hasattr(backend, "to_str"):
        told["vocabulary"] = tokenizer.get_vocab()
    else:  # the state of padding and truncation is that of the last call
        told |= {name: part for name, part in json.loads(backend.to_str()).items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
