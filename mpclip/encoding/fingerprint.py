"""Decides whether two checkpoints are the same model, by a hash of the weights or by the dates of the files.

The hash is certain, but reads every weight. The dates take a millisecond, but only show that no file has changed since the hash
was computed. An index of pictures stores both (mpclip/search/integrity.py).
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import torch
import transformers
from safetensors import safe_open
from transformers import ImageProcessingMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from mpclip.files import read_json, stamp

STARTED = time.time_ns()  # earlier than this program can have loaded a checkpoint


def model_fingerprint(name: str, model: PreTrainedModel) -> str:
    """SHA-256 of everything that embeddings depend on: weights, config and image processor (ours).

    Args:
        name: folder or Hub id of the checkpoint, whose config files are read.
        model: the model that was loaded from it. The same weights in another dtype have another fingerprint.

    Returns:
        64 hexadecimal digits. A copy of the checkpoint in another folder has the same fingerprint.
    """
    digest = hashlib.sha256()
    # The config files are hashed, not the config objects: a newer transformers adds new defaults to the objects.
    settings = [
        _lasting(_read(read, name))
        for read in (PretrainedConfig.get_config_dict, ImageProcessingMixin.get_image_processor_dict)
    ]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for key, weight in sorted(model.state_dict().items()):
        _add_weight(digest, key, weight)
    return digest.hexdigest()


def weights_fingerprint(name: str | os.PathLike) -> str | None:
    """SHA-256 of the weights of a checkpoint as they are saved: their names, dtypes, shapes and values (ours).

    Unlike `model_fingerprint` it depends neither on how the model is loaded nor on its config.

    Args:
        name: folder or Hub id. For a Hub id the files in the local cache are used; nothing is downloaded.

    Returns:
        64 hexadecimal digits; None if this machine does not have the safetensors files of a whole model.
    """
    folder = _local_folder(os.fspath(name))
    if folder is None:
        return None
    files = [folder / SAFE_WEIGHTS_NAME]
    if not files[0].is_file():  # as in transformers, a single file hides shards beside it
        files = [folder / shard for shard in set(read_json(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values())]
    if not files or not all(file.is_file() for file in files):
        return None
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        owner = {key: weights for weights in opened for key in weights.keys()}  # noqa: SIM118 (it is no dict)
        for key in sorted(owner):
            _add_weight(digest, key, owner[key].get_tensor(key))
    return digest.hexdigest()


def _add_weight(digest, key: str, weight: torch.Tensor) -> None:
    """Add the name, dtype, shape and values of a weight to a hash; of a quantised weight, those of its parts."""
    if hasattr(weight, "__tensor_flatten__"):
        digest.update(type(weight).__name__.encode())
        for part in sorted(weight.__tensor_flatten__()[0]):
            _add_weight(digest, f"{key}.{part}", getattr(weight, part))
        return
    shape = () if key.startswith("logit_scale.") else tuple(weight.shape)  # as in checkpoints of before: same fingerprint
    digest.update(f"{key} {weight.dtype} {shape}".encode())
    digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def file_stamps(name: str) -> dict[str, list]:
    """Size and date of every file of a checkpoint. If they are equal at two times, so is the fingerprint.

    Args:
        name: folder or Hub id. For a Hub id the files in the local cache are used; nothing is downloaded.

    Returns:
        Full path -> `mpclip.files.stamp`, for the files of the checkpoint without its subfolders, and for those of an adapter's
        base model. In addition the version of transformers, because another version may name weights differently.

        {} if the files prove nothing: they are not on this machine, or one was written after this program started, so the model
        in memory may be older than its files. The caller must then compute the fingerprint, and store no dates.
    """
    folder = _local_folder(name)
    if folder is None:
        return {}
    found: dict[str, list] = {"transformers": [transformers.__version__]}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if os.stat(path).st_ctime_ns > STARTED:
            return {}
        found[str(path)] = stamp(path)
    if base := read_json(folder / ADAPTER_CONFIG_NAME).get("base_model_name_or_path"):
        of_base = file_stamps(base)
        return of_base and found | of_base
    return found


def _local_folder(name: str) -> Path | None:
    """The folder of a checkpoint on this machine: `name` itself or the snapshot in the cache of the Hub. None: not here."""
    if os.path.isdir(name):
        return Path(name).resolve()
    for file in (CONFIG_NAME, ADAPTER_CONFIG_NAME):
        cached = huggingface_hub.try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def _read(reader: Callable[[str], tuple[dict, dict]], name: str) -> dict:
    """The content of a config file; {} if the checkpoint has none, such as a text-only one without an image processor."""
    try:
        return reader(name)[0]
    except OSError:
        return {}


def _lasting(settings):
    """Settings without the entries that differ between copies of a checkpoint, and without the dtype: the weights have it."""
    if not isinstance(settings, dict):
        return settings
    passing = ("_name_or_path", "transformers_version", "_commit_hash", "auto_map", "custom_pipelines", "dtype")
    return {key: _lasting(value) for key, value in settings.items() if key not in passing}
