"""Names of models: a folder, a Hub id "owner/name", or a packaged tower. Imports neither torch nor transformers."""

import contextlib
import os
from pathlib import Path


def refuse_missing_folder(source: str | os.PathLike) -> None:
    """Refuse a folder that is not there. transformers would take its path for a Hub id and complain about the form of the id.

    Args:
        source: folder, file or Hub id. What may be a Hub id passes.

    Raises:
        FileNotFoundError: `source` can only be a path, and nothing is there.
    """
    name = os.fspath(source)
    is_path = os.path.isabs(name) or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name
    if is_path and not Path(name).exists():
        there = next((parent for parent in Path(name).absolute().parents if parent.exists()), Path("/"))
        raise FileNotFoundError(
            f"There is no folder {name} ({there} is there). Correct the path, or give a Hub id: owner/name."
        )


def tower_source(name: str | os.PathLike) -> str:
    """What `from_pretrained` of transformers takes for a tower.

    Args:
        name: folder, Hub id, or a packaged tower such as "smollm2-135m", which the package mpclip prepares.

    Returns:
        A folder or a Hub id.

    Raises:
        FileNotFoundError: `name` is a folder that is not there.
        ImportError: the weights of a packaged tower are not installed; the message has the command.
        ValueError: `name` is nearly that of a packaged tower.
    """
    try:
        from mpclip.data.backbones import resolve_backbone
    except ImportError:  # the code of a checkpoint is used without the package
        refuse_missing_folder(name)
        return os.fspath(name)
    return resolve_backbone(name)


@contextlib.contextmanager
def naming_missing_tower(name: str):
    """Wrap code that loads a tower: if a name without an owner is not found, say what names there are.

    Raises:
        OSError: the tower is not found. Every other error passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if "/" in name or Path(name).exists():
            raise
        raise OSError(
            f"{name!r} is no folder here, and could not be loaded from the Hub, where names have an owner: owner/{name}. "
            "`python -m mpclip.data.backbones` lists the packaged towers; it needs the package mpclip."
        ) from error
