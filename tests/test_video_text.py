"""Clips with captions, as a folder and as MSR-VTT and MSVD are published; training examples of them."""

import json
import pickle

import pytest
import torch
from tiny_videos import grey, write_sound, write_video

from mpclip.data.skipped import count_skipped
from mpclip.data.video_text import VideoTextDataset, load_video_text, middle_frames

pytest.importorskip("av", reason="needs PyAV: pip install 'mpclip[video]'")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", grey([0, 100, 200]))


def put(video, *paths) -> None:
    """Copies of a video."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video.read_bytes())


def test_a_folder_with_metadata(video, tmp_path):
    put(video, tmp_path / "a.mp4", tmp_path / "deep" / "b.mp4", tmp_path / "c.mp4")
    rows = [
        {"file_name": "a.mp4", "captions": ["a cat", "the cat"], "split": "test", "pair": 1},
        {"file_name": "deep/b.mp4", "captions": ["a dog"], "split": "test", "pair": 2},
        {"file_name": "a.mp4", "captions": ["once more"], "split": "test", "pair": 1},
        {"file_name": "c.mp4", "captions": ["a cow"], "split": "train", "pair": 3},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_video_text(tmp_path, "test")
    assert loaded["captions"][:] == [["a cat", "the cat", "once more"], ["a dog"]]  # one row per clip
    assert loaded["video"][:] == [str(tmp_path / "a.mp4"), str(tmp_path / "deep" / "b.mp4")]
    assert loaded["pair"][:] == [1, 2]
    assert load_video_text(tmp_path, "test[50%:]")["file_name"][:] == ["deep/b.mp4"]
    assert len(load_video_text(tmp_path, "test", limit=1)) == 1
    with pytest.raises(ValueError, match="has no split 'validation'"):
        load_video_text(tmp_path, "validation")


def test_what_cannot_be_used_is_named_and_counted(video, tmp_path):
    put(video, tmp_path / "good.mp4")
    write_sound(tmp_path / "sound.mp4")
    names = ["good.mp4", "sound.mp4", "missing.mp4"]
    lines = [{"file_name": name, "caption": "a cat"} for name in names] + [{"file_name": "good2.mp4", "caption": ""}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.warns(UserWarning) as warned, count_skipped() as skipped:
        rows = load_video_text(tmp_path, "train")
    told = " ".join(str(one.message) for one in warned)
    assert rows["file_name"][:] == ["good.mp4"]
    assert "sound.mp4 (no video stream)" in told and "missing.mp4 (no such file)" in told and "good2.mp4 (no caption)" in told
    assert skipped == {"rows without a caption": 1, "rows with a video that cannot be decoded": 3}
    with pytest.raises(ValueError, match=r"rows without a caption: good2\.mp4"):
        load_video_text(tmp_path, "train", bad_images="fail")


def msrvtt(folder, video) -> None:
    """Four clips: two of train, one each of validate and test; those of 1kA are named by tables."""
    ids = [f"video{i}" for i in range(4)]
    put(video, *(folder / "videos" / f"{name}.mp4" for name in ids))
    content = {
        "videos": [{"video_id": n, "split": s} for n, s in zip(ids, ("train", "train", "validate", "test"), strict=True)],
        "sentences": [{"video_id": name, "caption": f"{name} {k}", "sen_id": k} for name in ids for k in range(2)],
    }
    (folder / "MSRVTT_data.json").write_text(json.dumps(content))


def test_msrvtt(video, tmp_path):
    msrvtt(tmp_path, video)
    rows = load_video_text(tmp_path, "validation")
    assert rows["captions"][:] == [["video2 0", "video2 1"]]
    assert rows["video"][:] == [str(tmp_path / "videos" / "video2.mp4")]
    assert load_video_text(tmp_path / "MSRVTT_data.json", "train")["file_name"][:] == ["video0", "video1"]

    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr3,video3,a man, singing\n")
    with pytest.raises(ValueError, match="5 cells, but the header has 4"):
        load_video_text(tmp_path, "test")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text('key,vid_key,video_id,sentence\nret0,msr3,video3,"a man, singing"\n')
    rows = load_video_text(tmp_path, "test")  # 1kA: one sentence of each clip
    assert rows["captions"][:] == [["a man, singing"]] and rows["file_name"][:] == ["video3"]

    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo2\nvideo0\n")
    rows = load_video_text(tmp_path, "train")  # captions of the JSON, clips of the table
    assert rows["captions"][:] == [["video2 0", "video2 1"], ["video0 0", "video0 1"]]
    (tmp_path / "MSRVTT_train.7k.csv").write_text("video_id\nvideo2\n")
    with pytest.raises(ValueError, match=r"several tables of the split 'train': MSRVTT_train.7k.csv, MSRVTT_train.9k.csv"):
        load_video_text(tmp_path, "train")
    with pytest.raises(ValueError, match=r"MSRVTT_JSFUSION_test.csv has no column `split`, and is 'test' by its name"):
        load_video_text(tmp_path / "MSRVTT_JSFUSION_test.csv", "train")


def test_msvd(video, tmp_path):
    names = ["-4wsuPCjDBc_5_15", "7NNg0_n-bS8_21_30", "ECPN8V_v0bM_0_5"]
    put(video, *(tmp_path / "YouTubeClips" / f"{name}.avi" for name in names))
    for name, ids in {"train": names[:1], "val": names[1:2], "test": names[2:]}.items():
        (tmp_path / f"{name}_list.txt").write_text("\n".join(ids) + "\n")
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"raw-captions.pkl is a pickle, which runs code when it is read: convert it to JSON"):
        load_video_text(tmp_path, "test")
    (tmp_path / "captions_msvd.json").write_text(json.dumps({name: [f"{name} {k}" for k in range(3)] for name in names}))
    for split, name in zip(("train", "validation", "test"), names, strict=True):
        rows = load_video_text(tmp_path, split)
        assert rows["file_name"][:] == [name] and rows["captions"][:] == [[f"{name} {k}" for k in range(3)]]
        assert rows["video"][0].endswith(f"YouTubeClips/{name}.avi")
    (tmp_path / "test_list.txt").write_text("unknown\n")
    with pytest.raises(ValueError, match=r"captions_msvd.json has no captions of 1 of the ids .*: unknown"):
        load_video_text(tmp_path, "test")


def test_columns_and_places_that_do_not_fit(video, tmp_path):
    put(video, tmp_path / "a" / "1.mp4", tmp_path / "b" / "1.mp4")
    (tmp_path / "clips.csv").write_text("number,wording\n1,a cat\n")
    with pytest.raises(
        ValueError, match=r"clips.csv has no column 'video' or .*it has \['number', 'wording'\]. Set video_column"
    ):
        load_video_text(tmp_path / "clips.csv", "train")
    named = {"video_column": "number", "caption_column": "wording"}
    with pytest.raises(ValueError, match=r"'1' is in several places: .*Set image_folder to one"):
        load_video_text(tmp_path / "clips.csv", "train", **named)
    rows = load_video_text(tmp_path / "clips.csv", "train", image_folder="b", **named)
    assert rows["video"][:] == [str(tmp_path / "b" / "1.mp4")] and rows["captions"][:] == [["a cat"]]
    (tmp_path / "clips.csv").write_text("video,caption\n../outside.mp4,a cat\n")
    with pytest.raises(ValueError, match=r"refused '../outside.mp4'"):
        load_video_text(tmp_path / "clips.csv", "train")
    with pytest.raises(FileNotFoundError, match="nothing at nowhere"):
        load_video_text("nowhere", "train")


def test_examples_of_clips(video, tmp_path):
    put(video, tmp_path / "a.mp4", tmp_path / "b.mp4")
    lines = [{"file_name": f"{name}.mp4", "captions": [f"{name} {k}" for k in range(5)]} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = load_video_text(tmp_path, "train")
    examples = VideoTextDataset(rows, "random", num_frames=2)
    item = examples[1]
    assert item["index"] == 1 and item["captions"][0].startswith("b ") and [f.size for f in item["image"]] == [(48, 32)] * 2
    drawn = set()
    for epoch in range(10):
        examples.set_epoch(epoch)
        drawn.add(examples[0]["captions"][0])
    assert len(drawn) > 2
    assert "image" not in VideoTextDataset(rows, with_clips=False)[0]
    loader = torch.utils.data.DataLoader(examples, batch_size=2, collate_fn=list, num_workers=1)
    assert [len(item["image"]) for item in next(iter(loader))] == [2, 2]
    assert middle_frames(rows, 3)["image"][0].size == (48, 32)
