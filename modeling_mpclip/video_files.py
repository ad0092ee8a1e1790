"""Video files -> frames, by the loader of transformers, which uses PyAV (`pip install av`)."""

import math
import os
import struct
from typing import BinaryIO

import numpy as np
from transformers.utils import is_av_available, logging
from transformers.video_utils import VideoMetadata, load_video

from .model_options import NUM_FRAMES

logger = logging.get_logger(__name__)

Span = tuple[int, int]  # of bytes in a file
QUARTER_TURNS = {(1, 0, 0, 1): 0, (0, 1, -1, 0): 1, (-1, 0, 0, -1): 2, (0, -1, 1, 0): 3}  # matrix (a, b, c, d) -> clockwise


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` things at even distances: the middles of equal parts. All of them if there are fewer."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)] if count < total else list(range(total))


def video_frames(file: str | os.PathLike, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Read frames at even distances from a video file (ours).

    Args:
        file: path of a file that FFmpeg decodes, such as .mp4, .avi, .mkv, .webm or .gif.
        num_frames: how many. A shorter clip gives all of its frames. They are spread by number, not by time, which matters
            where the frame rate varies.

    Returns:
        (T, H, W, 3) uint8, RGB, upright: turned as the rotation flag of an MP4 or MOV file says. If only the first part of a
        damaged file can be decoded, the frames are from that part, and a warning says so.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: PyAV is not installed.
        ValueError: the file has no video stream, or no frame that can be decoded.
    """
    path = str(file)
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames}: expected at least 1.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no video file {path!r}.")
    if not is_av_available():
        raise ImportError(f"Reading {path!r} needs the package PyAV: pip install av")
    frames = _frames_by_header(path, num_frames)
    if frames is None:
        frames = _load(path, spread(num_frames, _counted(path)))
    return np.ascontiguousarray(np.rot90(frames, -_quarter_turns(path), axes=(1, 2)))  # (T, H, W, 3)


def _load(path: str, wanted) -> np.ndarray:
    """The frames with these numbers, (T, H, W, 3); `wanted` may be a function of the metadata that returns them."""
    choose = wanted if callable(wanted) else lambda metadata: wanted
    return load_video(path, backend="pyav", sample_indices_fn=lambda metadata, **_: choose(metadata))[0]


def _frames_by_header(path: str, num_frames: int) -> np.ndarray | None:
    """The frames, if the file's header tells their number and is right."""
    wanted: list[int] = []

    def choose(metadata: VideoMetadata) -> list[int]:
        wanted.extend(spread(num_frames, metadata.total_num_frames))
        return wanted

    try:
        frames = _load(path, choose)
    except Exception:  # of many types: no number in the header, a damaged packet. `_counted` finds out which
        return None
    return frames if len(frames) == len(wanted) else None


class _Count:
    """Stands for the numbers of the frames to keep. It keeps the first and counts all; the loader asks in their order."""

    def __init__(self):
        self.frames, self.header = 0, 0

    def __call__(self, metadata: VideoMetadata) -> "_Count":
        self.header = metadata.total_num_frames
        return self

    def __getitem__(self, position: int) -> float:  # the loader stops after the last number, which is asked for by -1
        return math.inf

    def __contains__(self, number: int) -> bool:
        self.frames = number + 1
        return number == 0


def _counted(path: str) -> int:
    """How many frames can be decoded, from the first one on. Decodes them all.

    Raises:
        ValueError: none.
    """
    count, fault = _Count(), None
    try:
        _load(path, count)
    except IndexError:
        raise ValueError(f"{path} has no video stream; expected a video. Is it a sound file?") from None
    except Exception as error:  # of many types, by the kind of damage
        fault = error
    if fault is not None:
        count.frames -= 1  # the loader decodes one frame more than it is asked for
    if count.frames < 1:
        why = "; ".join(filter(None, ["it is empty" if not os.path.getsize(path) else "", str(fault or "")]))
        raise ValueError(f"{path} has no frame that can be decoded ({why}). Repair it, or leave it out.") from fault
    if fault is not None or count.frames < count.header:
        logger.warning(f"{path} is damaged: only its first {count.frames} frames can be decoded, and are used.")
    return count.frames


def _quarter_turns(path: str) -> int:
    """By how many quarter turns, clockwise, the frames of an MP4 or MOV file are to be turned. 0 for other files.

    Phones write a turned video and note the turn in the matrix of the track. The loader does not read it.
    """
    with open(path, "rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return 0
        try:
            for movie in _boxes(file, b"moov", (0, os.path.getsize(path))):
                for track in _boxes(file, b"trak", movie):
                    (media,) = _boxes(file, b"mdia", track)
                    ((handler, _),) = _boxes(file, b"hdlr", media)
                    file.seek(handler + 8)
                    if file.read(4) == b"vide":
                        return QUARTER_TURNS.get(_matrix(file, track), 0)
        except (struct.error, ValueError):  # cut off, or without a box
            pass
    return 0


def _matrix(file: BinaryIO, track: Span) -> tuple[int, ...]:
    """The matrix (a, b, c, d) of a track, rounded: of a turn by quarters all are 0, 1 or -1."""
    ((start, _),) = _boxes(file, b"tkhd", track)
    file.seek(start)
    file.seek(start + (52 if file.read(1) == b"\x01" else 40))  # version 1 has longer dates
    a, b, _, c, d = (round(number / 65536) for number in struct.unpack(">5i", file.read(20)))  # 16.16 fixed point
    return a, b, c, d


def _boxes(file: BinaryIO, kind: bytes, span: Span) -> list[Span]:
    """The contents of the boxes of a kind within a part of an MP4 file."""
    found = []
    start, end = span
    while start + 8 <= end:
        file.seek(start)
        size, name = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            size, head = struct.unpack(">Q", file.read(8))[0], 16
        size = size or end - start  # 0: up to the end
        if size < head:
            break
        if name == kind:
            found.append((start + head, min(start + size, end)))
        start += size
    return found
