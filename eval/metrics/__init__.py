"""Metrics from embeddings alone: recall of text-to-image and image-to-text retrieval.

ranks.py       ranks of right answers; a tie counts against the model
retrieval.py   all metrics of retrieval, with folds and recurring captions, for any draw of the queries

The six recalls alone, as training measures them, are here.
"""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .ranks import CHUNK, retrieval_ranks, top_images
from .retrieval import RECALLS, SHORT, contents_of, folds_of, retrieval_items, retrieval_measures

if TYPE_CHECKING:
    from transformers import EvalPrediction

__all__ = [
    "RECALLS",
    "SHORT",
    "contents_of",
    "flat",
    "folds_of",
    "recalls",
    "recalls_of_images",
    "retrieval_compute_metrics",
    "retrieval_items",
    "retrieval_measures",
    "retrieval_metrics",
    "retrieval_ranks",
    "top_images",
]


def retrieval_metrics(
    image_embeds: Tensor | np.ndarray,
    text_embeds: Tensor | np.ndarray,
    caption_image: Tensor | np.ndarray,
    chunk: int = CHUNK,
) -> dict:
    """Recall at 1, 5 and 10 in both directions. Arguments and errors are those of `retrieval_ranks`.

    Returns:
        `{"text_to_image": {"R@1": x, "R@5": x, "R@10": x}, "image_to_text": {...}, "mean_recall": x}` in percent;
        mean_recall is the mean of the six.
    """
    text_ranks, image_ranks = retrieval_ranks(image_embeds, text_embeds, caption_image, chunk)
    return recalls(text_ranks, image_ranks)


def recalls(text_ranks: np.ndarray, image_ranks: np.ndarray) -> dict:
    """The result of `retrieval_metrics`, from the ranks of `retrieval_ranks`."""
    result: dict = {
        direction: {f"R@{k}": 100.0 * float(np.mean(ranks <= k)) for k in RECALLS}
        for direction, ranks in zip(SHORT, (text_ranks, image_ranks), strict=True)
    }
    result["mean_recall"] = float(np.mean([value for recall in result.values() for value in recall.values()]))
    return result


def flat(recalls: dict) -> dict:
    """Recalls by direction as one dict: {"text_to_image": {"R@1": x, ...}, ...} becomes {"t2i_R@1": x, ...}.

    Args:
        recalls: as from `retrieval_metrics`, or the same of intervals. Other keys are kept.
    """
    result: dict = {}
    for name, value in recalls.items():
        result |= {f"{SHORT[name]}_{recall}": x for recall, x in value.items()} if name in SHORT else {name: value}
    return result


def retrieval_compute_metrics(prediction: "EvalPrediction") -> dict[str, float]:
    """`compute_metrics` for a Trainer that predicts the embeddings of an evaluation set, such as `MPCLIPTrainer`.

    Args:
        prediction: `predictions` is the tuple (image_embeds (I, D), text_embeds (T, D), caption_image (T,)), see
            `retrieval_ranks`.

    Returns:
        `{"t2i_R@1": x, "t2i_R@5": x, "t2i_R@10": x, "i2t_R@1": x, ..., "mean_recall": x}` in percent.

    Raises:
        ValueError: the predictions are not these three arrays, or their shapes do not match.
    """
    if not isinstance(prediction.predictions, tuple | list) or len(prediction.predictions) != 3:
        raise ValueError(
            f"predictions are a {type(prediction.predictions).__name__}: expected the three arrays (image_embeds, text_embeds, "
            "caption_image), as MPCLIPTrainer predicts them"
        )
    return flat(retrieval_metrics(*prediction.predictions))


def recalls_of_images(text_ranks: np.ndarray, image_ranks: np.ndarray, caption_image: np.ndarray) -> np.ndarray:
    """The mean recall of each image and its captions, to compare two models image by image.

    If all images have the same number of captions, the mean over images equals `mean_recall`.

    Args:
        text_ranks, image_ranks: (T,) and (I,), as from `retrieval_ranks`.
        caption_image: (T,) int, the image of each text.

    Returns:
        (I,) float64, in percent.
    """
    found = np.stack([np.bincount(caption_image, text_ranks <= k) for k in RECALLS], axis=1)  # (I, recalls)
    of_texts = found / np.bincount(caption_image)[:, None]  # (I, recalls)
    of_image = image_ranks[:, None] <= np.array(RECALLS)  # (I, recalls)
    return 100.0 * np.concatenate([of_texts, of_image], axis=1).mean(axis=1)
