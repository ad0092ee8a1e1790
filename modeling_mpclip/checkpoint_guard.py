"""Checks at loading: refuse old libraries, damaged files, and weights that are missing, unexpected or not finite.

transformers itself only warns about missing weights and initialises them at random. It loads NaN without a warning.
"""

import contextlib
import json
import math
import threading
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, cached_file
from transformers.utils.versions import require_version

OLDEST_VERSIONS = {"transformers": "5.17", "torch": "2.11"}
# torch splits an operation on more than 32,768 values among threads. While other programs use the processor, waiting for the
# slowest thread takes longer than the check itself. So a weight of fewer than LARGE values is checked PIECE values at a time.
PIECE, LARGE = 30_000, 2**22
LARGEST_TEXT_FILE = 2**28  # bytes of a config, a tokenizer or an index. The largest tokenizer.json in use has 40 MB
INDEX = "*.safetensors.index.json"


def refuse_old_versions() -> None:
    """Refuse versions below `OLDEST_VERSIONS`. transformers 4, for example, loads a CLIP tower with random weights.

    Raises:
        ImportError: a version is too old; the message names it and the command that installs a newer one.
    """
    for package, oldest in OLDEST_VERSIONS.items():
        require_version(
            f"{package}>={oldest}",
            f"Older versions load MP-CLIP checkpoints wrongly or not at all. Run: pip install --upgrade '{package}>={oldest}'",
        )


@contextlib.contextmanager
def naming_damaged_files(*sources: str | None, **hub_arguments):
    """Wrap code that loads a checkpoint: if it fails on a damaged safetensors file, raise an error that names the file.

    The error of safetensors itself does not name it.

    Args:
        sources: folders or Hub ids whose files are loaded, such as a base model and its adapter. None is skipped.
        hub_arguments: keyword arguments of `cached_file`, such as `revision`.

    Raises:
        OSError: a safetensors file is cut short, or its header cannot be read. Every other error passes unchanged.
    """
    try:
        yield
    except OSError:  # a repository, a file or the connection is missing, and the message says so
        raise
    except Exception as error:
        folders = [folder for source in sources if source for folder in _folders(source, **hub_arguments)]
        damaged = [file for folder in folders for file in sorted(folder.glob("*.safetensors")) if not _is_whole(file)]
        if not damaged:
            raise
        raise OSError(f"{damaged[0]} is cut short or damaged ({error}). Copy, download or save it again.") from error


