"""Checks that refuse what would load wrongly: old versions, damaged files, weights that are missing, foreign or not finite.

transformers only warns of missing weights and draws them at random, and it loads NaN without a warning.
"""

import contextlib
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, cached_file
from transformers.utils.versions import require_version

OLDEST_VERSIONS = {"transformers": "5.17", "torch": "2.11"}
# torch shares an operation on more than 32,768 values out among threads. Where other programs use the processor too, waiting
# for the last thread takes longer than reading a weight, so weights of fewer than LARGE values are read in pieces of PIECE.
PIECE, LARGE = 30_000, 2**22


def refuse_old_versions() -> None:
    """Refuses versions below `OLDEST_VERSIONS`. With transformers 4, for example, a CLIP tower loads with random weights.

    Raises:
        ImportError: names the version found and the command that installs a newer one.
    """
    for package, oldest in OLDEST_VERSIONS.items():
        require_version(
            f"{package}>={oldest}",
            f"MP-CLIP checkpoints would not load, or load wrongly. Install it: pip install --upgrade '{package}>={oldest}'",
        )


@contextlib.contextmanager
def naming_damaged_files(*sources: str | None, **hub_arguments):
    """Around code that loads checkpoints: if it fails, says which safetensors file is damaged. safetensors does not.

    Args:
        sources: folders or Hub ids, of a base and its adapter; None for none.
        hub_arguments: for `cached_file`, such as `revision`.

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
    """The folder of a checkpoint's files; for an adapter also that of its base. Nothing is downloaded."""
    looking = hub_arguments | {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    if found := cached_file(source, CONFIG_NAME, **looking):
        return [Path(found).parent]
    if not (found := cached_file(source, ADAPTER_CONFIG_NAME, **looking)):
        return []
    base = json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return [Path(found).parent, *_folders(base)]


def _is_whole(file: Path) -> bool:
    """Whether safetensors can open a file: its header can be read, and the file ends where the last tensor does."""
    try:
        # transformers requires safetensors, so it is there. Within `try`, because transformers counts every import outside of
        # one as a package that the checkpoint needs.
        from safetensors import safe_open

        with safe_open(file, framework="pt"):
            return True
    except Exception:  # safetensors' own error
        return False


def refuse_faulty(source: str | None, model: PreTrainedModel, loading_infos: list[dict], any_shape: bool = False) -> None:
    """Refuses a loaded model whose weights are not those of its checkpoint, or of its base and its adapter.

    Missing weights are refused, and so are foreign ones: a config with fewer layers than the file has, or with another loss,
    would give a smaller model than was trained. Exceptions are listed in the class attributes
    `_keys_to_ignore_on_load_missing` and `_keys_to_ignore_on_load_unexpected` of [`MPCLIPModel`], which has none.

    Args:
        source: folder or Hub id, for the message; None for weights given as a state dict.
        model: as loaded.
        loading_infos: of `from_pretrained(output_loading_info=True)`, one for each of base and adapter.
        any_shape: accept weights of another shape, which transformers has then drawn at random.

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
    """Names of the weights with a NaN or infinite value. Weights offloaded to disk are skipped."""
    return [name for name, tensor in model.state_dict().items() if not all(_is_finite(part) for part in _parts(tensor))]


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself; for a quantised one the plain tensors it consists of, among them its scales."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]
    return [tensor]


def _is_finite(tensor: torch.Tensor) -> bool:
    if type(tensor) is not torch.Tensor or tensor.device.type == "meta" or tensor.numel() == 0:
        return True
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return True
    values = tensor.flatten()
    pieces = values.split(PIECE) if tensor.device.type == "cpu" and len(values) < LARGE else [values]
    # The ends are NaN if any value is. isfinite() would copy the tensor.
    ends = [end for piece in pieces for end in piece.aminmax()]
    return bool(torch.stack(ends).isfinite().all())


def _some(names: list[str]) -> str:
    return f"{len(names)} weights, {names[0]} first" if len(names) > 1 else names[0]
