"""Retrieval of video clips by text and back, and whether the order of frames is understood.

    mpclip eval video --model runs/moving_multi_prompt --data runs/moving --split test --num_frames 4 --json video.json
    mpclip eval video --model runs/demo/multi_prompt --data clips --split test --num_frames 4 --mean_over_frames \\
        --json mean.json
    mpclip eval video --model runs/demo/multi_prompt --data clips --split test --frame_sampling keyframes \\
        --json keyframes.json

Every caption searches all clips of the split, and every clip all captions. A tie counts against the model. The metrics of both
directions (t2v: text to video, v2t: video to text) are those of `eval retrieval`:

    R@1, R@5, R@10            share of queries that find a right answer among the first k, in percent
    median_rank, mean_rank    rank of the first right answer; 1 is best
    mAP@R                     like R@1, but a clip must find all its R captions first for 100 percent

`mean_recall`, the mean of the six recalls, is the primary metric. A clip with many captions, as in MSVD, is found when any of
them is found, and each of its captions is a query.

If the data have a column `pair` (or --pair_column), clips with the same value differ in time alone, such as a clip and its
reverse. Then there are also

    time_t2v   share of captions that score their own clip above the other of its pair, in percent
    time_v2t   share of clips that score their best caption above the best of the other clip
    time       the mean of the two

A model that ignores the order of frames embeds both clips alike. Its time_v2t is 50; its time_t2v is 0 by ties, or up to 50
where rounding breaks them.

The items are those of `eval.metrics.retrieval_items`, with a clip for an image, and `text_in_pair`, `clip_in_pair`: 1 right, 0
wrong, -1 without a pair.
"""

import argparse

import numpy as np

from eval.result import Result
from modeling_mpclip.model_options import NUM_FRAMES
from mpclip.argument_types import count

SHORT = {"t2i": "t2v", "i2t": "v2t"}  # prefix of a metric of pictures -> of clips


class Video:
    """The task; see `eval.task.Task`."""

    name = "video"
    takes = "clips with captions: a folder of videos with metadata.jsonl, a table of them, MSR-VTT or MSVD as published"

    def __init__(self, options: argparse.Namespace | None = None):
        self.video_column: str | None = getattr(options, "video_column", None)
        self.pair_column: str = getattr(options, "pair_column", "pair")
        self.num_frames: int = getattr(options, "num_frames", NUM_FRAMES)
        self.sampling: str = getattr(options, "frame_sampling", "uniform")
        self.mean_over_frames: bool = getattr(options, "mean_over_frames", False)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--num_frames", type=count, default=NUM_FRAMES, help="frames of each clip (default: %(default)s)")
        parser.add_argument(
            "--frame_sampling",
            choices=("uniform", "keyframes"),
            default="uniform",
            help="frames at even distances, or of those that the file stores whole (default: %(default)s)",
        )
        parser.add_argument(
            "--mean_over_frames",
            action="store_true",
            help="embed each frame as a picture and take the mean, also with models that have a pooling for clips",
        )
        parser.add_argument("--video_column", help="column of the video's path or name (default: video, video_id or file_name)")
        parser.add_argument(
            "--pair_column", default="pair", help="column that is equal for clips that differ in time alone (default: pair)"
        )

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The clips, with columns `video` and `captions`. Those that cannot be decoded are named and left out."""
        from mpclip.data.video_text import load_video_text

        return load_video_text(source, split, limit=limit, video_column=self.video_column, **reading)

    def run(self, encoder, rows, batch_size: int = 64, **encoding) -> Result:
        """Embed clips and captions and measure; see `eval.task.Task.run`. `batch_size` counts texts, or frames of clips."""
        import torch

        from mpclip.encoding import encode_clips, encode_texts

        captions = rows["captions"][:]
        how = {"num_frames": self.num_frames, "sampling": self.sampling, "mean_over_frames": self.mean_over_frames}
        embeds = {
            "image_embeds": encode_clips(
                encoder, rows["video"][:], max(1, batch_size // self.num_frames), **how, **encoding
            ),  # (V, D)
            "text_embeds": encode_texts(encoder, [text for row in captions for text in row], batch_size, **encoding),  # (T, D)
            "caption_image": torch.tensor([i for i, row in enumerate(captions) for _ in row]),  # (T,)
        }
        result = measure(embeds, rows[self.pair_column][:] if self.pair_column in rows.column_names else None)
        result.origin |= how
        return result

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of clips; each is drawn with its captions."""
        return len(items["image_rank"])

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """The metrics, if each clip and its captions count as often as it was drawn; see `eval.task.Task.metrics_of`."""
        from eval.metrics import retrieval_measures

        measured = retrieval_measures(items, counts)
        metrics = {SHORT.get(name[:3], name[:3]) + name[3:]: value for name, value in measured.items()}
        if "clip_in_pair" in items:
            drawn = {"t2v": ("text_in_pair", counts[items["caption_image"]]), "v2t": ("clip_in_pair", counts)}
            for way, (name, weights) in drawn.items():
                weights = np.where(items[name] >= 0, weights, 0)  # (T,) or (V,)
                metrics[f"time_{way}"] = 100.0 * float((items[name] * weights).sum() / max(1, weights.sum()))
            metrics["time"] = (metrics["time_t2v"] + metrics["time_v2t"]) / 2
        return metrics


