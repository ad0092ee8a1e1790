"""Embeds video clips: their frames are decoded in threads while the model encodes other clips, each clip once."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from modeling_mpclip.model_options import NUM_FRAMES
from mpclip.data.video import Clips, Sampling, identity_of_videos

from .batches import in_batches
from .cache import kept_parts
from .dataset import Folder
from .encoder import Encoder


def encode_clips(
    encoder: Encoder,
    paths: Sequence[str],
    batch_size: int = 8,
    cache: Folder = None,
    num_frames: int = NUM_FRAMES,
    sampling: Sampling = "uniform",
    mean_over_frames: bool = False,
    title: str = "Embedding clips",
    **options,
) -> Tensor:
    """Embed video files.

    Args:
        encoder: the model. One without an input for clips takes the mean over the embeddings of the frames.
        paths: V paths of video files.
        batch_size: clips per batch.
        cache: folder in which finished parts are stored; see `encode_texts`.
        num_frames, sampling: which frames are taken; see `mpclip.data.video.read_clip`.
        mean_over_frames: take that mean with every model, in place of its own pooling of a clip.
        title, options: as for `encode_texts`.

    Returns:
        (V, D) float32 on the CPU, L2-normalised.

    Raises:
        ValueError, OSError: a file cannot be decoded; the message names it. Or the model embeds texts alone.
    """
    encoder.refuse_text_only()
    how = {"num_frames": num_frames, "sampling": sampling, "mean_over_frames": mean_over_frames}
    parts = kept_parts(encoder, cache, batch_size, clips=cache and identity_of_videos(paths), **how)
    embed: Callable = partial(Encoder.embed_clips, encoder) if mean_over_frames else encoder.embed_clips
    return in_batches(embed, Clips(paths, num_frames, sampling), batch_size, title=title, resume=parts, **options)
