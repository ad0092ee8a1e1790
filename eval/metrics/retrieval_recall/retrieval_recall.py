"""Recall of retrieval in both directions, from embeddings or from ranks, as a module of `evaluate`. See README.md."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
Recall at k of retrieval in percent: the share of queries for which a right answer is among the first k. A text searches all
images and has one right answer. An image searches all texts, and any of its own is right. "Image" stands for picture or clip.
A tie counts against the model: a wrong answer that scores as high as the right one stands before it.
"""

INPUTS = """
evaluate.load(path), from embeddings:
    predictions: T embeddings of texts, D numbers each.
    references: T integers, the image that each text describes.
    image_embeds: (I, D) array, given to `compute`. Every image has a text.
    Scores are inner products: give L2-normalised embeddings for cosines.
evaluate.load(path, "ranks"), for one direction:
    predictions: integers, the rank of the best right answer of each query; 1 is best.
k: numbers of answers; default (1, 5, 10).

Returns, for example:
    from embeddings {"t2i_R@1": ..., "t2i_R@5": ..., "i2t_R@1": ..., "mean_recall": ...}; t2i is text to image
    from ranks {"R@1": ..., "R@5": ..., "R@10": ...}
"""

CHUNK = 2048  # scores are computed for CHUNK x CHUNK pairs at a time


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class RetrievalRecall(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        embedding = datasets.Sequence(datasets.Value("float32"))
        features = {
            "default": {"predictions": embedding, "references": datasets.Value("int64")},
            "ranks": {"predictions": datasets.Value("int64")},
        }
        if self.config_name not in features:
            raise ValueError(
                f"retrieval_recall has no configuration {self.config_name!r}: give 'ranks', or nothing for embeddings"
            )
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features[self.config_name]),
        )

    def _compute(self, predictions, references=None, image_embeds=None, k=(1, 5, 10)) -> dict[str, float]:
        k = np.atleast_1d(k).tolist()
        if not k or min(k) < 1:
            raise ValueError(f"k={k}: expected numbers of answers, 1 or more")
        if self.config_name == "ranks":
            ranks = np.asarray(predictions)
            if len(ranks) == 0 or ranks.min() < 1:
                raise ValueError("predictions: expected the ranks of one or more queries; the best rank is 1")
            return recalls(ranks, k)
        if image_embeds is None:
            raise ValueError("image_embeds is missing: give the (I, D) embeddings of the images to `compute`")
        text_ranks, image_ranks = ranks_of(image_embeds, predictions, references)
        found = {f"t2i_{name}": value for name, value in recalls(text_ranks, k).items()}
        found |= {f"i2t_{name}": value for name, value in recalls(image_ranks, k).items()}
        return found | {"mean_recall": float(np.mean(list(found.values())))}


def recalls(ranks: np.ndarray, k: list[int]) -> dict[str, float]:
    """The recall at each k in percent, from the ranks (Q,) of the best right answers."""
    return {f"R@{number}": 100.0 * float(np.mean(ranks <= number)) for number in k}


def ranks_of(image_embeds, text_embeds, caption_image) -> tuple[np.ndarray, np.ndarray]:
    """For every text the rank of its image (T,), and for every image that of its best text (I,); 1 is best.

    Args:
        image_embeds: (I, D).
        text_embeds: (T, D).
        caption_image: (T,) int, the image of each text.

    Raises:
        ValueError: shapes do not match, values are not finite, or an image has no text.
    """
    images, texts = finite(image_embeds, "image_embeds"), finite(text_embeds, "predictions")
    owner = np.asarray(caption_image)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"image_embeds {images.shape}, predictions {texts.shape}: expected one width D")
    if owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(f"references from {owner.min()} to {owner.max()}: expected images from 0 to {len(images) - 1}")
    if without := len(images) - len(np.unique(owner)):
        raise ValueError(
            f"{without} of {len(images)} images have no text: leave them out, no query of theirs has a right answer"
        )
    # The rounding error of an inner product is a few units in the last place of the largest possible product.
    largest = np.linalg.norm(images, axis=1).max() * np.linalg.norm(texts, axis=1).max()
    tolerance = 8 * np.finfo(np.float32).eps * largest
    own = np.einsum("td,td->t", images[owner], texts)  # (T,) score of each text with its image
    best = np.full(len(images), -np.inf, np.float32)  # (I,) score of each image with its best text
    np.maximum.at(best, owner, own)

    text_ranks, image_ranks = np.ones(len(texts), np.int64), np.ones(len(images), np.int64)
    for t in range(0, len(texts), CHUNK):
        for i in range(0, len(images), CHUNK):
            scores = texts[t : t + CHUNK] @ images[i : i + CHUNK].T  # (t, i)
            column = owner[t : t + CHUNK] - i  # (t,) of the text's image in this block
            here = np.flatnonzero((column >= 0) & (column < scores.shape[1]))
            scores[here, column[here]] = -np.inf  # a right answer is no wrong one, in either direction
            text_ranks[t : t + CHUNK] += (scores >= own[t : t + CHUNK, None] - tolerance).sum(axis=1)
            image_ranks[i : i + CHUNK] += (scores >= best[None, i : i + CHUNK] - tolerance).sum(axis=0)
    return text_ranks, image_ranks


def finite(embeds, name: str) -> np.ndarray:
    """Embeddings as (rows, D) float32 without NaN or infinity."""
    embeds = np.asarray(embeds, dtype=np.float32)
    if embeds.ndim != 2 or len(embeds) == 0:
        raise ValueError(f"{name} {embeds.shape}: expected (rows, D) with at least one row")
    if bad := int((~np.isfinite(embeds)).any(axis=1).sum()):
        raise ValueError(f"{name}: {bad} of {len(embeds)} rows have values that are not finite")
    return embeds
