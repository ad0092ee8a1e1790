"""Which differences between near-twin OpenMoji scenes each segment tells apart, alone and with more weight.

    mpclip eval segments --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json segments.json
    mpclip eval segments --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json segments.json \\
        --heat_map segments.png
    mpclip eval segments --model runs/demo/multi_prompt --data runs/demo/scenes --split 'test[50%:]' \\
        --fit_split 'test[:50%]' --json raised.json

Two scenes of a family that differ in one kind alone make pairs: each caption of one must score its own scene above the other.
A random choice is right in 50% of them, and a tie counts against the model. The metrics are percent of pairs that are right:

    all               all pairs, by all segments (the primary metric)
    KIND              pairs that differ in this kind, such as background, by all segments
    KIND_by_k         the same by segment k alone
    KIND_raised       by all segments, one of which has more weight: the one, and the weight, that were best for this kind on
                      --fit_split
    KIND_raised_gain  KIND_raised minus KIND, in points
    swap_k            queries "this scene, with the background of that picture" that find their scene first among all of the
                      split: the first picture with segment k of the second
    sum_w             the same by adding w times the second picture; first_alone: by the first picture alone

A segment stands for a kind if KIND_by_k is high for it and low for other segments, and low for other kinds. Then raising it
helps queries in which this kind decides. A segment alone is normalised alone, on both sides; a weight scales the segment of
the caption, as `aspect_weights` do. --heat_map draws KIND_by_k.

The JSON file also holds `segment_names` and, with --fit_split, `raised`: the segment and the weight of each kind. The items
are, for each pair, its `kind` as its place in `KINDS`, its `family`, and whether it is right: `right`, `right_by_k`,
`right_raised`; and for each query of two pictures its `swap_family`, and whether it found its scene: `found_METRIC`. Intervals
draw families with all their pairs and queries.
"""

import argparse
import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from eval.fit_split import BothSplits, both_splits
from eval.result import Result
from eval.tasks.differences import Differences

if TYPE_CHECKING:
    import torch

KINDS = ("object", "relation", "position", "size", "background")
RAISED = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # weights that are tried for one segment; the others have 1


class Pairs(NamedTuple):
    """P pairs: a caption, its own scene and another scene of the family that differs in one kind alone."""

    text: np.ndarray  # (P,) int, the caption
    own: np.ndarray  # (P,) int, its scene
    other: np.ndarray  # (P,) int, the other scene
    kind: np.ndarray  # (P,) int, place in `KINDS`
    family: np.ndarray  # (P,) int, from `families_of`


