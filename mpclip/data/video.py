"""Clips: which frames of a video file are taken, and decoding them in threads while other clips are encoded.

    clips = Clips(["a.mp4", "b.webm"], num_frames=8)   # a sequence of lists of pictures; nothing is decoded yet
    clips[0:2]                                         # two clips; the next two are decoded meanwhile

Two samplings. "uniform": frames at even distances (`modeling_mpclip.video_files`), as `processor(videos=path)` takes them.
"keyframes": some of the frames that the file stores whole, which encoders put where the picture changes. Only these are
decoded, which is many times faster for long videos.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image

from modeling_mpclip.model_options import NUM_FRAMES
from modeling_mpclip.video_files import spread, video_frames
from mpclip.files import hash_files, xxh128_file
from mpclip.progress import progress

Sampling = Literal["uniform", "keyframes"]
SAMPLINGS: tuple[str, ...] = get_args(Sampling)
Clip = list[PIL.Image.Image]


def read_clip(path: str | os.PathLike, num_frames: int = NUM_FRAMES, sampling: Sampling = "uniform") -> Clip:
    """Some frames of a video file.

    Args:
        path: of the file.
        num_frames: how many; a shorter clip gives all of its frames, or all of its key frames.
        sampling: "uniform" or "keyframes".

    Returns:
        T pictures, RGB and upright, in the order of time.

    Raises:
        OSError, ImportError, ValueError: as `video_frames`; an unknown sampling.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling={sampling!r} is unknown; use one of {', '.join(map(repr, SAMPLINGS))}.")
    if sampling == "uniform":
        return [PIL.Image.fromarray(frame) for frame in video_frames(path, num_frames)]
    with _opened(path) as video:
        count = sum(packet.is_keyframe and packet.pts is not None for packet in video.demux(video=0))
    wanted = set(spread(num_frames, count))
    with _opened(path) as video:
        video.streams.video[0].codec_context.skip_frame = "NONKEY"
        frames = enumerate(video.decode(video=0))
        clip = [_upright(frame) for number, frame in frames if number in wanted]
    if not clip:
        raise ValueError(f"{path} has no key frame that can be decoded. Use sampling='uniform'.")
    return clip


def fault_of_video(path: str | os.PathLike) -> str | None:
    """What is wrong with a video file; None if its first frame can be decoded. Later damage is told when the clip is read."""
    if not os.path.exists(path):
        return "no such file"
    if not os.path.isfile(path):
        return "not a file"
    try:
        with _opened(path) as video:
            if not video.streams.video:
                return "no video stream"
            return None if next(video.decode(video=0), None) is not None else "no frame"
    except ImportError:
        raise
    except Exception as error:  # of many types, by the kind of damage
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


def faults_of_videos(paths: Sequence[str]) -> dict[int, str]:
    """{number: what is wrong} for video files that cannot be used; see `fault_of_video`. A thread per core looks at them."""
    faults = {}
    with progress("Checking videos", len(paths), "video") as shown, ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, fault in enumerate(pool.map(fault_of_video, paths)):
            if fault:
                faults[number] = fault
            shown.update(1)
    return faults


def identity_of_videos(paths: Sequence[str]) -> str:
    """A hash of video files by their content, in their order. Their names and dates do not count."""
    of_files = hash_files({Path(path) for path in paths}, xxh128_file, quiet=True)
    return hashlib.sha256(" ".join(of_files[Path(path)] for path in paths).encode()).hexdigest()


class Clips(Sequence):
    """Clips that are decoded when they are asked for, and the next ones ahead of that.

    Args:
        paths: of the video files.
        num_frames, sampling: as for `read_clip`.
        threads: that decode. Default: one per core.

    A slice is a list of clips. When one has been asked for, the clips of the slice that is likely next, at the same distance as
    the last one, are decoded in the background. So the memory holds the frames of two batches, and an encoder that takes
    batch after batch waits for the first one only.
    """

    def __init__(
        self, paths: Sequence[str], num_frames: int = NUM_FRAMES, sampling: Sampling = "uniform", threads: int | None = None
    ):
        self.paths, self.num_frames, self.sampling = list(paths), num_frames, sampling
        self._threads, self._pool = threads or os.cpu_count(), None
        self._ahead: dict[int, Future] = {}
        self._last_start: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, which: int | slice) -> Any:
        """One clip, or the list of clips of a slice."""
        if not isinstance(which, slice):
            return read_clip(self.paths[which], self.num_frames, self.sampling)
        numbers = range(*which.indices(len(self)))
        waiting = self._submit(numbers)
        if numbers:
            step = len(numbers) if self._last_start is None else numbers.start - self._last_start
            self._last_start = numbers.start
            likely = range(numbers.start + step, numbers.stop + step) if step > 0 else range(0)
            self._ahead = self._submit(likely[: max(0, len(self) - likely.start)]) if likely else {}
        return [future.result() for future in waiting.values()]

    def _submit(self, numbers: Sequence[int]) -> dict[int, Future]:
        """Number -> the future of each clip; those that are under way are not begun again."""
        if self._pool is None:  # made when it is needed: a process that this object is sent to makes its own
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        return {
            n: self._ahead.pop(n, None) or self._pool.submit(read_clip, self.paths[n], self.num_frames, self.sampling)
            for n in numbers
        }


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """The file as a container of PyAV."""
    try:
        import av
    except ImportError as error:
        raise ImportError("Video files need the package PyAV: pip install 'mpclip[video]', or pip install av") from error
    with av.open(str(path)) as container:
        yield container


def _upright(frame: Any) -> PIL.Image.Image:
    """A frame of PyAV as a picture, turned as its rotation flag says: degrees against the clock."""
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return PIL.Image.fromarray(np.ascontiguousarray(turned))
