"""Frames of video files: which are taken, which way up, and what is said of files that are faulty."""

import logging

import numpy as np
import PIL.Image
import pytest
import tiny_videos
import torch
from conftest import make_model, make_processor
from tiny_videos import corner, grey, shades, write_sound, write_video

from modeling_mpclip.video_files import spread, video_frames
from mpclip.data.video import Clips, fault_of_video, faults_of_videos, identity_of_videos, read_clip

pytest.importorskip("av", reason="needs PyAV: pip install 'mpclip[video]'")
VALUES = list(range(0, 120, 10))  # of twelve frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", grey(VALUES))


def test_frames_are_the_middles_of_equal_parts():
    assert spread(4, 12) == [1, 4, 7, 10] and spread(1, 9) == [4] and spread(3, 4) == [0, 2, 3]
    assert spread(8, 3) == [0, 1, 2]
    for count, total in ((5, 17), (8, 100), (7, 8)):
        middles = [(i + 0.5) * total / count for i in range(count)]
        assert spread(count, total) == [int(middle) for middle in middles]


@pytest.mark.parametrize("ending", tiny_videos.CODECS)
def test_the_same_frames_from_every_container(ending, tmp_path):
    """.mkv and .webm do not say how many frames they have."""
    path = write_video(tmp_path / f"clip{ending}", grey(VALUES))
    frames = video_frames(path, 4)
    assert frames.shape == (4, 32, 48, 3) and frames.dtype == np.uint8
    assert shades(frames) == [10, 40, 70, 100]
    assert shades(video_frames(path, 1)) == [60]
    assert shades(video_frames(path, 50)) == VALUES  # a short clip has no more than it has


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_a_varying_frame_rate(ending, tmp_path):
    times = [0, 10, 20, 30, 400, 900, 1000, 1010, 1020, 3000, 3500, 3600]
    path = write_video(tmp_path / f"clip{ending}", grey(VALUES), times)
    assert shades(video_frames(path, 4)) == [10, 40, 70, 100]


@pytest.mark.parametrize("turns, place", [(0, "top left"), (1, "top right"), (2, "bottom right"), (3, "bottom left")])
def test_a_turned_video_is_upright(clip, turns, place):
    """Frames of PyAV have the angle by which they are to be turned; the loader of transformers ignores it."""
    import av

    path = tiny_videos.turned(clip, turns)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation % 360 == -90 * turns % 360
    for frames in (video_frames(path, 2), read_clip(path, 2, "keyframes")):
        assert {corner(frame) for frame in frames} == {place}


def test_key_frames(tmp_path):
    path = write_video(tmp_path / "clip.mp4", grey(VALUES), g="3", sc_threshold="0", bf="0")  # a key frame in every three
    assert shades(read_clip(path, 10, "keyframes")) == [0, 30, 60, 90]
    assert shades(read_clip(path, 2, "keyframes")) == [30, 90]
    with pytest.raises(ValueError, match="sampling='random' is unknown; use one of 'uniform', 'keyframes'"):
        read_clip(path, 2, "random")


