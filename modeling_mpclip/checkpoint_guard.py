"""What is refused instead of loaded wrongly: old versions, damaged files, weights that are missing, foreign or not finite.

transformers warns of missing weights and draws them at random, and loads NaN without a word.
"""

import contextlib
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, cached_file
from transformers.utils.versions import require_version

OLDEST_VERSIONS = {"transformers": "5.17", "torch": "2.11"}


def refuse_old_versions() -> None:
    """ImportError below `OLDEST_VERSIONS`: with transformers 4, for one, a CLIP tower loads with random weights."""
    for package, oldest in OLDEST_VERSIONS.items():
        require_version(
            f"{package}>={oldest}",
            f"MP-CLIP checkpoints would not load, or load wrongly. Install it: pip install --upgrade '{package}>={oldest}'",
        )


@contextlib.contextmanager
def naming_damaged_files(*sources: str | None, **hub_arguments):
    """Where loading checkpoints (a base and its adapter) fails, says which safetensors file is damaged: safetensors does not.

    Raises:
        OSError: a file is cut short, or its header cannot be read.
    """
    try:
        yield
    except OSError:  # nothing was opened: no such repository, file or connection
        raise
    except Exception as error:
        folders = [folder for source in sources if source for folder in _folders(source, **hub_arguments)]
        damaged = [file for folder in folders for file in sorted(folder.glob("*.safetensors")) if not _is_whole(file)]
        if not damaged:
            raise
        raise OSError(f"{damaged[0]} is cut short or damaged ({error}). Copy, download or save it again.") from error


def _folders(source: str, **hub_arguments) -> list[Path]:
    """Where the files of a checkpoint lie; of an adapter alone, its own and those of its base. Nothing is downloaded."""
    looking = hub_arguments | {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    if found := cached_file(source, CONFIG_NAME, **looking):
        return [Path(found).parent]
    if not (found := cached_file(source, ADAPTER_CONFIG_NAME, **looking)):
        return []
    base = json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return [Path(found).parent, *_folders(base)]


def _is_whole(file: Path) -> bool:
    """The header of a safetensors file, which tells where its last tensor ends, can be read, and the file ends there."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            tensors = json.loads(opened.read(min(length, file.stat().st_size)))
        except ValueError:
            return False
    tensors.pop("__metadata__", None)
    return file.stat().st_size == 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)


def refuse_faulty(source: str | None, model: PreTrainedModel, loading_infos: list[dict], any_shape: bool = False) -> None:
    """Refuse a loaded model that is not wholly the checkpoint's (or the checkpoints', of a base and its adapter).

    Foreign weights are refused with the missing: a config with fewer layers than the file has, or with another loss, would
    be a smaller model than was trained. What may be missing or left over stands in the class attributes
    `_keys_to_ignore_on_load_missing` and `_keys_to_ignore_on_load_unexpected` of [`MPCLIPModel`]; nothing does today.

    Raises:
        ValueError: names the weights.
    """
    missing, unexpected, mismatched = (
        set().union(*(info[kind] for info in loading_infos)) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    shapes = [f"{key} {tuple(saved)} instead of {tuple(own)}" for key, saved, own in mismatched]
    faults = {
        "lacks {}": missing,
        "holds {}, for which its config has no place": unexpected,
        "has another shape in {}": [] if any_shape else shapes,
        "has NaN or infinite values in {}": not_finite(model),
    }
    found = [fault.format(_some(sorted(names))) for fault, names in faults.items() if names]
    if found:
        advice = "To load a part of one on purpose: MPCLIPModel(config).load_state_dict(weights, strict=False)."
        if hasattr(model, "peft_config"):
            advice = "transformers 5.17 loads an adapter in part: use 5.18, or PeftModel.from_pretrained(base, adapter)."
        raise ValueError(
            f"The checkpoint {source or '(state_dict)'} {', and '.join(found)}. It is damaged, or its config and weights are "
            f"not of one model: get or save it again. {advice}"
        )


def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of the weights with a NaN or infinite value; those offloaded to disk are not looked at."""
    return [name for name, tensor in model.state_dict().items() if not all(_is_finite(part) for part in _parts(tensor))]


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor; of a quantised one the plain ones it consists of, its scales among them."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]
    return [tensor]


def _is_finite(tensor: torch.Tensor) -> bool:
    if type(tensor) is not torch.Tensor or tensor.device.type == "meta" or tensor.numel() == 0:
        return True
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return True
    low, high = tensor.aminmax()  # NaN passes through, and no copy of the tensor is made as isfinite() would
    return bool(low.isfinite() and high.isfinite())


def _some(names: list[str]) -> str:
    return f"{len(names)} weights, {names[0]} first" if len(names) > 1 else names[0]
