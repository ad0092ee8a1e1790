"""Differences between near-twin OpenMoji scenes that a model does not see.

Every caption searches all scenes of the split. If the best scene is a wrong one, its differences to the caption's own scene are
looked up. The metrics are shares of captions in percent; a tie counts against the model.

    right              the caption's own scene is first (the primary metric)
    wrong_KIND         the wrong scene differs in this kind alone, such as wrong_relation
    wrong_several      the wrong scene differs in several kinds
    wrong_none         the wrong scene has the same description
    wrong_other_scene  the wrong scene is of another family

The items are `rank`, the rank of each caption's own scene.
"""

import argparse
from collections import Counter

from eval.result import Result


class Differences:
    """The task; see `eval.task.Task`."""

    name = "differences"
    takes = "a folder of OpenMoji scenes: python -m mpclip.data.openmoji.scenes --out FOLDER"

    def __init__(self, options: argparse.Namespace | None = None):
        pass

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        pass

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The scenes, with columns `image`, `captions`, `scene` and `family`.

        Raises:
            ValueError: the pictures are not OpenMoji scenes.
        """
        from mpclip.data.image_text import load_image_text

        rows = load_image_text(source, split, limit=limit, **reading)
        if missing := sorted({"scene", "family"} - set(rows.column_names)):
            raise ValueError(f"{source} has no column {' and no '.join(missing)}; expected {self.takes}")
        return rows

    def run(self, encoder, rows, **encoding) -> Result:
        """Embed the scenes and measure; see `eval.task.Task.run`."""
        from mpclip.encoding import encode_dataset

        return measure(encode_dataset(encoder, rows, **encoding), rows)


def measure(embeds: dict, rows) -> Result:
    """The result, from embeddings.

    Args:
        embeds: of the scenes, as from `encode_dataset`.
        rows: the scenes, as from `Differences.load`.
    """
    from eval.intervals import share_interval
    from eval.metrics import retrieval_ranks

    text_ranks, _ = retrieval_ranks(**embeds)
    mistakes = count_mistakes(**embeds, text_ranks=text_ranks, rows=rows)
    captions = len(text_ranks)
    low, high = share_interval((text_ranks == 1).astype(float), (text_ranks > 0).astype(float))
    return Result(
        task=Differences.name,
        primary="right",
        metrics={
            "right": 100.0 * float((text_ranks == 1).mean()),
            **{f"wrong_{kind}": 100.0 * count / captions for kind, count in mistakes.items()},
        },
        intervals={"right": [100.0 * low, 100.0 * high]},
        counts={"images": len(embeds["image_embeds"]), "captions": captions},
        items={"rank": text_ranks},
    )


def count_mistakes(image_embeds, text_embeds, caption_image, text_ranks, rows) -> dict[str, int]:
    """Count the captions whose own scene is not first, by the difference of the best wrong scene.

    Args:
        image_embeds, text_embeds, caption_image: (I, D), (T, D), (T,), as from `encode_dataset`.
        text_ranks: (T,), as from `retrieval_ranks`.
        rows: the I scenes, with columns `scene` and `family`.

    Returns:
        Kind -> number of captions, most frequent first. The kind is "other_scene" if the best wrong scene is of another family,
        "none" if it has the same description, a kind of difference such as "relation" if it differs in this alone, and
        "several" if it differs in more.
    """
    import numpy as np

    from eval.metrics import top_images
    from mpclip.data.openmoji.scenes import differences_between

    families, scenes = rows["family"][:], rows["scene"][:]
    first, second = top_images(image_embeds, text_embeds, 2).T  # (T,) each
    mistakes: Counter[str] = Counter()
    for text in np.flatnonzero(text_ranks > 1):
        right = int(caption_image[text])
        wrong = int(second[text] if first[text] == right else first[text])  # in a tie, the right one may be first
        if families[wrong] != families[right]:
            mistakes["other_scene"] += 1
            continue
        differences = differences_between(scenes[right], scenes[wrong])
        mistakes["several" if len(differences) > 1 else next(iter(differences), "none")] += 1
    return dict(mistakes.most_common())
