"""Recall of text-to-image and image-to-text retrieval, from embeddings alone.

Scores are inner products: cosines, if the embeddings are L2-normalised. Queries with weighted segments need not be normalised.

**A tie counts against the model.** The rank of a right answer is 1 + the number of wrong answers that score at least as high.
If only higher scores counted, a model whose embeddings are all equal would reach a recall of 100%; here it gets 0%. Scores are
equal if they differ by no more than the rounding error of fp32, because a matrix product may round equal rows differently.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eval.intervals import share_interval

if TYPE_CHECKING:
    from transformers import EvalPrediction

RECALLS = (1, 5, 10)
SHORT = {"text_to_image": "t2i", "image_to_text": "i2t"}  # direction -> prefix of the names of its metrics


def retrieval_metrics(
    image_embeds: Tensor | np.ndarray,
    text_embeds: Tensor | np.ndarray,
    caption_image: Tensor | np.ndarray,
    chunk: int = 4096,
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


def retrieval_ranks(
    image_embeds: Tensor | np.ndarray,
    text_embeds: Tensor | np.ndarray,
    caption_image: Tensor | np.ndarray,
    chunk: int = 4096,
) -> tuple[np.ndarray, np.ndarray]:
    """For every text the rank of its image, and for every image the rank of its best text; 1 is best.

    Args:
        image_embeds: (I, D), any float type, numpy or torch. Scores are computed in fp32 on its device.
        text_embeds: (T, D), likewise.
        caption_image: (T,) int, the image that each text describes. If an image has several texts, it is found when any of
            them is found, and none of them is a wrong answer for it.
        chunk: scores are computed for chunk x chunk pairs at a time, never for all I x T.

    Returns:
        text_ranks (T,) int64: 1 + the number of other images that score at least as high for a text as its own image.
        image_ranks (I,) int64: 1 + the number of other images' texts that score at least as high for an image as its best text.

    Raises:
        ValueError: shapes do not match, values are not finite, or an image has no text.
    """
    images, texts, owner = _validated(image_embeds, text_embeds, caption_image)
    device = images.device
    # The rounding error of an inner product is a few units in the last place of the largest possible product.
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
            column = owner[t : t + chunk] - i  # (t,) column of a text's own image in this block
            here = (column >= 0) & (column < scores.shape[1])  # (t,)
            scores[here, column[here]] = -torch.inf  # a right answer is no wrong one, in either direction
            text_ranks[t : t + chunk] += (scores >= own[t : t + chunk, None] - tolerance).sum(dim=1)
            image_ranks[i : i + chunk] += (scores >= best[None, i : i + chunk] - tolerance).sum(dim=0)
    return text_ranks.cpu().numpy(), image_ranks.cpu().numpy()


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


def recall_intervals(text_ranks: np.ndarray, image_ranks: np.ndarray, caption_image: np.ndarray) -> dict:
    """95% intervals of the six recalls, by bootstrap over images; an image is drawn with all its captions.

    Only the queries are drawn; the collection that they search stays as it is. So an interval says how much the recall depends
    on the choice of queries. It does not say what the recall in a larger collection would be.

    Args:
        text_ranks, image_ranks: (T,) and (I,), as from `retrieval_ranks`.
        caption_image: (T,) int, the image of each text.

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


def top_images(image_embeds: Tensor, text_embeds: Tensor, k: int, chunk: int = 4096) -> np.ndarray:
    """The k best images for every text.

    Args:
        image_embeds: (I, D).
        text_embeds: (T, D).
        k: number of images.
        chunk: about chunk x chunk scores are computed at a time.

    Returns:
        (T, min(k, I)) int64, best image first.
    """
    image_embeds, text_embeds = _finite(image_embeds, "image_embeds"), _finite(text_embeds, "text_embeds")
    rows = max(1, chunk * chunk // len(image_embeds))  # texts at a time
    top = [
        (text_embeds[at : at + rows] @ image_embeds.T).topk(min(k, len(image_embeds)), dim=1).indices
        for at in range(0, len(text_embeds), rows)
    ]
    return torch.cat(top).cpu().numpy()


def _validated(image_embeds, text_embeds, caption_image) -> tuple[Tensor, Tensor, Tensor]:
    """Images and texts as fp32 tensors and caption_image as int64, on one device; shapes and indices are checked."""
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
        raise ValueError(
            f"{without} of {len(images)} images have no text: leave them out, because none of their queries has a right answer"
        )
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
            "look at the examples of these rows, or check the checkpoint for NaN weights"
        )
    return embeds
