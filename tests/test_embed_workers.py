"""Several workers on one folder: who takes which shard, locks, and what happens when a worker dies."""

import json
import os
import signal
import time

import pytest

from mpclip.embed import own_device
from mpclip.encoding.shard_locks import ShardLock
from mpclip.encoding.shard_shares import own_first, part_of, share_of_job


@pytest.fixture
def path(tmp_path):
    return tmp_path / "00000.parquet"


def test_one_worker_at_a_time(path):
    first, second = ShardLock(path), ShardLock(path)
    assert first.take() and first.held() and not second.take() and not second.held()
    assert second.holder() == f"process {os.getpid()} on {os.uname().nodename}"
    first.release()
    assert not first.held() and second.take()
    second.release()
    assert not list(path.parent.iterdir())


def test_the_lock_of_a_dead_process_is_taken_over_at_once(path):
    told, tell = os.pipe()
    holder = os.fork()
    if not holder:
        os.write(tell, b"1" if ShardLock(path).take() else b"0")
        time.sleep(60)
        os._exit(1)
    assert os.read(told, 1) == b"1"
    lock = ShardLock(path)
    assert not lock.take()
    os.kill(holder, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not lock.take():  # even before its parent has looked
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.waitpid(holder, 0)
    assert [file.name for file in (path.parent / ".locks").iterdir()].count("00000.parquet-1") == 1
    lock.release()
    assert not list(path.parent.iterdir())


def age(path, seconds: float, **told) -> None:
    """A lock of a worker elsewhere, last renewed so long ago."""
    file = path.parent / ".locks" / "00000.parquet-0"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"process": 1, "host": "elsewhere", "space": "other", "started": "1", **told}))
    then = time.time() - seconds
    os.utime(file, (then, then))


def test_a_lock_elsewhere_is_stale_after_its_time(path):
    age(path, 500)
    assert not ShardLock(path).take()
    age(path, 700)
    lock = ShardLock(path)
    assert lock.take()
    assert not ShardLock(path).take()
    lock.release()


def test_two_that_find_a_stale_lock_do_not_both_take_it(path, monkeypatch):
    """Whatever the second sees, and however late it acts on it."""
    age(path, 700)
    first, second = ShardLock(path), ShardLock(path)
    judged = ShardLock._is_stale

    def late(self, file, told):
        stale = judged(self, file, told)
        if self is second:
            assert first.take()
        return stale

    monkeypatch.setattr(ShardLock, "_is_stale", late)
    assert not second.take() and first.held()
    first.release()

    age(path, 700)

    def later(self, file, told):  # the first has come and gone, and a third has begun anew
        stale = judged(self, file, told)
        if self is second:
            assert first.take()
            first.release()
            assert third.take()
        return stale

    third = ShardLock(path)
    monkeypatch.setattr(ShardLock, "_is_stale", later)
    assert not second.take() and third.held()
    third.release()


def test_a_holder_that_stood_still_notices(path):
    sleeper, other = ShardLock(path), ShardLock(path)
    assert sleeper.take()
    sleeper._ended.set()  # nothing renews it any more
    file = next((path.parent / ".locks").iterdir())
    os.utime(file, (1, 1))
    assert other.take() and other.held() and not sleeper.held()
    sleeper.release()
    assert other.held()
    other.release()


def test_each_process_has_its_own_device(monkeypatch):
    monkeypatch.setattr("mpclip.embed.best_device", lambda: "cpu")
    assert own_device({"LOCAL_RANK": "3"}) == "cpu"
    monkeypatch.setattr("mpclip.embed.best_device", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert own_device({}) == "cuda"
    assert own_device({"LOCAL_RANK": "3"}) == own_device({"SLURM_LOCALID": "1"}) == "cuda:1"


def test_shares():
    shards = list(range(10))
    assert part_of(shards, "1/3") + part_of(shards, "2/3") + part_of(shards, "3/3") == [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]
    assert own_first(shards, (1, 3)) == [1, 4, 7, 8, 5, 2, 9, 6, 3, 0]
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(ValueError, match="expected such as 3/8"):
            part_of(shards, wrong)
    assert share_of_job({}) == (0, 1)
    assert share_of_job({"RANK": "3", "WORLD_SIZE": "8"}) == (3, 8)
    array = {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2"}
    array["SLURM_ARRAY_TASK_COUNT"] = "4"
    assert share_of_job(array) == (2, 4)
    assert share_of_job(array | {"RANK": "1", "WORLD_SIZE": "2"}) == (5, 8)
    assert share_of_job(array | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) == (5, 8)
