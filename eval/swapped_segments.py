"""Queries of two pictures, "this scene with the background of that picture", by exchanging a segment or by adding embeddings.

The first picture is a scene, the second one of another family that has the background that is wanted. The scene to find is the
first one's twin that differs in the background alone. All scenes but the two of the query are searched.
"""

import random
from typing import NamedTuple

import numpy as np

SUMS = (0.25, 0.5, 1.0, 2.0)  # weights of the second picture when embeddings are added


class SwapQueries(NamedTuple):
    """Q queries, as places of scenes; each array is (Q,) int."""

    first: np.ndarray
    second: np.ndarray
    wanted: np.ndarray


def swap_queries(rows, seed: int = 0) -> SwapQueries:
    """A query for each ordered pair of scenes of a family that differ in the background alone.

    Args:
        rows: the scenes, with columns `scene` and `family`.
        seed: of the choice of the second picture, among all of other families that have the wanted background. Pairs for
            which there is none are left out.
    """
    from mpclip.data.openmoji.scenes import differences_between

    scenes, families = rows["scene"][:], rows["family"][:]
    generator, found = random.Random(seed), []
    for first, own in enumerate(scenes):
        for wanted, other in enumerate(scenes):
            if families[first] != families[wanted] or differences_between(own, other) != {"background"}:
                continue
            like = [
                place
                for place, scene in enumerate(scenes)
                if families[place] != families[first] and scene["background"] == other["background"]
            ]
            if like:
                found.append((first, generator.choice(like), wanted))
    return SwapQueries(*np.asarray(found, dtype=int).reshape(-1, 3).T)


def swaps_found(image_embeds, queries: SwapQueries, K: int) -> dict[str, np.ndarray]:
    """Whether each query finds the wanted scene first; a tie counts against it.

    Args:
        image_embeds: (I, D), normalised.
        queries: Q queries.
        K: number of segments.

    Returns:
        Name -> (Q,) bool: `swap_k`, the first picture with segment k of the second; `sum_w`, the first plus w times the
        second; `first_alone`.
    """
    from modeling_mpclip.segments import with_segment_of

    first, second = image_embeds[queries.first], image_embeds[queries.second]  # (Q, D) each
    asked = {f"swap_{k + 1}": with_segment_of(first, second, k, K) for k in range(K)}
    asked |= {f"sum_{weight:g}": first + weight * second for weight in SUMS} | {"first_alone": first}
    every, found = np.arange(len(first)), {}
    for name, vectors in asked.items():
        scores = (vectors.double() @ image_embeds.double().T).numpy()  # (Q, I)
        own = scores[every, queries.wanted]  # (Q,)
        for scene in queries:
            scores[every, scene] = -np.inf
        found[name] = own > scores.max(axis=1, initial=-np.inf)
    return found
