"""Recall of text-to-image and image-to-text retrieval, from embeddings alone.

Scores are inner products: pass L2-normalised embeddings for cosines, or a query side that is re-weighted on purpose.

**Ties count against the model.** The rank of a right answer is 1 + the number of wrong answers that score at least as
high. With a strict comparison a model whose embeddings are all equal would reach a recall of 100%; here it gets 0%.
Equality is meant up to the rounding of fp32, since a matrix product does not give equal rows exactly equal scores.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eval.intervals import share_interval

if TYPE_CHECKING:
    from transformers import EvalPrediction

RECALLS = (1, 5, 10)
SHORT = {"text_to_image": "t2i", "image_to_text": "i2t"}  # as names of metrics begin


def retrieval_metrics(
    image_embeds: Tensor | np.ndarray,
    text_embeds: Tensor | np.ndarray,
    caption_image: Tensor | np.ndarray,
    chunk: int = 4096,
) -> dict:
    """Recall at 1, 5 and 10 in both directions. Arguments and errors as in `retrieval_ranks`.

    Returns:
        `{"text_to_image": {"R@1", "R@5", "R@10"}, "image_to_text": {...}, "mean_recall"}` in percent; mean_recall is
        the mean of the six.
    """
    text_ranks, image_ranks = retrieval_ranks(image_embeds, text_embeds, caption_image, chunk)
    return recalls(text_ranks, image_ranks)


def recalls(text_ranks: np.ndarray, image_ranks: np.ndarray) -> dict:
    """The result of `retrieval_metrics` from the ranks that `retrieval_ranks` gives."""
    result: dict = {
        direction: {f"R@{k}": 100.0 * float(np.mean(ranks <= k)) for k in RECALLS}
        for direction, ranks in zip(SHORT, (text_ranks, image_ranks), strict=True)
    }
    result["mean_recall"] = float(np.mean([value for recall in result.values() for value in recall.values()]))
    return result


def retrieval_ranks(
    image_embeds: Tensor | np.ndarray,
    text_embeds: Tensor | np.ndarray,
    caption_image: Tensor | np.ndarray,
    chunk: int = 4096,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the right image for every text, and of the best right caption for every image; 1 is best.

    Args:
        image_embeds: (I, D), any float type, numpy or torch. Computed in fp32 on the device it lies on.
        text_embeds: (T, D), likewise.
        caption_image: (T,) int, the image that each text describes. An image may have several texts: it counts
            as found where any of them is, and its other texts are never wrong answers.
        chunk: scores exist for chunk x chunk pairs at a time, never for all I x T.

    Returns:
        text_ranks (T,) int64: 1 + the other images that score at least as high for this text as its own.
        image_ranks (I,) int64: 1 + the other images' texts that score at least as high as the image's best own.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, an image without a text.
    """
    images, texts, owner = _validated(image_embeds, text_embeds, caption_image)
    device = images.device
    # Rounding error of an inner product of D terms: a few units in the last place of the largest product possible.
    tolerance = 8 * torch.finfo(torch.float32).eps * images.norm(dim=1).max() * texts.norm(dim=1).max()

    own = torch.cat(  # (T,) score of each text with its own image
        [(images[owner[at : at + chunk]] * texts[at : at + chunk]).sum(dim=1) for at in range(0, len(texts), chunk)]
    )
    best = torch.full((len(images),), -torch.inf, device=device)  # (I,) score of each image with its best own text
    best.scatter_reduce_(0, owner, own, reduce="amax")

    text_ranks = torch.ones(len(texts), dtype=torch.int64, device=device)  # (T,)
    image_ranks = torch.ones(len(images), dtype=torch.int64, device=device)  # (I,)
    for t in range(0, len(texts), chunk):
        for i in range(0, len(images), chunk):
            scores = texts[t : t + chunk] @ images[i : i + chunk].T  # (t, i)
            column = owner[t : t + chunk] - i  # (t,) where a text's own image is in this block
            here = (column >= 0) & (column < scores.shape[1])  # (t,)
            scores[here, column[here]] = -torch.inf  # neither direction counts a right answer as a wrong one
            text_ranks[t : t + chunk] += (scores >= own[t : t + chunk, None] - tolerance).sum(dim=1)
            image_ranks[i : i + chunk] += (scores >= best[None, i : i + chunk] - tolerance).sum(dim=0)
    return text_ranks.cpu().numpy(), image_ranks.cpu().numpy()


def flat(recalls: dict) -> dict:
    """{"text_to_image": {"R@1": x, ...}, "image_to_text": {...}, ...} -> {"t2i_R@1": x, ..., "i2t_R@1": ..., ...}."""
    result: dict = {}
    for name, value in recalls.items():
        result |= {f"{SHORT[name]}_{recall}": x for recall, x in value.items()} if name in SHORT else {name: value}
    return result


