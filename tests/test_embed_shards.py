"""Embedding shards: what comes out equals the plain encoder; damage, other models and faulty pictures are dealt with."""

import io
import json
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer

from mpclip.data.identity import picture_key
from mpclip.embed import main
from mpclip.encoding import load_encoder
from mpclip.encoding.shard_files import matrix, read_embeddings, read_note
from mpclip.encoding.shard_sources import open_shards
from mpclip.encoding.shards import EmbedOptions, ShardWorker

FULL = EmbedOptions(stored="float32", captions=True)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two tiny models."""
    root = tmp_path_factory.mktemp("embed")
    for name in ("one", "two"):
        tokenizer = make_tokenizer()
        model = make_model(num_prompts=3, tokenizer=tokenizer)
        if name == "two":
            next(model.parameters()).data.add_(0.1)
        model.save_pretrained(root / name)
        make_processor(tokenizer).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def encoder(checkpoints):
    return load_encoder(str(checkpoints / "one"), device="cpu")


def picture(seed: int, form: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(written := io.BytesIO(), form)
    return written.getvalue()


def write_tar(path, first: int, count: int = 7) -> None:
    """As img2dataset writes it; the fourth picture is cut off, the fifth has no picture, the sixth no caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            key, n = f"{i:09d}", i - first
            files = {"jpg": picture(i, "JPEG"), "txt": f"a red car {i % 2}".encode()}
            files["json"] = json.dumps({"url": f"http://example.org/{i}.jpg", "caption": "another", "key": key}).encode()
            if n == 3:
                files["jpg"] = files["jpg"][:200]
            elif n == 4:
                del files["jpg"]
            elif n == 5:
                files["txt"] = b""
            for ending, content in files.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path):
    for number in range(3):
        write_tar(tmp_path / "tars" / f"{number:05d}.tar", 10_000 * number)
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "tars" / "00000.parquet")  # img2dataset's listing
    return tmp_path / "tars"


def rows_of(path) -> pa.Table:
    return pa.Table.from_batches(read_embeddings(path))


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_a_tar_is_embedded_as_by_the_plain_encoder(encoder, tars, tmp_path, stored):
    options = EmbedOptions(stored=stored, captions=True)
    done = ShardWorker(encoder, tmp_path / "out", options, batch_size=2).run(open_shards(tars)[:1])
    assert (done.embedded, done.rows, done.unreadable, done.failed) == (1, 5, 2, {})
    rows = rows_of(tmp_path / "out" / "00000.parquet")
    good = [0, 1, 2, 5, 6]
    assert rows["key"].to_pylist() == [f"{i:09d}" for i in good]
    assert rows["place"].to_pylist() == [f"{i:09d}.jpg" for i in good]
    assert rows["url"].to_pylist() == [f"http://example.org/{i}.jpg" for i in good]
    assert [digest.hex() for digest in rows["sha256"].to_pylist()] == [picture_key(picture(i, "JPEG")) for i in good]
    plain = encoder.images([PIL.Image.open(io.BytesIO(picture(i, "JPEG"))) for i in good], 2).numpy()
    found = matrix(rows["embedding"].combine_chunks())
    assert found.dtype == stored and np.array_equal(found, plain.astype(stored))  # to the digit
    assert rows["caption"].to_pylist() == ["a red car 0", "a red car 1", "a red car 0", None, "a red car 0"]
    texts = encoder.texts(["a red car 0", "a red car 1", "a red car 0", "a red car 0"], 2).numpy().astype(stored)
    assert rows["caption_embedding"].to_pylist()[3] is None
    assert np.array_equal(np.array(rows["caption_embedding"].drop_null().to_pylist(), dtype=stored), texts)


def test_unreadable_pictures_are_counted_and_named(encoder, tars, tmp_path):
    ShardWorker(encoder, tmp_path / "out").run(open_shards(tars)[:1])
    note = read_note(tmp_path / "out" / "00000.parquet")
    assert note["rows"] == 5 and note["unreadable"] == 2
    assert note["unreadable_named"]["000000004"] == "no picture among its files (json, txt)"
    lines = [json.loads(line) for line in (tmp_path / "out" / "00000.unreadable.jsonl").read_text().splitlines()]
    assert {line["key"]: line["fault"] for line in lines} == note["unreadable_named"]
    assert note["unreadable_named"]["000000003"]
    write_tar(tars / "00000.tar", 0, count=2)  # mended
    with pytest.warns(UserWarning, match="00000 is not as it was"):
        done = ShardWorker(encoder, tmp_path / "out").run(open_shards(tars)[:1])
    assert (done.embedded, done.rows, done.unreadable) == (1, 2, 0)
    assert not (tmp_path / "out" / "00000.unreadable.jsonl").exists()


