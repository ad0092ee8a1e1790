"""Whether the maps of a model point at the object that a text names.

    mpclip eval pointing --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json pointing.json
    mpclip eval pointing --model runs/demo/multi_prompt --data runs/demo/scenes --split test --kinds occlusion value \\
        --json two_kinds.json
    mpclip eval pointing --model runs/demo/multi_prompt --data runs/demo/scenes --split test \\
        --template "a picture of {}" --limit 50 --json pointing_50.json

The pointing game (Zhang et al., arXiv 1608.00507) on OpenMoji scenes, whose boxes are known. For every object of every scene,
the map of the picture and the text "a dog" is made; it hits if its highest place lies in the object's box. Metrics are shares
of objects in percent:

    KIND            hits of this kind of map, summed over the prompts: occlusion (the primary metric),
                    value, attention, gradient
    KIND_prompt_1   hits of the map of prompt 1 alone; and so on
    KIND_several    hits of the summed map in scenes of two or three objects
    chance          the mean share of the picture that the box takes up, which is what a random place hits
    largest         hits of the middle of the scene's largest object, whatever the text names; the last scenes' own in
                    largest_several, as in chance_several

The maps are enlarged to the picture by bilinear interpolation. If several pixels share the maximum, their mean is the place.
Kinds of maps: mpclip/maps/kinds.py. Only MP-CLIP checkpoints have them. `gradient` takes most of the time.

The items are `image`, the scene of each object; `objects`, how many this scene has; `hits_KIND` (objects, 1 + prompts) of the
sum and of each prompt; `share`, the box's share of the picture; and `largest`. Intervals draw scenes.
"""

import argparse
from typing import NamedTuple

import numpy as np

from eval.result import Result
from mpclip.maps import BEST, KINDS

HITS = "hits_"


class Question(NamedTuple):
    """An object to point at: the row of its scene, its number there, and the text."""

    row: int
    thing: int
    text: str


class Pointing:
    """The task; see `eval.task.Task`."""

    name = "pointing"
    takes = "a folder of OpenMoji scenes: python -m mpclip.data.openmoji.scenes --out FOLDER"

    def __init__(self, options: argparse.Namespace | None = None):
        self.kinds: list[str] = list(dict.fromkeys(getattr(options, "kinds", None) or KINDS))
        self.template: str = getattr(options, "template", None) or "{}"
        if "{}" not in self.template and "{name}" not in self.template:
            told = "write 'There is {}.', where {} becomes 'a dog'; {name} becomes 'dog'"
            raise ValueError(f"--template {self.template!r} has no {{}}: {told}.")

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--kinds", nargs="+", choices=KINDS, help=f"kinds of map (default: {' '.join(KINDS)})")
        parser.add_argument("--template", help="text of an object; {} becomes 'a dog', {name} 'dog' (default: {})")

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The scenes, with columns `image` and `scene`.

        Raises:
            ValueError: the pictures are not OpenMoji scenes.
        """
        from mpclip.data.image_text import load_image_text

        rows = load_image_text(source, split, limit=limit, **reading)
        if "scene" not in rows.column_names:
            raise ValueError(f"{source} has no column scene; expected {self.takes}")
        return rows

    def run(self, encoder, rows, batch_size: int = 64, cache: str | None = None, **encoding) -> Result:
        """Make the maps and measure; see `eval.task.Task.run`. The maps are not cached, and not shared among processes."""
        from mpclip.encoding import encode_texts
        from mpclip.maps.seen import refuse_peer, see
        from mpclip.progress import track

        refuse_peer(encoder)
        questions = questions_of(rows.with_format(None)["scene"][:], self.template)
        distinct = list(dict.fromkeys(question.text for question in questions))
        embeds = encode_texts(encoder, distinct, batch_size, cache, **encoding)  # (T, D)
        K = encoder.model.config.num_prompts
        segments = embeds.unflatten(1, (K, -1))[[distinct.index(question.text) for question in questions]]  # (N, K, d)
        items: dict[str, list] = {name: [] for name in ("share", "largest", *(HITS + kind for kind in self.kinds))}
        starts = range(0, len(rows), batch_size)
        for start in track(starts, "Making maps", len(starts), "batch"):
            batch = rows[start : start + batch_size]
            seen = see(encoder.model, encoder.processor, batch["image"])
            asked = [n for n, question in enumerate(questions) if start <= question.row < start + batch_size]
            pair = batch["image"], batch["scene"]
            boxes = [boxes_in_view(image, scene, encoder.processor) for image, scene in zip(*pair, strict=True)]
            here = [(boxes[questions[n].row - start], questions[n].thing) for n in asked]
            items["share"] += [of_scene[thing].mean() for of_scene, thing in here]
            items["largest"] += [inside(of_scene[thing], middle_of_largest(of_scene)) for of_scene, thing in here]
            chosen = seen[[questions[n].row - start for n in asked]]
            targets = np.stack([of_scene[thing] for of_scene, thing in here])  # (n, H, W)
            for kind in self.kinds:
                items[HITS + kind] += list(hits(encoder.model, chosen, segments[asked], targets, kind))
        return measure(questions, {name: np.asarray(values) for name, values in items.items()}, self.kinds, len(rows))

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of scenes."""
        return int(items["image"].max()) + 1

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """See `eval.task.Task.metrics_of`. nan for scenes of several objects if none is drawn."""
        weights = counts[items["image"]].astype(float)  # (N,)
        of_several = weights * (items["objects"] > 1)

        def percent(values: np.ndarray, weights: np.ndarray) -> float:
            return 100.0 * float(weights @ values) / weights.sum() if weights.sum() else float("nan")

        metrics: dict[str, float] = {}
        guesses = {"chance": items["share"], "largest": items["largest"]}
        summed = {key.removeprefix(HITS): found[:, 0] for key, found in items.items() if key.startswith(HITS)}
        for name, values in (summed | guesses).items():
            metrics |= {name: percent(values, weights), f"{name}_several": percent(values, of_several)}
        for kind in summed:
            alone = items[HITS + kind][:, 1:].T  # (K, N)
            metrics |= {f"{kind}_prompt_{k}": percent(found, weights) for k, found in enumerate(alone, start=1)}
        return metrics


