"""Differences between near-twin OpenMoji scenes that a model does not see.

    mpclip eval differences --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json differences.json
    mpclip eval differences --model runs/demo/multi_prompt --data runs/demo/scenes --split test --limit 100 \\
        --json quick_look.json
    mpclip eval differences --model runs/demo/single_prompt runs/demo/multi_prompt --data runs/demo/scenes \\
        --split test --json results

Every caption searches all scenes of the split. If the best scene is a wrong one, its differences to the caption's own scene are
looked up. The metrics are shares of captions in percent; a tie counts against the model.

    right              the caption's own scene is first (the primary metric)
    wrong_KIND         the wrong scene differs in this kind alone, such as wrong_relation
    wrong_several      the wrong scene differs in several kinds
    wrong_none         the wrong scene has the same description
    wrong_other_scene  the wrong scene is of another family

The items are `rank`, the rank of each caption's own scene; `found`, the kind of scene it finds first, as its place in `FOUND`;
and `caption_image`, the scene of each caption. Intervals draw scenes with their captions.
"""

import argparse
from collections import Counter

import numpy as np

from eval.result import Result

# What a caption may find: its own scene; a wrong one of its family, by its differences; one of another family.
FOUND = ("right", "relation", "position", "background", "size", "object", "several", "none", "other_scene")


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

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of pictures; each is drawn with its captions."""
        return int(items["caption_image"].max()) + 1

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """See `eval.task.Task.metrics_of`. All kinds are named, also those without a mistake."""
        weights = counts[items["caption_image"]]  # (T,)
        shares = np.bincount(items["found"], weights, len(FOUND)) / max(weights.sum(), 1)  # (kinds,)
        return {
            name if name == "right" else f"wrong_{name}": 100.0 * float(share)
            for name, share in zip(FOUND, shares, strict=True)
        }


def measure(embeds: dict, rows) -> Result:
    """The result, from embeddings.

    Args:
        embeds: of the scenes, as from `encode_dataset`.
        rows: the scenes, as from `Differences.load`.
    """
    from eval.intervals import bootstrap
    from eval.metrics import retrieval_ranks

    text_ranks, _ = retrieval_ranks(**embeds)
    found = kinds_found(**embeds, text_ranks=text_ranks, rows=rows)
    items = {"rank": text_ranks, "found": found, "caption_image": np.asarray(embeds["caption_image"])}
    images = Differences.units(items)
    return Result(
        task=Differences.name,
        primary="right",
        metrics=Differences.metrics_of(items, np.ones(images, dtype=int)),
        intervals=bootstrap(Differences.metrics_of, items, images),
        counts={"images": images, "captions": len(found)},
        items=items,
    )


def kinds_found(image_embeds, text_embeds, caption_image, text_ranks, rows) -> np.ndarray:
    """What each caption finds first: its own scene, or a wrong one with a kind of difference.

    Args:
        image_embeds, text_embeds, caption_image: (I, D), (T, D), (T,), as from `encode_dataset`.
        text_ranks: (T,), as from `retrieval_ranks`.
        rows: the I scenes, with columns `scene` and `family`.

    Returns:
        (T,) int8, places in `FOUND`. The kind is "other_scene" if the best wrong scene is of another family, "none" if it has
        the same description, a kind of difference such as "relation" if it differs in this alone, and "several" if it differs
        in more.
    """
    from eval.metrics import top_images
    from mpclip.data.openmoji.scenes import differences_between

    families, scenes = rows["family"][:], rows["scene"][:]
    first, second = top_images(image_embeds, text_embeds, 2).T  # (T,) each
    found = np.zeros(len(text_ranks), dtype=np.int8)  # (T,) right
    for text in np.flatnonzero(text_ranks > 1):
        right = int(caption_image[text])
        wrong = int(second[text] if first[text] == right else first[text])  # in a tie, the right one may be first
        kind = "other_scene"
        if families[wrong] == families[right]:
            differences = differences_between(scenes[right], scenes[wrong])
            kind = "several" if len(differences) > 1 else next(iter(differences), "none")
        found[text] = FOUND.index(kind)
    return found


def count_mistakes(image_embeds, text_embeds, caption_image, text_ranks, rows) -> dict[str, int]:
    """Count the captions whose own scene is not first, by the difference of the best wrong scene.

    Args:
        image_embeds, text_embeds, caption_image, text_ranks, rows: as for `kinds_found`.

    Returns:
        Kind -> number of captions, most frequent first; kinds without a mistake are left out.
    """
    found = kinds_found(image_embeds, text_embeds, caption_image, text_ranks, rows)
    return dict(Counter(FOUND[kind] for kind in found if kind).most_common())
