"""Files are complete or not there."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from mpclip.files import aside, read_json, sha256_file, stamp, write_json, write_text, xxh128_file


def test_a_failed_write_leaves_everything_as_it_was(tmp_path):
    file = tmp_path / "new" / "file.txt"
    write_text(file, "old")
    with pytest.raises(KeyboardInterrupt), aside(file) as written:
        written.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    texts = [str(i) * 100_000 for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        children = [pool.submit(_write_in_a_fork, tmp_path / "file", text) for text in texts]
        assert [child.result() for child in children] == [0] * 4
    assert (tmp_path / "file").read_text() in texts and len(list(tmp_path.iterdir())) == 1


def _write_in_a_fork(file, text: str) -> int:
    """The exit code of another process that writes; temporary files are told apart by process."""
    child = os.fork()
    if not child:
        try:
            write_text(file, text)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_json_in_and_out(tmp_path):
    assert read_json(tmp_path / "none.json") == {}
    write_json(tmp_path / "a.json", {"path": tmp_path, "ü": [1, None]})
    assert read_json(tmp_path / "a.json") == {"path": str(tmp_path), "ü": [1, None]}
    (tmp_path / "a.json").write_text('{"half": ')
    with pytest.raises(ValueError, match=r"a\.json is not JSON .*\. Delete it, or restore it"):
        read_json(tmp_path / "a.json")


def test_a_changed_file_has_another_hash_and_stamp(tmp_path):
    write_text(tmp_path / "a", "one")
    kinds = (sha256_file, xxh128_file, stamp)
    before = [kind(tmp_path / "a") for kind in kinds]
    write_text(tmp_path / "a", "two")
    assert all(kind(tmp_path / "a") != old for kind, old in zip(kinds, before, strict=True))
