"""Which differences between near-twin scenes a model does not tell apart (OpenMoji scenes).

Every caption searches all scenes. Where it finds a wrong one first, the two scenes differ in something: the kind of difference
is counted. `right`, which decides, is the share of captions that find their own scene first; `wrong_KIND` is the share that
finds a scene which differs in that kind alone, such as wrong_relation. wrong_several: in more than one; wrong_none: the two are
described alike; wrong_other_scene: a scene of another family. All in percent; a tie counts against the model. The item `rank`
is that of each caption's own scene.
"""

import argparse
from collections import Counter

from eval.result import Result


class Differences:
    name = "differences"
    takes = "a folder of OpenMoji scenes: python -m mpclip.data.openmoji.scenes --out FOLDER"

    def __init__(self, options: argparse.Namespace | None = None):
        pass

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        pass

    def load(self, source: str, split: str, limit: int | None = None):
        """A table with `image`, `captions`, `scene` and `family`.

        Raises:
            ValueError: the pictures are no scenes.
        """
        from mpclip.data.image_text import load_image_text

        rows = load_image_text(source, split, limit=limit)
        if missing := sorted({"scene", "family"} - set(rows.column_names)):
            raise ValueError(f"{source} has no column {' and no '.join(missing)}; expected {self.takes}")
        return rows

    def run(self, encoder, rows, **encoding) -> Result:
        from mpclip.encoding import encode_dataset

        return measure(encode_dataset(encoder, rows, **encoding), rows)


def measure(embeds: dict, rows) -> Result:
    """The result, from embeddings as `encode_dataset` gives them and the scenes they belong to."""
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
    """Sort the captions that did not find their own scene first by what they found instead.

    Args:
        image_embeds, text_embeds, caption_image: (I, D), (T, D), (T,), as from `encode_dataset`.
        text_ranks: (T,), as from `retrieval_ranks`.
        rows: the I scenes, with columns `scene` and `family`.

    Returns:
        The number of mistakes per kind, most frequent first: a difference such as "relation" where the best wrong scene is of
        the same family and differs in this alone; "several" where it differs in more; "none" where it is described alike;
        "other_scene" where it is of another family.
    """
    import numpy as np

    from eval.metrics import top_images
    from mpclip.data.openmoji.scenes import differences_between

    families, scenes = rows["family"][:], rows["scene"][:]
    first, second = top_images(image_embeds, text_embeds, 2).T  # (T,) each
    mistakes: Counter[str] = Counter()
    for text in np.flatnonzero(text_ranks > 1):
        right = int(caption_image[text])
        wrong = int(second[text] if first[text] == right else first[text])  # the right one may be first by a tie
        if families[wrong] != families[right]:
            mistakes["other_scene"] += 1
            continue
        differences = differences_between(scenes[right], scenes[wrong])
        mistakes["several" if len(differences) > 1 else next(iter(differences), "none")] += 1
    return dict(mistakes.most_common())