def measure(questions: list[Question], found: dict[str, np.ndarray], kinds: list[str], images: int) -> Result:
    """The result, from hits.

    Args:
        questions: the objects, N of them.
        found: `share`, `largest` and `hits_KIND`, as the module's docstring says.
        kinds: the kinds of map; the primary metric is that of the best, if it is among them.
        images: number of scenes.
    """
    from eval.intervals import bootstrap

    rows = np.asarray([question.row for question in questions])
    items = {"image": rows.astype(np.int32), "objects": np.bincount(rows)[rows].astype(np.int8)}
    items |= {"share": found["share"].astype(np.float32), "largest": found["largest"].astype(bool)}
    items |= {HITS + kind: found[HITS + kind].astype(bool) for kind in kinds}
    units = Pointing.units(items)
    return Result(
        task=Pointing.name,
        primary=BEST if BEST in kinds else kinds[0],
        metrics=Pointing.metrics_of(items, np.ones(units, dtype=int)),
        intervals=bootstrap(Pointing.metrics_of, items, units),
        counts={"images": images, "objects": len(questions)},
        items=items,
    )


def questions_of(scenes: list[dict], template: str) -> list[Question]:
    """Every object of every scene, with its text."""
    from mpclip.data.openmoji.captions import with_article

    return [
        Question(row, thing, template.format(with_article(placed["name"]), name=placed["name"]))
        for row, scene in enumerate(scenes)
        for thing, placed in enumerate(scene["objects"])
    ]


def hits(model, seen, segments, targets: np.ndarray, kind: str) -> np.ndarray:
    """Which maps are highest within their box.

    Args:
        model: [`MPCLIPModel`].
        seen: a `mpclip.maps.seen.Seen` of n pictures.
        segments: (n, K, d) of the texts.
        targets: (n, H, W) bool, True in the box.
        kind: of map.

    Returns:
        (n, 1 + K) bool: of the sum over prompts, and of each prompt.
    """
    import torch

    from mpclip.maps.kinds import MAPS
    from mpclip.maps.prompt_maps import enlarged, highest_places

    maps = MAPS[kind](model, seen, segments.to(model.device))[:, 0]  # (n, K, h, w)
    maps = torch.cat([maps.sum(dim=1, keepdim=True), maps], dim=1)  # (n, 1 + K, h, w)
    places = np.concatenate([highest_places(enlarged(one, targets.shape[1:])).cpu().numpy() for one in maps.split(8)])
    return np.asarray([[inside(target, place) for place in of_one] for target, of_one in zip(targets, places, strict=True)])


def inside(target: np.ndarray, place: np.ndarray) -> bool:
    """Whether a place (row, column) lies in a (H, W) bool box."""
    row, column = np.rint(place).astype(int)
    return bool(target[row, column])


def middle_of_largest(boxes: np.ndarray) -> np.ndarray:
    """(row, column) of the middle of the largest of (n, H, W) bool boxes."""
    return np.argwhere(boxes[boxes.sum(axis=(1, 2)).argmax()]).mean(axis=0)


def boxes_in_view(image, scene: dict, processor) -> np.ndarray:
    """The boxes of a scene's objects where the model sees them: each goes the way of the picture, resized and cropped alike.

    Args:
        image: the picture.
        scene: its row of the column `scene`.
        processor: of the model.

    Returns:
        (objects, H, W) bool.
    """
    import PIL.Image
    import torch

    from mpclip.maps.seen import as_seen

    masks = []
    for left, top, right, bottom in boxes_of(image, scene):
        mask = np.zeros((image.height, image.width, 3), dtype=np.uint8)
        mask[top:bottom, left:right] = 255
        masks.append(PIL.Image.fromarray(mask))
    pixels = torch.as_tensor(processor(images=masks)["pixel_values"])  # (objects, 3, H, W)
    return as_seen(pixels, processor.image_processor)[..., 0] > 0.5


def boxes_of(image, scene: dict) -> list[tuple[int, int, int, int]]:
    """The smallest box around each object, in pixels of the picture: left, top, right, bottom; the last two are outside.

    A scene tells an object's middle and its longer side. Within this square, all that is not background is the object.

    Raises:
        ValueError: nothing of an object is there, so picture and description do not belong together.
    """
    from mpclip.data.openmoji.generate import BACKGROUNDS

    drawn = (np.asarray(image.convert("RGB")) != np.asarray(BACKGROUNDS[scene["background"]])).any(axis=-1)  # (H, W)
    boxes = []
    for thing in scene["objects"]:
        left, top = (max(0, thing[axis] - thing["pixels"] // 2 - 1) for axis in "xy")
        rows, columns = np.nonzero(drawn[top : top + thing["pixels"] + 2, left : left + thing["pixels"] + 2])
        if not len(rows):
            raise ValueError(
                f"There is no {thing['name']} at {thing['x']}, {thing['y']} in a picture whose column scene says so. The "
                "pictures must be as python -m mpclip.data.openmoji.scenes draws them."
            )
        boxes.append((left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1))
    return [tuple(int(end) for end in box) for box in boxes]