def measure(embeds: dict, pairs: list | None = None) -> Result:
    """The result, from embeddings.

    Args:
        embeds: `image_embeds` (V, D) of the clips, `text_embeds` (T, D) and `caption_image` (T,), the clip of each caption.
        pairs: V values, equal for clips that differ in time alone; None, or a value of None, for clips without a pair.
    """
    from eval.intervals import bootstrap
    from eval.metrics import retrieval_items

    items = retrieval_items(**embeds)
    of_pairs = {} if pairs is None else pair_items(**embeds, pairs=pairs)
    in_pairs = int((of_pairs["clip_in_pair"] >= 0).sum()) if of_pairs else 0
    items |= of_pairs if in_pairs else {}
    clips = Video.units(items)
    return Result(
        task=Video.name,
        primary="mean_recall",
        metrics=Video.metrics_of(items, np.ones(clips, int)),
        intervals=bootstrap(Video.metrics_of, items, clips),
        counts={"clips": clips, "captions": len(items["text_rank"])} | ({"clips_in_pairs": in_pairs} if in_pairs else {}),
        items=items,
    )


def pair_items(image_embeds, text_embeds, caption_image, pairs: list) -> dict[str, np.ndarray]:
    """Whether captions and clips are told from those of the other clips of their pair.

    Args:
        image_embeds, text_embeds, caption_image, pairs: as for `measure`.

    Returns:
        `text_in_pair` (T,) and `clip_in_pair` (V,) int8: 1 right, 0 wrong or tied, -1 for those without another clip.
    """
    import torch

    images, texts = (torch.as_tensor(x).float() for x in (image_embeds, text_embeds))
    owner = torch.as_tensor(caption_image)
    tolerance = 8 * torch.finfo(torch.float32).eps * float(images.norm(dim=1).max() * texts.norm(dim=1).max())
    of_text, of_clip = np.full(len(texts), -1, np.int8), np.full(len(images), -1, np.int8)
    members: dict = {}
    for clip, pair in enumerate(pairs):
        if pair is not None:
            members.setdefault(pair, []).append(clip)
    captions: dict[int, list[int]] = {}
    for text, clip in enumerate(owner.tolist()):
        captions.setdefault(clip, []).append(text)
    for clips in members.values():
        if len(clips) < 2:
            continue
        told = [text for clip in clips for text in captions[clip]]  # (t,)
        scores = texts[told] @ images[clips].T  # (t, c)
        own = owner[told][:, None] == torch.tensor(clips)  # (t, c)
        mine = scores[own]  # (t,)
        others = scores.masked_fill(own, -torch.inf).amax(dim=1)  # (t,) the best other clip of each caption
        of_text[told] = (mine > others + tolerance).numpy()
        best, wrong = (scores.masked_fill(~here, -torch.inf).amax(dim=0) for here in (own, ~own))  # (c,) captions of each clip
        of_clip[clips] = (best > wrong + tolerance).numpy()
    return {"text_in_pair": of_text, "clip_in_pair": of_clip}