# Faulty files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path, clip):
    """What is wrong -> a file."""
    content = clip.read_bytes()
    files = {"sound": write_sound(tmp_path / "sound.mp4")}
    for name, part in {"empty": b"", "text": b"no video" * 50, "cut": content[: len(content) // 2]}.items():
        files[name] = tmp_path / f"{name}.mp4"
        files[name].write_bytes(part)
    files["missing"] = tmp_path / "missing.mp4"
    return files


def test_faulty_files_are_named(faulty):
    messages = {
        "sound": r"sound.mp4 has no video stream; expected a video",
        "empty": r"empty.mp4 has no frame that can be decoded \(it is empty",
        "text": r"text.mp4 has no frame that can be decoded \(.*Invalid data",
        "cut": r"cut.mp4 has no frame that can be decoded",
    }
    for kind, message in messages.items():
        with pytest.raises(ValueError, match=message):
            video_frames(faulty[kind])
    with pytest.raises(FileNotFoundError, match=r"There is no video file '.*missing.mp4'"):
        video_frames(faulty["missing"])
    with pytest.raises(ValueError, match="num_frames=0: expected at least 1"):
        video_frames(faulty["text"], 0)


def test_a_check_finds_them_all(faulty, clip):
    paths = [str(path) for path in (clip, *faulty.values())]
    faults = faults_of_videos(paths)
    assert list(faults) == [1, 2, 3, 4, 5]
    assert faults[1] == "no video stream" and faults[5] == "no such file"
    assert fault_of_video(clip.parent) == "not a file"


def test_the_first_part_of_a_damaged_file_is_used_with_a_warning(tmp_path, caplog, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (16, 32, 48, 3)).astype(np.uint8)
    path = write_video(tmp_path / "clip.avi", list(noise))
    content = path.read_bytes()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for name, part in {"cut": content[: len(content) * 2 // 3], "whole": content}.items():
        (tmp_path / f"{name}.avi").write_bytes(part)
    whole, cut = video_frames(tmp_path / "whole.avi", 100), video_frames(tmp_path / "cut.avi", 100)
    assert len(whole) == 16 and 2 < len(cut) < 16
    assert np.array_equal(cut, whole[: len(cut)])
    assert f"cut.avi is damaged: only its first {len(cut)} frames can be decoded" in caplog.text
    assert "whole.avi" not in caplog.text


def test_without_pyav_the_message_says_what_to_install(clip, monkeypatch):
    monkeypatch.setattr("modeling_mpclip.video_files.is_av_available", lambda: False)
    with pytest.raises(ImportError, match=r"needs the package PyAV: pip install av"):
        video_frames(clip)


# The processor, and clips that are decoded ahead -------------------------------------------------------------------


def test_the_processor_takes_paths(clip, tokenizer):
    make_model(tokenizer=tokenizer)
    processor = make_processor(tokenizer)
    frames = [PIL.Image.fromarray(frame) for frame in video_frames(clip, 8)]
    expected = processor(videos=[frames])
    for videos in (clip, str(clip), [str(clip)]):
        batch = processor(videos=videos)
        assert torch.equal(batch["pixel_values_videos"], expected["pixel_values_videos"])
        assert batch["frame_mask"].tolist() == [[1] * 8]
    for given in ({"num_frames": 3}, {"videos_kwargs": {"num_frames": 3}}):
        batch = processor(text=["a cat"], videos=[clip, frames], **given)
        assert batch["frame_mask"].sum(dim=1).tolist() == [3, 8] and "input_ids" in batch
    with pytest.raises(FileNotFoundError, match=r"There is no video file 'nowhere.mp4'"):
        processor(videos="nowhere.mp4")


def test_clips_are_decoded_once_and_ahead(clip, monkeypatch):
    read = []
    monkeypatch.setattr("mpclip.data.video.read_clip", lambda path, *how: read.append(path) or [path])
    paths = [f"{i}.mp4" for i in range(10)]
    clips = Clips(paths, 4, threads=1)
    assert not read and len(clips) == 10
    assert clips[0:3] == [[path] for path in paths[:3]]
    assert clips[3:6] == [[path] for path in paths[3:6]]
    clips._pool.submit(lambda: None).result()  # all that was asked for is done
    assert read == paths[:9]  # the third batch is there before it is asked for
    assert clips[6:9] + clips[9:12] == [[path] for path in paths[6:]]
    assert sorted(read) == sorted(paths)


def test_an_error_in_a_thread_comes_with_the_batch(faulty, clip):
    clips = Clips([str(clip), str(clip), str(faulty["text"]), str(clip)], 2)
    assert len(clips[0:2]) == 2
    with pytest.raises(ValueError, match=r"text.mp4 has no frame"):
        clips[2:4]


def test_videos_are_known_by_their_content(clip, tmp_path):
    copy = tmp_path / "other name.mp4"
    copy.write_bytes(clip.read_bytes())
    other = write_video(tmp_path / "other.mp4", grey(VALUES[::-1]))
    known = identity_of_videos([str(clip), str(other)])
    assert known == identity_of_videos([str(copy), str(other)]) != identity_of_videos([str(other), str(clip)])
