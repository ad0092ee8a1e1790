"""Pairs of things, one wanted and one not, for queries such as "a dog without a ball", and the pictures that show them.

    things = things_of(load_image_text("photos", "test"))  # what the pictures show
    pairs = exclusion_pairs(things, together=3, apart=5)

What a photo shows is known from its captions, what an OpenMoji scene shows from its description. A caption does not name
everything. So a photo counts as one without grass if none of its captions speaks of grass, although some grass may be seen. Of
things that contain one another, such as a person and a man, the list has one, because captions use both words.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import datasets

# A thing as a query names it, and the words of captions that name it (singular and plural, and close synonyms).
THINGS = {
    "a dog": "dog dogs puppy puppies",
    "a man": "man men guy guys",
    "a woman": "woman women lady ladies",
    "a boy": "boy boys",
    "a girl": "girl girls",
    "a baby": "baby babies infant toddler toddlers",
    "a crowd": "crowd crowds crowded",
    "a horse": "horse horses",
    "a bird": "bird birds duck ducks seagull seagulls",
    "a ball": "ball balls football basketball volleyball",
    "a frisbee": "frisbee frisbees",
    "a stick": "stick sticks",
    "a toy": "toy toys",
    "a bicycle": "bike bikes bicycle bicycles biker bikers cyclist cyclists",
    "a motorcycle": "motorcycle motorcycles motorbike motorbikes motorcyclist",
    "a car": "car cars truck trucks van vehicle vehicles",
    "a boat": "boat boats canoe kayak kayaker raft sailboat",
    "a skateboard": "skateboard skateboards skateboarder skateboarders skateboarding",
    "a snowboard": "snowboard snowboards snowboarder snowboarders snowboarding",
    "skis": "ski skis skier skiers skiing",
    "a surfboard": "surfboard surfboards surfer surfers surfing",
    "a swing": "swing swings swinging",
    "a slide": "slide slides",
    "a ramp": "ramp ramps",
    "a tent": "tent tents",
    "a rope": "rope ropes",
    "a camera": "camera cameras",
    "a hat": "hat hats cap caps",
    "a helmet": "helmet helmets",
    "glasses": "glasses sunglasses goggles",
    "a jacket": "jacket jackets coat coats",
    "a dress": "dress dresses",
    "a shirt": "shirt shirts tshirt",
    "jeans": "jeans",
    "shorts": "shorts",
    "a uniform": "uniform uniforms",
    "a swimsuit": "swimsuit swimsuits bikini swimwear",
    "a collar": "collar collars",
    "grass": "grass grassy lawn",
    "snow": "snow snowy",
    "sand": "sand sandy",
    "water": "water ocean sea lake river stream pond pool waves wave",
    "a beach": "beach beaches shore seashore",
    "a mountain": "mountain mountains mountainside mountaintop",
    "a rock": "rock rocks rocky boulder boulders cliff",
    "a street": "street streets road roads",
    "a sidewalk": "sidewalk sidewalks pavement",
    "a building": "building buildings house houses",
    "a wall": "wall walls",
    "a fence": "fence fences fenced",
    "a bench": "bench benches",
    "a table": "table tables",
    "a tree": "tree trees forest woods wooded",
    "flowers": "flower flowers",
    "leaves": "leaves",
    "a pool": "pool pools",
    "a fountain": "fountain fountains",
    "a sign": "sign signs",
}
# Things of which one hardly occurs without the other: never a pair.
INSEPARABLE = [{"a pool", "water"}, {"a fountain", "water"}, {"a beach", "sand"}, {"a beach", "water"}]


class Things(NamedTuple):
    """Things, and which pictures show them.

    Attributes:
        names: N things as queries name them, such as "a dog".
        shown: (I, N) bool, whether picture i shows thing n.
    """

    names: list[str]
    shown: np.ndarray


def things_of(rows: "datasets.Dataset") -> Things:
    """What the pictures of a table show.

    Args:
        rows: a table with the column `captions`, as from `load_image_text`; those of OpenMoji scenes have `scene`, too.
    """
    plain = rows.with_format(None)
    if "scene" in rows.column_names:
        return things_of_scenes(plain["scene"][:])
    return things_of_captions(plain["captions"][:])


def things_of_captions(captions: Sequence[Sequence[str]]) -> Things:
    """The things of `THINGS` that captions name; every caption of a picture counts.

    Args:
        captions: the captions of I pictures.
    """
    said = [set(re.findall(r"[a-z]+", " ".join(row).lower().replace("t-shirt", "tshirt"))) for row in captions]
    table = [set(words.split()) for words in THINGS.values()]
    return Things(list(THINGS), np.array([[not words.isdisjoint(row) for words in table] for row in said], dtype=bool))


def things_of_scenes(scenes: Sequence[dict]) -> Things:
    """Objects and backgrounds of OpenMoji scenes, by their descriptions.

    Args:
        scenes: I descriptions with `objects` and `background`, as in the column `scene` of mpclip.data.openmoji.scenes.
    """
    from mpclip.data.openmoji.captions import with_article

    in_scenes = [
        {with_article(thing["name"]) for thing in scene["objects"]} | {with_article(f"{scene['background']} background")}
        for scene in scenes
    ]
    names = sorted(set().union(*in_scenes))
    return Things(names, np.array([[name in scene for name in names] for scene in in_scenes], dtype=bool))


def exclusion_pairs(things: Things, together: int, apart: int) -> np.ndarray:
    """The pairs (X, Y) of things that occur often enough, together and apart.

    Args:
        things: I pictures and N things.
        together: least number of pictures that show X and Y. With few of them, even a plain query finds none.
        apart: least number of pictures that show X without Y. These are what a query is to find.

    Returns:
        (P, 2) int64, X and Y as indices of `things.names`.

    Raises:
        ValueError: no pair occurs often enough.
    """
    shown = things.shown.astype(np.int64)  # (I, N)
    both = shown.T @ shown  # (N, N) pictures of X and Y
    alone = both.diagonal()[:, None] - both  # (N, N) pictures of X without Y
    kept = (both >= together) & (alone >= apart)
    pairs = [(x, y) for x, y in np.argwhere(kept) if {things.names[x], things.names[y]} not in INSEPARABLE]
    if not pairs:
        raise ValueError(
            f"no two things occur in {together} of the {len(shown)} pictures together, the first also in {apart} without the "
            "second. Give more pictures, or look for rarer pairs (smaller --together, --top)."
        )
    return np.array(pairs, dtype=np.int64)
