"""Whether an index is as it was written, and whether a model is the one that built it.

For every file of the store, every chunk and the model, two things are kept: a SHA-256, and the size and date that the file had
when its SHA-256 was right. A file that still has this size and date is trusted and not read. A file with another date (copied,
moved or touched) is read once and hashed. If its SHA-256 is right, index.json remembers the new date.

So a query reads no file to check it. Only `--verify`, which hashes everything, finds a file that was changed and then given its
old date back, and a file that the disk no longer returns as it was written.
"""

from collections.abc import Iterable
from pathlib import Path

import filelock

from mpclip.encoding.fingerprint import file_stamps
from mpclip.files import sha256_files, stamp
from mpclip.search.manifest import LOCK, read_manifest, write_manifest


class Integrity:
    """
    Args:
        index: folder of the index.
        settings: content of its index.json; {} for an index that has none yet. An index that was built before there were
            dates in index.json is hashed once.
        verify: hash everything, whatever its date.

    Attributes:
        stamps: path below `index`, with "/" -> size and date of a file that was found right.
        model_stamps: likewise of the model's files (`mpclip.encoding.fingerprint.file_stamps`).
    """

    def __init__(self, index: Path, settings: dict, verify: bool = False):
        self.index, self.settings, self.verify = index, settings, verify
        self.stamps: dict[str, list[int]] = dict(settings.get("stamps", {}))
        self.model_stamps: dict[str, list] = settings.get("model_stamps", {})
        self._hashed: set[str] = set()  # here, by this object

    def fingerprint(self, encoder) -> str:
        """The encoder's fingerprint: from index.json where the files of its checkpoint still have the dates noted there."""
        now = file_stamps(encoder.name)
        same = now and now == self.model_stamps and encoder.dtype == self.settings["dtype"]
        if same and not self.verify:
            return self.settings["fingerprint"]
        found = encoder.fingerprint()
        if now and found == self.settings.get("fingerprint", found):
            self.model_stamps = now
        return found

    def damaged(self, expected: dict[Path, str]) -> list[Path]:
        """Those of some files that are missing or not as they were written.

        Args:
            expected: path -> SHA-256.
        """
        there = {path: stamp(path) for path in expected if path.is_file()}
        unknown = [path for path in there if self._must_be_read(path, there[path])]
        digests = sha256_files(unknown) if unknown else {}
        wrong = {path for path in unknown if digests[path] != expected[path]}
        for path in digests.keys() - wrong:
            self.stamps[self._name(path)] = there[path]  # taken before the file was read
            self._hashed.add(self._name(path))
        return [path for path in expected if path not in there or path in wrong]

    def accept(self, paths: Iterable[Path]) -> None:
        """Notes the dates of files that were just written."""
        self.stamps |= {self._name(path): stamp(path) for path in paths}

    def stamps_of(self, paths: Iterable[Path]) -> dict[str, list[int]]:
        """The part of `stamps` that is about some files."""
        return {self._name(path): self.stamps[self._name(path)] for path in paths}

    def remember(self) -> None:
        """Writes new dates into index.json, for the next query.

        Does nothing where that is impossible: the folder is read-only, or a build is writing it or has changed it since.
        """
        noted = {"stamps": self.stamps, "model_stamps": self.model_stamps}
        if self.settings | noted == self.settings:
            return
        try:
            with filelock.FileLock(self.index / LOCK, timeout=0):
                if read_manifest(self.index) == self.settings:
                    write_manifest(self.index, self.settings | noted)
                    self.settings = self.settings | {"stamps": dict(self.stamps), "model_stamps": self.model_stamps}
        except (OSError, ValueError):
            return

    def _name(self, path: Path) -> str:
        return path.relative_to(self.index).as_posix()

    def _must_be_read(self, path: Path, now: list[int]) -> bool:
        name = self._name(path)
        return self.stamps.get(name) != now or (self.verify and name not in self._hashed)
