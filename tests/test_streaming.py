"""Streams of shards: what is read, in which order, and that a position goes on exactly."""

import functools
import http.server
import io
import json
import tarfile
import threading
from collections import Counter

import datasets
import pytest
import torch
from tiny_pictures import jpeg, records, write_folder

from mpclip.data.image_text import UnreadablePicture
from mpclip.data.reading import ReadingOptions
from mpclip.data.shard_writing import write_shards
from mpclip.data.stream_order import START, drawn_samples
from mpclip.data.stream_pairs import StreamedPairs
from mpclip.data.streaming import numbered_addresses, open_shards

pytestmark = pytest.mark.usefixtures("datasets_cache")


def write_tar(file, samples: list[dict[str, bytes]]) -> None:
    """A tar with the files of each sample: ending -> content."""
    with tarfile.open(file, "w") as tar:
        for i, files in enumerate(samples):
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{file.stem}{i:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Five shards of 7 to 11 samples, as img2dataset leaves them, 45 in all."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(5):
        count = 7 + shard
        samples = [
            {"jpg": jpeg(i % 3), "txt": f"caption {i} of {shard}".encode(), "json": b'{"error_message": null}'}
            for i in range(count)
        ]
        write_tar(folder / f"{shard:05d}.tar", samples)
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 99, "successes": count}))
    return folder


def opened(source, **reading):
    return open_shards(str(source), "train", ReadingOptions(**reading))


def drawn(shards, count: int, position=START, buffer: int = 8, reader: int = 0, readers: int = 1, seed: int = 0) -> list[tuple]:
    """(name of a sample or None, position behind it), as many as asked for."""
    order = drawn_samples(shards, seed, reader, readers, buffer, position, lambda name, fault: pytest.fail(str(fault)))
    return [(sample and sample.name, position) for _, (sample, position) in zip(range(count), order, strict=False)]


# What is read ----------------------------------------------------------------------------------------------------------


def test_tars_of_img2dataset(tars):
    shards = opened(tars)
    assert shards.names == [f"{i:05d}.tar" for i in range(5)] and shards.total == 45
    samples = list(shards.samples(1))
    assert len(samples) == 8 and samples[3].name == "00001.tar/000010003.jpg"
    assert samples[3].captions == ["caption 3 of 1"] and samples[3].picture["bytes"] == jpeg(0)
    assert [sample.name for sample in shards.samples(1, 5)] == [sample.name for sample in samples[5:]]
    assert opened(tars / "*3.tar").names == ["00003.tar"]


def test_parquet_and_its_columns(tmp_path):
    cells = [{"bytes": jpeg(i % 3), "path": None} for i in range(40)]
    rows = datasets.Dataset.from_dict({"photo": cells, "a": [f"a {i}" for i in range(40)], "b": [f"b {i}" for i in range(40)]})
    rows = rows.cast_column("photo", datasets.Image())
    rows.select(range(30)).to_parquet(tmp_path / "0.parquet")
    rows.select(range(30, 40)).to_parquet(tmp_path / "1.parquet")
    shards = opened(tmp_path, image_column="photo", caption_column="a,b")
    assert shards.names == ["0.parquet", "1.parquet"] and shards.total == 40
    first, second = (list(shards.samples(i)) for i in range(2))
    assert len(first) == 30 and second[4].captions == ["a 34", "b 34"] and second[4].picture["bytes"] == jpeg(1)
    assert [sample.name for sample in shards.samples(0, 18)] == [f"0.parquet, row {i}" for i in range(18, 30)]
    with pytest.raises(ValueError, match="no column is named image"):
        opened(tmp_path)


def test_webdataset_by_the_loader_of_datasets(tars):
    """As data sets of the Hub are read."""
    from mpclip.data.streaming import TableShards, _load, _numbered

    rows = _load("webdataset", split="train", data_files={"train": f"{tars}/*.tar"})
    shards = TableShards(rows, _numbered(rows), None, ReadingOptions(), None)
    assert len(shards.names) == 5
    own = opened(tars)
    for i in range(5):
        expected = [(sample.captions, sample.picture["bytes"]) for sample in own.samples(i)]
        assert [(sample.captions, sample.picture["bytes"]) for sample in shards.samples(i)] == expected