class Segments:
    """The task; see `eval.task.Task`."""

    name = "segments"
    takes = Differences.takes
    writes = ("heat_map",)

    def __init__(self, options: argparse.Namespace | None = None):
        self.heat_map: str | None = getattr(options, "heat_map", None)
        self.fit_split: str | None = getattr(options, "fit_split", None)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--fit_split", metavar="SPLIT", help="for each kind, choose a segment and a higher weight on this other split"
        )
        parser.add_argument("--heat_map", metavar="OUT.png", help="also draw what each segment tells apart")

    def load(self, source: str, split: str, limit: int | None = None, **reading) -> BothSplits:
        """The scenes of both splits; see `Differences.load`.

        Raises:
            ValueError: the pictures are not OpenMoji scenes, or both splits have a picture in common.
        """
        return both_splits(lambda one: Differences().load(source, one, limit, **reading), split, self.fit_split)

    def run(self, encoder, data: BothSplits, **encoding) -> Result:
        """Embed the scenes and measure; see `eval.task.Task.run`.

        Raises:
            ValueError: the model has no segments to tell apart, or each of them reads all prompts.
        """
        from eval.aspects import names_of_aspects
        from eval.segment_map import segment_map
        from mpclip.encoding import encode_dataset

        if encoder.segments == 1:
            raise ValueError(
                f"{encoder.name} has no segments that stand for a prompt each: it has one, or each reads all prompts "
                "(joint_projection=True). Give an MP-CLIP checkpoint with several."
            )
        splits = [(encode_dataset(encoder, rows, **encoding), rows) for rows in data if rows is not None]
        sides = [(segments_of(embeds, encoder.segments), pairs_of(rows, embeds["caption_image"])) for embeds, rows in splits]
        result, names = measure(*sides, swaps=swaps_of(*splits[0], encoder.segments)), names_of_aspects(encoder)
        result.origin["segment_names"] = names
        if self.heat_map:
            segment_map(*table_of(result.metrics, names), self.heat_map)
        return result

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of families up to the last with a pair; each is drawn with its pairs and queries."""
        return int(items["family"].max()) + 1  # a query's two scenes are pairs too

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """See `eval.task.Task.metrics_of`. Kinds without a pair are left out; one that no draw has is nan."""
        weights = counts[items["family"]].astype(float)  # (P,)
        metrics = {"all": percent(items["right"], weights)}
        for place, kind in enumerate(KINDS):
            used = items["kind"] == place  # (P,)
            if used.any():
                for name, right in items.items():
                    if name.startswith("right"):
                        metrics[kind + name.removeprefix("right")] = percent(right, weights * used)
                if "right_raised" in items:
                    metrics[f"{kind}_raised_gain"] = metrics[f"{kind}_raised"] - metrics[kind]
        for name, found in items.items():
            if name.startswith("found_"):
                metrics[name.removeprefix("found_")] = percent(found, counts[items["swap_family"]].astype(float))
        return metrics


def percent(right: np.ndarray, weights: np.ndarray) -> float:
    """The weighted share of what is right, in percent; nan if no weight is above 0."""
    return 100.0 * float(weights @ right / weights.sum()) if weights.any() else float("nan")


def table_of(metrics: dict[str, float], names: list[str]) -> tuple[list[str], list[str], list[list[float]]]:
    """Rows, columns and values of the heat map: KIND_by_k in a row for each of the named segments, and KIND in the last."""
    kinds = [kind for kind in KINDS if kind in metrics]
    values = [[metrics[f"{kind}_by_{k + 1}"] for kind in kinds] for k in range(len(names))]
    return [*names, "all segments"], kinds, [*values, [metrics[kind] for kind in kinds]]


def families_of(rows) -> np.ndarray:
    """(I,) int, the family of each scene, numbered from 0."""
    return np.unique(rows["family"][:], return_inverse=True)[1]


def segments_of(embeds: dict, K: int) -> dict[str, "torch.Tensor"]:
    """Embeddings as from `encode_dataset`, as segments: `text` (T, K, d) and `image` (I, K, d)."""
    return {side: embeds[f"{side}_embeds"].unflatten(1, (K, -1)) for side in ("text", "image")}


def pairs_of(rows, caption_image) -> Pairs:
    """All pairs of scenes.

    Args:
        rows: the scenes, with columns `scene` and `family`.
        caption_image: (T,) int, the scene of each caption.

    Raises:
        ValueError: no two scenes of a family differ in one kind alone.
    """
    from mpclip.data.openmoji.scenes import differences_between

    scenes, families = rows["scene"][:], families_of(rows).tolist()
    texts_of: list[list[int]] = [[] for _ in scenes]
    for text, image in enumerate(caption_image.tolist()):
        texts_of[image].append(text)
    members: dict[int, list[int]] = {}
    for image, family in enumerate(families):
        members.setdefault(family, []).append(image)
    found = []
    for family, images in members.items():
        for own, other in itertools.permutations(images, 2):
            differences = differences_between(scenes[own], scenes[other])
            if len(differences) == 1:
                found += [(text, own, other, KINDS.index(*differences), family) for text in texts_of[own]]
    if not found:
        raise ValueError("No two scenes of a family differ in one kind alone, so there is no pair. Give more scenes.")
    return Pairs(*np.asarray(found).T)


def leads(segments: dict, pairs: Pairs) -> np.ndarray:
    """How much more each segment gives a caption's own scene than the other one.

    Args:
        segments: as from `segments_of`.
        pairs: P pairs.

    Returns:
        (P, K) float64; the sum over k with weights w_k is positive where the pair is right.
    """
    text, image = (segments[side].double().numpy() for side in ("text", "image"))  # (T, K, d), (I, K, d)
    return (text[pairs.text] * (image[pairs.own] - image[pairs.other])).sum(-1)  # (P, K)


def raised(lead: np.ndarray, K: int) -> tuple[int, float]:
    """The segment, numbered from 0, and the weight with which most pairs are right; in a tie the lowest weight.

    Args:
        lead: (P, K), `leads` of pairs of one kind.
        K: number of segments.
    """
    tried = [(k, weight) for weight in RAISED for k in range(K)]
    return max(tried, key=lambda one: float((lead @ weights_with(*one, K) > 0).mean()))


def weights_with(segment: int, weight: float, K: int) -> np.ndarray:
    """(K,) ones, but `weight` for one segment."""
    weights = np.ones(K)
    weights[segment] = weight
    return weights


def swaps_of(embeds: dict, rows, K: int) -> dict[str, np.ndarray]:
    """The items of queries of two pictures; none if no two scenes of a family differ in the background alone.

    Args:
        embeds: of `rows`, as from `encode_dataset`.
        rows: the scenes.
        K: number of segments.
    """
    from eval.swapped_segments import swap_queries, swaps_found

    queries = swap_queries(rows)
    if not len(queries.first):
        return {}
    found = swaps_found(embeds["image_embeds"], queries, K)
    return {"swap_family": families_of(rows)[queries.wanted]} | {f"found_{name}": right for name, right in found.items()}


def measure(
    side: tuple[dict, Pairs], fit: tuple[dict, Pairs] | None = None, swaps: dict[str, np.ndarray] | None = None
) -> Result:
    """The result, from embeddings.

    Args:
        side: `segments_of` and `pairs_of` the scenes to report.
        fit: the same of the scenes to choose weights on; None chooses none.
        swaps: items as from `swaps_of`, or None.
    """
    import torch.nn.functional as F

    from eval.intervals import bootstrap

    segments, pairs = side
    K = segments["text"].shape[1]
    gained = leads(segments, pairs)  # (P, K)
    alone = leads({name: F.normalize(vectors, dim=-1) for name, vectors in segments.items()}, pairs)  # (P, K)
    items = {"kind": pairs.kind.astype(np.int8), "family": pairs.family.astype(np.int32), "right": gained.sum(1) > 0}
    items |= {f"right_by_{k + 1}": alone[:, k] > 0 for k in range(K)}
    items |= swaps or {}
    origin = {}
    if fit is not None:
        fitted, chosen = leads(*fit), {}
        items["right_raised"] = items["right"].copy()  # (P,)
        for place in np.intersect1d(pairs.kind, fit[1].kind).tolist():
            segment, weight = raised(fitted[fit[1].kind == place], K)
            used = pairs.kind == place  # (P,)
            items["right_raised"][used] = gained[used] @ weights_with(segment, weight, K) > 0
            chosen[KINDS[place]] = {"segment": segment + 1, "weight": weight, "pairs": int((fit[1].kind == place).sum())}
        origin["raised"] = chosen
    families = Segments.units(items)
    return Result(
        task=Segments.name,
        primary="all",
        metrics=Segments.metrics_of(items, np.ones(families, dtype=int)),
        intervals=bootstrap(Segments.metrics_of, items, families),
        counts={"pairs": len(pairs.text), "swaps": len(items.get("swap_family", ())), "families": families, "segments": K},
        items=items,
        origin=origin,
    )