def retrieval_compute_metrics(prediction: "EvalPrediction") -> dict[str, float]:
    """`compute_metrics` for a Trainer whose predictions are the embeddings of an evaluation set, such as `MPCLIPTrainer`.

    Args:
        prediction: `predictions` is (image_embeds (I, D), text_embeds (T, D), caption_image (T,)) as `retrieval_ranks` takes
            them.

    Returns:
        `{"t2i_R@1", "t2i_R@5", "t2i_R@10", "i2t_R@1", ..., "mean_recall"}` in percent.

    Raises:
        ValueError: the predictions are not these three arrays, or do not fit together.
    """
    if not isinstance(prediction.predictions, tuple | list) or len(prediction.predictions) != 3:
        raise ValueError("predictions must be the three arrays (image_embeds, text_embeds, caption_image)")
    return flat(retrieval_metrics(*prediction.predictions))


def recall_intervals(text_ranks: np.ndarray, image_ranks: np.ndarray, caption_image: np.ndarray) -> dict:
    """95% intervals of the six recalls by bootstrap over images, an image keeping all its captions together.

    Queries are drawn again, what is searched through stays whole: the interval tells how much the choice of test
    queries matters, not how a larger collection would fare.

    Returns:
        `{"text_to_image": {"R@1": [low, high], ...}, "image_to_text": {...}}` in percent.
    """
    count = len(image_ranks)
    queries = {"text_to_image": (text_ranks, caption_image), "image_to_text": (image_ranks, np.arange(count))}
    return {
        direction: {
            f"R@{k}": [
                100.0 * bound
                for bound in share_interval(np.bincount(image, ranks <= k, count), np.bincount(image, minlength=count))
            ]
            for k in RECALLS
        }
        for direction, (ranks, image) in queries.items()
    }


def recalls_of_images(text_ranks: np.ndarray, image_ranks: np.ndarray, caption_image: np.ndarray) -> np.ndarray:
    """What each image adds to the mean recall: (I,) float64 in percent, from its own rank and its captions'.

    Two models are compared by the differences of their images, which a test can pair. Where all images have as many
    captions, the mean over images is `mean_recall`.
    """
    found = np.stack([np.bincount(caption_image, text_ranks <= k) for k in RECALLS], axis=1)  # (I, recalls)
    of_texts = found / np.bincount(caption_image)[:, None]
    of_image = image_ranks[:, None] <= np.array(RECALLS)
    return 100.0 * np.concatenate([of_texts, of_image], axis=1).mean(axis=1)


def top_images(image_embeds: Tensor, text_embeds: Tensor, k: int, chunk: int = 4096) -> np.ndarray:
    """The k images of highest score for every text, best first: (T, min(k, I)) int64. Arguments as above."""
    image_embeds, text_embeds = _finite(image_embeds, "image_embeds"), _finite(text_embeds, "text_embeds")
    rows = max(1, chunk * chunk // len(image_embeds))  # as many scores at a time as elsewhere: rows x I
    top = [
        (text_embeds[at : at + rows] @ image_embeds.T).topk(min(k, len(image_embeds)), dim=1).indices
        for at in range(0, len(text_embeds), rows)
    ]
    return torch.cat(top).cpu().numpy()


def _validated(image_embeds, text_embeds, caption_image) -> tuple[Tensor, Tensor, Tensor]:
    """The three as tensors of one device, fp32 and int64, known to fit together."""
    images, texts = _finite(image_embeds, "image_embeds"), _finite(text_embeds, "text_embeds")
    owner = torch.as_tensor(caption_image).to(device=images.device, dtype=torch.int64)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"image_embeds {tuple(images.shape)}, text_embeds {tuple(texts.shape)}: expected one width D")
    if owner.shape != (len(texts),):
        raise ValueError(f"caption_image {tuple(owner.shape)}: expected one image index per text, ({len(texts)},)")
    if owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(
            f"caption_image has values from {int(owner.min())} to {int(owner.max())}, expected 0 to {len(images) - 1}"
        )
    if without := len(images) - len(owner.unique()):
        raise ValueError(f"{without} of {len(images)} images have no text: leave them out, they cannot be queries")
    return images, texts.to(images.device), owner


def _finite(embeds: Tensor | np.ndarray, name: str) -> Tensor:
    """Embeddings as an fp32 tensor of shape (rows, D), with at least one row and no NaN or infinity."""
    embeds = torch.as_tensor(embeds).float()
    if embeds.ndim != 2 or len(embeds) == 0:
        raise ValueError(f"{name} {tuple(embeds.shape)}: expected (rows, D) with at least one row")
    bad = (~torch.isfinite(embeds)).any(dim=1).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"{name}: {len(bad)} of {len(embeds)} rows have values that are not finite, first {bad[:10].tolist()}; "
            "find the examples of these rows, or check the checkpoint for NaN weights"
        )
    return embeds
