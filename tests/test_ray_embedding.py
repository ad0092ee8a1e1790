"""Embedding on Ray: a worker is killed in mid-run, and the work goes on from a checkpoint; the result is that of one process.

Slow: it starts Ray, with a copy of the model in each of two processes.
"""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from conftest import make_model, make_processor, make_tokenizer

from mpclip.encoding import load_encoder
from mpclip.encoding.ray import EmbedRows, decode_rows, embed_on_ray, sample_blocks, write_rows
from mpclip.encoding.shard_files import matrix, read_embeddings, read_note
from mpclip.encoding.shard_sources import open_shards
from mpclip.encoding.shards import EmbedOptions, ShardWorker

FULL = EmbedOptions(stored="float32", captions=True)
COUNT, SIZE = 120, 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray") / "model"
    tokenizer = make_tokenizer()
    make_model(num_prompts=3, tokenizer=tokenizer).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(COUNT):
        noise = np.random.default_rng(i).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(folder / f"{i:03}.png")
    (folder / "007.png").write_bytes((folder / "007.png").read_bytes()[:60])
    return open_shards(folder, shard_size=SIZE)


def rows_of(out: Path, of_ray: bool) -> dict[str, np.ndarray]:
    """Key -> embedding. A key that is there twice is an error."""
    found = {}
    for path in out.glob("*.parquet"):
        rows = pa.Table.from_batches(read_embeddings(path)).combine_chunks()
        keys = rows["key"].to_pylist() if of_ray else [f"{path.stem}/{key}" for key in rows["key"].to_pylist()]
        assert found.keys().isdisjoint(keys) and len(set(keys)) == len(keys)
        found |= dict(zip(keys, matrix(rows["embedding"].combine_chunks()), strict=True))
    return found


def workers_of_ray() -> list[int]:
    """Processes that embed, of the Ray that this process has started."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            named = (process / "cmdline").read_bytes()
            parent = _parent(process.name)
            if named.startswith(b"ray::") and b"EmbedRows" in named and _parent(parent) == str(os.getpid()):
                found.append(int(process.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def _parent(process: str) -> str:
    return Path(f"/proc/{int(process)}/stat").read_text().rpartition(")")[2].split()[1]


def test_its_steps_give_what_one_process_gives(model, shards, tmp_path):
    """In plain loops, without Ray."""
    worker = ShardWorker(load_encoder(model, device="cpu"), tmp_path / "plain", FULL, batch_size=10)
    assert worker.run(shards[:1]).unreadable == 1
    actor = EmbedRows(model, "float32", FULL)
    blocks = pa.concat_tables(sample_blocks(shards[0]))
    parts = [decode_rows(blocks.slice(i, 10), model, FULL.max_megapixels) for i in range(0, SIZE, 10)]
    (tmp_path / "out").mkdir()
    write_rows(pa.concat_tables(map(actor, parts)), tmp_path / "out" / "a.parquet", worker.depends, FULL)
    found, plain = rows_of(tmp_path / "out", True), rows_of(tmp_path / "plain", False)
    assert found.keys() == plain.keys()
    for key in plain:
        np.testing.assert_allclose(found[key], plain[key], atol=1e-6)
    note = read_note(tmp_path / "out" / "a.parquet")
    assert note["unreadable_named"] == {
        f"pictures-000000/{key}": fault
        for key, fault in read_note(tmp_path / "plain" / "pictures-000000.parquet")["unreadable_named"].items()
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_and_a_second_run_lose_nothing_and_do_nothing_twice(model, shards, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mpclip[scale]'")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes there
    how = {"batch_size": 4, "precision": "float32", "workers": 2, "rows_written": 8}
    out, killed = tmp_path / "out", []

    def kill_one() -> None:
        deadline = time.monotonic() + 600
        while not killed and time.monotonic() < deadline:
            if list(out.glob("*.parquet")) and (there := workers_of_ray()):
                os.kill(there[0], signal.SIGKILL)
                killed.append(there[0])
            time.sleep(0.02)

    threading.Thread(target=kill_one, daemon=True).start()
    first = embed_on_ray(model, shards[:3], out, FULL, **how)
    assert killed, "no worker was killed in mid-run"
    assert (first.rows, first.unreadable) == (3 * SIZE - 1, 1)
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    second = embed_on_ray(model, shards, out, FULL, **how)  # goes on from the checkpoint
    assert (second.rows, second.unreadable) == (SIZE, 0)
    assert written.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}.items()
    assert "007.png" in (out / "ray.unreadable.jsonl").read_text()
    assert not (tmp_path / ".ray").exists()  # no token

    ShardWorker(load_encoder(model, device="cpu"), tmp_path / "plain", FULL, batch_size=4).run(shards)
    found, plain = rows_of(out, True), rows_of(tmp_path / "plain", False)
    assert found.keys() == plain.keys() and len(found) == COUNT - 1
    for key in plain:
        np.testing.assert_allclose(found[key], plain[key], atol=1e-6)
    note = read_note(next(out.glob("*.parquet")))
    assert note["source"] == {"engine": "ray"} and note["segments"] == 3

    with pytest.raises(ValueError, match="stored 'float32', not 'float16'"):
        embed_on_ray(model, shards, out, EmbedOptions(), **how)
