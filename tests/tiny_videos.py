"""Video files of a few grey frames, encoded by PyAV, and what can be wrong with one."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 48, 32
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx", ".avi": "mpeg4", ".mov": "libx264"}
QUARTER_TURNS = {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}  # clockwise -> matrix of the track


def grey(values: Sequence[int]) -> list[np.ndarray]:
    """A frame for each value, (H, W, 3) uint8, with a white square in the upper left corner."""
    frames = [np.full((HEIGHT, WIDTH, 3), value, np.uint8) for value in values]
    for frame in frames:
        frame[:10, :10] = 255
    return frames


def write_video(path: Path, frames: Sequence[np.ndarray], times: Sequence[int] | None = None, **options: str) -> Path:
    """Write frames to a file, at 10 per second, or at `times` in milliseconds; `options` are those of the codec."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=10, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times:
                picture.pts, picture.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file with a sound and no video."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for i in range(2):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turned(path: Path, quarter_turns: int) -> Path:
    """A copy of an MP4 file whose track is flagged to be shown turned, clockwise."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (65536 * x for x in QUARTER_TURNS[quarter_turns])
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    copy = path.with_name(f"turned{quarter_turns}.mp4")
    copy.write_bytes(content)
    return copy


def shades(frames) -> list[int]:
    """The grey value in the middle of each frame, rounded to tens: encoding changes it a little."""
    return [10 * round(int(np.asarray(frame)[HEIGHT // 2, WIDTH // 2 - 8, 0]) / 10) for frame in frames]


def corner(frame) -> str:
    """In which corner the white square is."""
    frame = np.asarray(frame)
    rows, columns = {"top": 3, "bottom": -4}, {"left": 3, "right": -4}
    return next(f"{r} {c}" for r in rows for c in columns if frame[rows[r], columns[c], 0] > 230)