def test_parquet_and_folders(encoder, tmp_path):
    contents = [picture(i) for i in range(5)]
    cells = [{"bytes": content, "path": None} for content in contents[:4]] + [None]
    table = pa.table({"id": [7, 8, 9, 10, 11], "url": list("abcde"), "caption": ["x"] * 5, "image": cells})
    (tmp_path / "table").mkdir()
    pq.write_table(table, tmp_path / "table" / "a.parquet")
    pq.write_table(pa.table({"id": ["n"], "text": ["x"]}), tmp_path / "table" / "b.parquet")
    worker = ShardWorker(encoder, tmp_path / "out", FULL)
    done = worker.run(open_shards(tmp_path / "table"))
    assert done.failed.keys() == {"b"} and "b.parquet has no column image or img" in done.failed["b"]
    rows = rows_of(tmp_path / "out" / "a.parquet")
    assert rows["key"].to_pylist() == ["7", "8", "9", "10"] and rows["url"].to_pylist() == list("abcd")
    for i, content in enumerate(contents):
        (tmp_path / "photos" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / str(i % 2) / f"{i}.png").write_bytes(content)
    shards = open_shards(tmp_path / "photos", shard_size=3)
    assert [shard.names for shard in shards] == [["0/0.png", "0/2.png", "0/4.png"], ["1/1.png", "1/3.png"]]
    worker = ShardWorker(encoder, tmp_path / "of_folder", FULL)
    assert worker.run(shards).rows == 5
    first = rows_of(tmp_path / "of_folder" / "pictures-000000.parquet")
    assert first["place"].to_pylist() == shards[0].names
    assert first["caption"].null_count == 3
    np.testing.assert_allclose(first["embedding"][1].as_py(), rows["embedding"][2].as_py(), atol=1e-6)  # another batch
    for wrong, match in (
        ("nowhere", "nothing at"),
        ("*.tar", "nothing at"),
        ("photos/0/0.png", "end in .tar or .parquet"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=match):
            open_shards(tmp_path / wrong)


def test_what_is_whole_is_skipped_and_what_is_damaged_made_anew(encoder, tars, tmp_path):
    shards, out = open_shards(tars), tmp_path / "out"
    ShardWorker(encoder, out).run(shards)
    before = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    assert ShardWorker(encoder, out).run(shards).whole == 3
    (out / "00000.parquet").write_bytes(before["00000.parquet"][:-100])
    with pytest.warns(UserWarning, match="00000.parquet is damaged"):
        done = ShardWorker(encoder, out).run(shards)
    assert (done.embedded, done.whole) == (1, 2)
    changed = bytearray(before["00001.parquet"])
    embeddings = pq.read_metadata(out / "00001.parquet").row_group(0).column(4)
    changed[embeddings.data_page_offset + embeddings.total_compressed_size - 3] ^= 255
    (out / "00001.parquet").write_bytes(changed)
    assert ShardWorker(encoder, out).run(shards).whole == 3  # it looks at the end of a file alone
    with pytest.warns(UserWarning, match="00001.parquet is damaged"):
        done = ShardWorker(encoder, out, verify=True).run(shards)
    assert (done.embedded, done.whole) == (1, 2)
    assert rows_of(out / "00001.parquet").num_rows == 5 and not list(out.glob(".*"))


def test_files_of_another_model_or_other_options_are_refused(checkpoints, encoder, tars, tmp_path):
    shards, out = open_shards(tars), tmp_path / "out"
    ShardWorker(encoder, out).run(shards[1:2])
    other = load_encoder(str(checkpoints / "two"), device="cpu")
    for refused in (ShardWorker(other, out), ShardWorker(encoder, out, FULL)):
        with pytest.raises(ValueError, match=r"00001\.parquet has (fingerprint|.*stored 'float16', not 'float32')"):
            refused.run(shards)
    assert [path.name for path in out.glob("*.parquet")] == ["00001.parquet"]
    pq.write_table(pa.table({"x": [1]}), out / "00000.parquet")
    with pytest.raises(ValueError, match=r"00000\.parquet is a parquet file that mpclip embed has not written"):
        ShardWorker(encoder, out).run(shards)


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(encoder, tars, tmp_path, capsys, checkpoints):
    whole = (tars / "00001.tar").read_bytes()
    second = whole.index(b"000010001.jpg")
    for end in (second, second + 600):  # between two files, which tarfile takes for the end, and within one
        (tars / "00001.tar").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"00001\.tar is no whole tar file"):
            list(open_shards(tars)[1].samples())
    command = ["--model", str(checkpoints / "one"), "--data", str(tars), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    told = capsys.readouterr().out
    assert ended.value.code == 1 and "2 shards embedded now (10 pictures, 4 unreadable)" in told
    assert "failed: 00001:" in told and "no whole tar file" in told
    write_tar(tars / "00001.tar", 10_000)
    main(command)
    assert "1 shards embedded now (5 pictures, 2 unreadable), 2 were there" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"part '0/3': expected such as 3/8"):
        main([*command, "--part", "0/3"])


def test_embeddings_that_are_not_finite_are_not_written(checkpoints, tars, tmp_path):
    broken = load_encoder(str(checkpoints / "one"), device="cpu")
    plain = broken.embed_images
    broken.embed_images = lambda images: plain(images) * torch.tensor(float("nan"))
    done = ShardWorker(broken, tmp_path / "out").run(open_shards(tars)[:1])
    assert "embeddings that are not finite, of 000000000" in done.failed["00000"]
    assert not list((tmp_path / "out").iterdir())
