"""Whether two checkpoints are the same model: a hash of the weights, and the dates of their files.

The hash is certain, and reads every weight. The dates take a millisecond, and tell only that nothing has changed since the
hash was taken. An index of pictures keeps both (mpclip/search/integrity.py).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import torch
import transformers
from transformers import ImageProcessingMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from mpclip.files import read_json, stamp

STARTED = time.time_ns()  # before this program can have loaded a checkpoint


def model_fingerprint(name: str, model: PreTrainedModel) -> str:
    """SHA-256 of everything that embeddings depend on: weights, config, and how pictures are prepared. Ours.

    Args:
        name: folder or Hub id of the checkpoint; its config files are read.
        model: the model that was loaded from it. Its dtype counts: bfloat16 weights have another fingerprint.

    Returns:
        64 hexadecimal digits. Copies of a checkpoint in other folders have the same.
    """
    digest = hashlib.sha256()
    # The files themselves: a newer transformers would add defaults of its own to the objects.
    settings = [
        _lasting(_read(read, name))
        for read in (PretrainedConfig.get_config_dict, ImageProcessingMixin.get_image_processor_dict)
    ]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for key, weight in sorted(model.state_dict().items()):
        digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def file_stamps(name: str) -> dict[str, list]:
    """Size and date of every file of a checkpoint: the same as last time means the same fingerprint.

    Args:
        name: folder or Hub id. Of a Hub id the files in the local cache count; nothing is downloaded.

    Returns:
        full path -> `mpclip.files.stamp`, and the version of transformers, which may name weights differently. The files of
        an adapter's base are among them. Subfolders are not.

        {} where the files cannot tell: they are not on this machine, or one was written after this program started. The model
        in memory may then be older than its files. Take the fingerprint instead, and remember nothing.
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
    """Where the files of a checkpoint lie on this machine: the folder itself, or the snapshot in the Hub's cache."""
    if os.path.isdir(name):
        return Path(name).resolve()
    for file in (CONFIG_NAME, ADAPTER_CONFIG_NAME):
        cached = huggingface_hub.try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def _read(reader: Callable[[str], tuple[dict, dict]], name: str) -> dict:
    """{} where a checkpoint has no such file: a text-only one prepares no pictures."""
    try:
        return reader(name)[0]
    except OSError:
        return {}


def _lasting(settings):
    """Settings without what differs between copies of a checkpoint. The dtype is left out, as the weights tell theirs."""
    if not isinstance(settings, dict):
        return settings
    passing = ("_name_or_path", "transformers_version", "_commit_hash", "auto_map", "dtype")
    return {key: _lasting(value) for key, value in settings.items() if key not in passing}