def _folders(source: str, **hub_arguments) -> list[Path]:
    """The local folder of a checkpoint; for an adapter also the folder of its base model. Nothing is downloaded."""
    looking = hub_arguments | {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    if found := cached_file(source, CONFIG_NAME, **looking):
        return [Path(found).parent]
    if not (found := cached_file(source, ADAPTER_CONFIG_NAME, **looking)):
        return []
    base = json.loads(Path(found).read_text(encoding="utf-8")).get("base_model_name_or_path")
    of_base = cached_file(base, CONFIG_NAME, **looking) if base else None
    return [Path(found).parent, *([Path(of_base).parent] if of_base else [])]


def refuse_strange_files(*sources: str | None, **hub_arguments) -> None:
    """Refuse what a checkpoint could harm with before it is read: huge texts, and an index that names files elsewhere.

    Args:
        sources, hub_arguments: as for `naming_damaged_files`. Of a Hub id, what is in the cache is looked at.

    Raises:
        OSError: there is such a file; the message names it.
    """
    for folder in [folder for source in sources if source for folder in _folders(source, **hub_arguments)]:
        for file in sorted(folder.glob("*")):
            size = file.stat().st_size if file.suffix in (".json", ".txt", ".model", ".jinja") and file.is_file() else 0
            if size > LARGEST_TEXT_FILE:
                raise OSError(
                    f"{file} has {size / 1e6:,.0f} MB, and no such file needs more than {LARGEST_TEXT_FILE / 1e6:,.0f}. It is "
                    "not read. Download the checkpoint again, or do not use it."
                )
        for file in sorted(folder.glob(INDEX)):
            try:
                shards = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise OSError(f"{file} is no index of weights ({error!r}). Download it or save it again.") from error
            strange = [x for x in shards if not isinstance(x, str) or Path(x).name != x or not x.endswith(".safetensors")]
            if strange:
                raise OSError(
                    f"{file} names {strange[0]!r}. The files of an index lie beside it and end in .safetensors. Download the "
                    "checkpoint again, or do not use it."
                )


@contextlib.contextmanager
def no_larger_than_files(source: str | None, **hub_arguments):
    """Wrap code that builds a model for a checkpoint: refuse one that is far larger than the weights in the files.

    A config can ask for any size. transformers takes memory for all the weights that the files lack before it tells that they
    are lacking. While it builds the model, weights have a shape and no memory yet.

    Args:
        source, hub_arguments: as for `naming_damaged_files`.

    Raises:
        ValueError: the model is far larger; the message has both numbers.
    """
    built: dict[tuple[int, str], int] = {}  # (module, name) -> values; buffers too, some of which are in no file
    sizes, thread, total = [], threading.get_ident(), 0

    def count(module, name, tensor):
        nonlocal total
        if tensor is None or threading.get_ident() != thread:
            return
        if not sizes:  # a first download is complete by now
            sizes.append(_sizes_of_weights(source, **hub_arguments))
        values = tensor.numel()
        total += values - built.get((id(module), name), 0)
        built[id(module), name] = values
        if sizes[0] is None:
            return
        weights, saved = sizes[0]
        # Files may hold four values in a byte, and a few weights in one. Heads that are not used are built too.
        if total > 4 * saved + 2**27 or len(built) > 10 * weights + 1000:
            raise ValueError(
                f"The config of {source} asks for {total:,} or more values in {len(built):,} weights, but its files hold "
                f"{saved:,} in {weights:,}. Config and weights belong to different models, or the checkpoint is made to fill "
                "your memory. Download it again, or do not use it."
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sizes_of_weights(source: str | None, **hub_arguments) -> tuple[int, int] | None:
    """How many weights the safetensors files of a checkpoint hold, and how many values; None if they cannot be read."""
    weights = values = 0
    try:
        from safetensors import safe_open  # within `try`, as below

        for folder in _folders(source, **hub_arguments) if source else []:
            for file in folder.glob("*.safetensors"):
                with safe_open(file, framework="pt") as saved:
                    shapes = [saved.get_slice(name).get_shape() for name in saved.keys()]  # noqa: SIM118 (it is no dict)
                weights, values = weights + len(shapes), values + sum(map(math.prod, shapes))
    except Exception:  # safetensors' own error; a damaged file is named when it is loaded
        return None
    return (weights, values) if weights else None


def _is_whole(file: Path) -> bool:
    """Whether safetensors can open a file: its header can be read, and the file ends where the last tensor does."""
    try:
        # transformers installs safetensors. The import stands inside `try`, because transformers asks the user of a checkpoint
        # to install every package that its code imports outside `try`.
        from safetensors import safe_open

        with safe_open(file, framework="pt"):
            return True
    except Exception:  # safetensors' own error
        return False


def refuse_faulty(source: str | None, model: PreTrainedModel, loading_infos: list[dict], any_shape: bool = False) -> None:
    """Refuse a loaded model unless its weights are exactly those of its checkpoint, or of base and adapter together.

    Unexpected weights are refused like missing ones. They occur if the config has fewer layers than the file, or another loss:
    the model would then be smaller than the trained one. A subclass lists its exceptions in the attributes
    `_keys_to_ignore_on_load_missing` and `_keys_to_ignore_on_load_unexpected`; [`MPCLIPModel`] has no exceptions.

    Args:
        source: folder or Hub id, for the message; None if the weights were given as a state dict.
        model: the loaded model.
        loading_infos: results of `from_pretrained(output_loading_info=True)`: one, or one each for base and adapter.
        any_shape: accept weights whose shape differs from the model's. transformers has initialised them at random.

    Raises:
        ValueError: weights are missing, unexpected, of another shape or not finite; the message names them.
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
        advice = "To load only some weights on purpose: MPCLIPModel(config).load_state_dict(weights, strict=False)."
        if hasattr(model, "peft_config"):
            advice = (
                "transformers 5.17 loads only a part of an adapter: use transformers 5.18 or later, or "
                "PeftModel.from_pretrained(base, adapter)."
            )
        raise ValueError(
            f"The checkpoint {source or '(state_dict)'} {', and '.join(found)}. It is damaged, or its config and its weights "
            f"belong to different models. Download it or save it again. {advice}"
        )


def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of the weights that hold a NaN or infinite value.

    Args:
        model: any model. Weights offloaded to disk and 8-bit weights are not checked.
    """
    return [name for name, tensor in model.state_dict().items() if not all(_is_finite(part) for part in _parts(tensor))]


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself. A quantised tensor gives the plain tensors that it consists of, scales included."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]
    return [tensor]


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. True for tensors that are not checked."""
    if type(tensor) is not torch.Tensor or tensor.device.type == "meta" or tensor.numel() == 0:
        return True
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return True
    values = tensor.flatten()
    pieces = values.split(PIECE) if tensor.device.type == "cpu" and len(values) < LARGE else [values]
    # Minimum and maximum are NaN if any value is NaN. isfinite() would allocate a second tensor of the same length.
    ends = [end for piece in pieces for end in piece.aminmax()]
    return bool(torch.stack(ends).isfinite().all())


def _some(names: list[str]) -> str:
    return f"{len(names)} weights, {names[0]} first" if len(names) > 1 else names[0]
