"""Which files belong to a data set: those in its folder. A symbolic link that leads out of it is followed only by an option."""

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

import huggingface_hub

TOLD = "set follow_links (--follow_links true) if these are files of yours"


class Bounds:
    """The folders that a data set's files must lie in.

    Args:
        folders: these folders. Links above them do not matter: a folder may itself be reached by a link.
        follow_links: allow symbolic links within the folders to lead anywhere.
    """

    def __init__(self, folders: Iterable[str | os.PathLike], follow_links: bool = False):
        folders = [os.path.abspath(folder) for folder in folders]
        self.follow_links = follow_links
        self._given = tuple(folder.rstrip(os.sep) + os.sep for folder in folders)
        targets = [*folders, huggingface_hub.constants.HF_HUB_CACHE]  # a download from the Hub is made of links into its cache
        self._real = tuple(os.path.realpath(folder).rstrip(os.sep) + os.sep for folder in targets)
        self._real_folders: dict[str, str] = {}  # links are looked up once per folder, not once per picture

    def fault(self, path: str | os.PathLike) -> str | None:
        """What is wrong with the place of a file, to follow its name in a message; None for a file within the folders."""
        path = os.path.abspath(path)
        if not path.startswith(self._given):
            return "which lies outside this data set"
        if self.follow_links:
            return None
        folder, name = os.path.split(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.realpath(path) if os.path.islink(path) else os.path.join(self._real_folders[folder], name)
        if (real + os.sep).startswith(self._real):
            return None
        return f"which leads out of this data set by a symbolic link, to {real}; {TOLD}"

    def path_of(self, name: str, folder: Path) -> Path:
        """The file that a table calls `name`.

        Args:
            name: relative to `folder`, with slashes of either kind; or an absolute path that lies within the bounds.
            folder: where the table's pictures lie.

        Raises:
            ValueError: the name leads out of the data set; the message says how, to follow what the caller says of the place.
        """
        if re.match(r"\w+://", name):
            raise ValueError(f"found the address {name!r}: download the images, and write the paths of their files")
        path = folder / name
        windows = PureWindowsPath(name.strip())  # knows both kinds of slash, and drive letters
        if ("\\" in name or name != name.strip()) and not os.path.exists(path) and not windows.anchor:
            path = folder.joinpath(*windows.parts)
        inside = not windows.anchor or (os.path.isabs(name) and os.path.abspath(name).startswith(self._given))
        if not inside or ".." in windows.parts:
            raise ValueError(f"refused {name!r}: images must lie within {folder}; write their paths relative to it")
        if fault := self.fault(path):
            raise ValueError(f"refused {name!r}, {fault}")
        return path

    def refuse_linked_files(self, folder: Path, suffixes: tuple[str, ...]) -> None:
        """Refuse linked files with these endings that lead out; warn of linked folders: `datasets` ignores them."""
        for place, folders, files in os.walk(folder):
            for name in files:
                path = os.path.join(place, name)
                if name.endswith(suffixes) and os.path.islink(path) and (fault := self.fault(path)):
                    raise ValueError(f"refused {path}, {fault}")
            for name in folders:
                if os.path.islink(path := os.path.join(place, name)):
                    warnings.warn(f"{path} is a linked folder and is left out: give it as a data set of its own", stacklevel=5)