@pytest.fixture
def served(tars):
    """The address of a server on this machine that gives the shards."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *given):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tars)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_tars_at_addresses(tars, served, tmp_path):
    """Samples and batches are those of the files, from any position; what is not there is named."""
    shards, own = opened(f"{served}/{{00000..00004}}.tar"), opened(tars)
    assert len(shards.names) == 5 and shards.total is None
    for shard, start in ((0, 0), (4, 3)):
        expected = [(sample.captions, sample.picture["bytes"]) for sample in own.samples(shard, start)]
        assert [(sample.captions, sample.picture["bytes"]) for sample in shards.samples(shard, start)] == expected
    found, expected = (batches(StreamedPairs(one, 4, samples_per_epoch=45), 8) for one in (shards, own))
    assert [len(batch["examples"]) for batch in found] == [len(batch["examples"]) for batch in expected] == [4] * 8
    assert len(opened(f"{served}/00003.tar").names) == 1
    with pytest.raises(ValueError, match=r"could not open it .*00005\.tar"):
        opened(f"{served}/{{00003..00005}}.tar")
    with pytest.raises(ValueError, match=r"samples is unknown.* Set --samples_per_epoch"):
        StreamedPairs(shards, 4)


def test_shards_of_ours_at_an_address(served, tars, tmp_path):
    """They have a file of captions where a picture has several, and a text alone where it has one."""
    counts = {"later": [2] * 7 + [1], "first": [1, 2]}  # captions of the pictures
    for name, several in counts.items():
        rows = [{"file_name": f"{i}.png", "captions": ["alone", f"{i}"][:count]} for i, count in enumerate(several)]
        write_shards(str(write_folder(tmp_path / name, rows)), "train", tars / name, shards=1)
    captions = [sample.captions for sample in opened(tars / "later").samples(0)]
    assert sorted(map(len, captions)) == [1] + [2] * 7
    assert [sample.captions for sample in opened(f"{served}/later/00000.tar").samples(0)] == captions
    with pytest.raises(ValueError, match=r"don't share .* the same types"):  # `datasets` looks at the first five
        opened(f"{served}/first/00000.tar")


def test_numbers_in_braces():
    assert numbered_addresses("https://a.org/x.tar") == ["https://a.org/x.tar"]
    assert numbered_addresses("s/{08..10}.tar?k") == ["s/08.tar?k", "s/09.tar?k", "s/10.tar?k"]
    for odd, message in (("{1..2}/{1..2}", "one range"), ("{a,b}", "one range"), ("{3..1}", "no range")):
        with pytest.raises(ValueError, match=message):
            numbered_addresses(f"https://a.org/{odd}.tar")


def test_what_cannot_be_streamed_is_refused(tars, tmp_path):
    with pytest.raises(ValueError, match=r"split 'train\[:90%\]': a stream has no parts"):
        open_shards(str(tars), "train[:90%]", ReadingOptions())
    with pytest.raises(ValueError, match=r"no split 'validation'; splits found .*'train'"):
        open_shards(str(tars), "validation", ReadingOptions())
    write_folder(tmp_path / "photos", records(2))
    with pytest.raises(FileNotFoundError, match=r"no tars and no parquet files .* python -m mpclip\.data\.shards"):
        opened(tmp_path / "photos")
    write_tar(tmp_path / "00000.tar", [{"jpg": jpeg(0), "json": b'{"title": "a"}'}] * 3)
    with pytest.raises(ValueError, match="none of the first 3 samples has a caption"):
        opened(tmp_path / "00000.tar")
    assert next(opened(tmp_path / "00000.tar", caption_column="title").samples(0)).captions == ["a"]
    cells = [{"bytes": None, "path": "/etc/hostname"}]
    datasets.Dataset.from_dict({"image": cells, "text": ["a"]}).to_parquet(tmp_path / "paths.parquet")
    with pytest.raises(ValueError, match="refused the image path '/etc/hostname'"):
        opened(tmp_path / "paths.parquet")


# In which order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 8, 100])
def test_any_position_goes_on_exactly(tars, buffer):
    shards = opened(tars)
    whole = drawn(shards, 140, buffer=buffer)
    for k in (0, 6, 7, 8, 30, 43, 44, 45, 46, 60, 91, 92):
        assert drawn(shards, 140 - k - 1, whole[k][1], buffer) == whole[k + 1 :], k
        assert json.loads(json.dumps(whole[k][1])) == whole[k][1]


def test_each_pass_has_every_sample_once_in_another_order(tars):
    shards = opened(tars)
    names = [name for name, _ in drawn(shards, 3 * 46)]
    passes = [names[i : i + 45] for i in (0, 46, 92)]
    assert names[45] is names[91] is names[137] is None
    assert len({tuple(order) for order in passes}) == 3 and all(len(set(order)) == 45 for order in passes)
    assert [name for name, _ in drawn(shards, 3 * 46)] == names
    assert [name for name, _ in drawn(shards, 3 * 46, seed=1)] != names


def test_readers_share_every_pass(tars):
    shards = opened(tars)
    for number in range(3):
        names = [name for reader in range(2) for name, position in drawn(shards, 100, reader=reader, readers=2) if name
                 and position["pass"] == number]  # fmt: skip
        assert len(names) == 45 == len(set(names))


def test_a_buffer_of_one_keeps_the_order_of_a_shard(tars):
    names = [name for name, _ in drawn(opened(tars / "00004.tar"), 11, buffer=1)]
    assert names == [f"00004.tar/00004{i:04d}.jpg" for i in range(11)]


# Batches ---------------------------------------------------------------------------------------------------------------


def batches(pairs: StreamedPairs, count: int) -> list[dict]:
    loader = torch.utils.data.DataLoader(pairs, batch_size=None, num_workers=pairs.workers, collate_fn=_same)
    return [batch for _, batch in zip(range(count), loader, strict=False)]


def _same(item):
    return item


def names_of(found: list[dict]) -> list[list[str]]:
    return [[example["name"] for example in batch["examples"]] for batch in found]


def test_batches_of_workers_and_what_is_left_out_of_a_pass(tars):
    pairs = StreamedPairs(opened(tars), 4, buffer=8, workers=2)
    assert pairs.batches_per_epoch == 45 // 2 // 4 * 2 == 10 and len(pairs) == 40
    found = batches(pairs, 10)
    assert [batch["lane"] for batch in found] == [0, 1] * 5
    assert all(len(set(names)) == 4 for names in names_of(found))
    # A resumed loader begins with the other reader, where each of them was.
    again = StreamedPairs(opened(tars), 4, buffer=8, workers=2)
    again.first, again.positions = 1, [found[2]["position"], found[1]["position"]]
    assert names_of(batches(again, 7)) == names_of(found)[3:]
    one = StreamedPairs(opened(tars), 4, buffer=8)
    names = names_of(batches(one, 12))
    assert len({name for batch in names[:11] for name in batch}) == 44  # of 45, without the rest
    assert {name for batch in names[:11] for name in batch} & set(names[11])  # the next pass


def test_captions_are_drawn_anew_in_every_pass(tmp_path):
    rows = [{"file_name": f"{i}.png", "captions": [f"{word} {i}" for word in "abcde"]} for i in range(12)]
    write_shards(str(write_folder(tmp_path / "data", rows)), "train", tmp_path / "out", shards=2)
    found = batches(StreamedPairs(opened(tmp_path / "out"), 4, seed=1), 9)
    captions = {}
    for batch in found:
        for example in batch["examples"]:
            [caption] = example["captions"]
            captions.setdefault(example["name"], []).append(caption)
    assert sorted(map(len, captions.values())) == [3] * 12
    assert len({caption for drawn in captions.values() for caption in drawn}) > 20
    again = batches(StreamedPairs(opened(tmp_path / "out"), 4, seed=1, buffer=3), 3)  # whatever the order
    for example in again[0]["examples"]:
        assert example["captions"][0] == captions[example["name"]][0]


def test_what_cannot_be_read_is_left_out_and_told(tmp_path):
    good = {"jpg": jpeg(0), "txt": b"a"}
    bad = {"jpg": b"no picture", "txt": b"b"}
    write_tar(tmp_path / "00000.tar", [good, bad, good, {"jpg": jpeg(1), "txt": b" "}, good, {"jpg": jpeg(1), "txt": b"\xff"}])
    write_tar(tmp_path / "00001.tar", [good] * 30)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[:-15000])
    pairs = StreamedPairs(opened(tmp_path), 2, samples_per_epoch=10)
    found = batches(pairs, 48)
    told = Counter(fault for batch in found for fault in batch["faults"])
    kinds = dict(list(told))
    assert "00000.tar/000000001.jpg (not an image)" in {name for _, name in told}
    assert kinds["samples without a caption"].startswith("00000.tar/00000000")
    assert kinds["shards that are cut short"].startswith("00001.tar cannot be read to its end")
    assert len(told) == 4 and min(told.values()) >= 2  # again in each pass
    with pytest.raises(UnreadablePicture, match="Repair or remove it, or set --bad_images skip"):
        batches(StreamedPairs(opened(tmp_path), 2, samples_per_epoch=10, bad_images="fail"), 24)
    write_tar(tmp_path / "00001.tar", [bad] * 5)
    with pytest.raises(UnreadablePicture, match="has 3 samples that can be used, fewer than a batch of 4"):
        batches(StreamedPairs(opened(tmp_path), 4, samples_per_epoch=10), 1)


def test_streams_that_fill_no_batch_are_refused(tars, tmp_path):
    with pytest.raises(
        ValueError, match=r"2 processes with 3 workers each read 6 shards at a time, but there are 5.*to 2 or less"
    ):
        StreamedPairs(opened(tars), 4, workers=3, processes=2)
    with pytest.raises(ValueError, match=r"45 samples are 22 for each of 2 readers .*, fewer than a batch of 23"):
        StreamedPairs(opened(tars), 23, processes=2)
    write_tar(tmp_path / "00000.tar", [{"jpg": jpeg(0), "txt": b"a"}] * 3)
    with pytest.raises(ValueError, match=r"the number of samples is unknown.*--samples_per_epoch"):
        StreamedPairs(opened(tmp_path), 2)
