"""What the controls of the app do, as plain functions of a collection. They know nothing of the page."""

import re
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch

from eval.class_templates import OURS
from eval.tasks.zero_shot import class_embeddings
from mpclip.app.collection import Collection
from mpclip.encoding import Encoder, ModelEncoder
from mpclip.maps import BEST
from mpclip.maps.drawing import colour_scale, heat_over
from mpclip.maps.prompt_maps import prompt_maps
from mpclip.maps.seen import refuse_peer
from mpclip.search.search import Hit

# Bounds of what one visitor may ask for at a time.
MOST_CHARACTERS = 1000  # of a text
MOST_TEXTS = 8  # to exclude
MOST_CLASSES = 100
MOST_HITS = 48

Captioned = tuple[np.ndarray | PIL.Image.Image, str]


def lines_of(text: str | None) -> list[str]:
    """The lines of a text that are not blank, without spaces around them."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def find(
    collection: Collection,
    text: str = "",
    picture: PIL.Image.Image | None = None,
    exclude: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    prompts: int | None = None,
    top: int = 12,
) -> list[Hit]:
    """The pictures that fit a query best, best first.

    Args:
        collection: what to search.
        text: the query; "" if the picture alone is one.
        picture: RGB, part of the query or the query.
        exclude: texts that the pictures shall not fit.
        weights: K aspect weights; None: 1 each.
        prompts: m; the parts of the first m prompts alone are added up. The parts are those of the cosine by all prompts: the
            index has embeddings that were normalised as a whole. None: all K.
        top: number of pictures.

    Raises:
        ValueError: nothing to look for, a bound is exceeded, or no prompt has a weight.
    """
    text = text.strip()
    if not text and picture is None:
        raise ValueError("There is nothing to look for yet. Type a text, or add a picture, or both.")
    if len(exclude) > MOST_TEXTS:
        raise ValueError(f"{len(exclude)} texts to leave out; at most {MOST_TEXTS} are taken, one per line.")
    refuse_long([text, *exclude])
    if not 1 <= top <= MOST_HITS:
        raise ValueError(f"{top} pictures; expected 1 to {MOST_HITS}.")
    encoder = collection.encoder
    factors = prompt_weights(encoder.aspects, weights, prompts)
    asked = [text] if text else []
    queries = encoder.embed_queries(asked, [] if picture is None else [picture], exclude, factors)  # (1, D)
    return collection.index.search(queries, top)[0]


def prompt_weights(count: int, weights: Sequence[float] | None = None, prompts: int | None = None) -> list[float] | None:
    """A weight for each of `count` prompts, 0 beyond the first `prompts`. None if all are 1.

    Raises:
        ValueError: `prompts` is not within 1..count, or no prompt has a weight.
    """
    if prompts is not None and not 1 <= prompts <= count:
        raise ValueError(f"{prompts} prompts; this model has {count}, of which the first 1 to {count} can be used.")
    given = [1.0] * count if weights is None else list(weights)
    used = [float(weight) if k < (prompts or count) else 0.0 for k, weight in enumerate(given)]
    if not any(used):
        raise ValueError("Every prompt that is used has the weight 0, so all pictures would score the same. Raise a weight.")
    return None if all(weight == 1 for weight in used) else used


def refuse_long(texts: Sequence[str]) -> None:
    """Refuse texts that are longer than a query is. Raises ValueError."""
    for text in texts:
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"A text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are taken. Shorten it.")


def captioned(hits: Sequence[Hit]) -> list[tuple[bytes, str]]:
    """Of each hit its thumbnail, a JPEG, and a line: rank, score, and the caption or else the name."""
    return [
        (hit.thumbnail, f"{rank} · {hit.score:.3f} · {hit.caption or hit.picture}") for rank, hit in enumerate(hits, start=1)
    ]


def maps_of(collection: Collection, hit: Hit, text: str, kind: str = BEST) -> list[Captioned]:
    """Where in a picture each prompt's answer to a text comes from.

    Args:
        collection: the hit is from it.
        hit: the picture.
        text: what to look for in it.
        kind: one of `mpclip.maps.KINDS`.

    Returns:
        The picture as the model sees it, the sum of all maps where there are several, and the map of each prompt, as (H, W, 3)
        float32 in 0..1, each with a line that says what it is and its part of the cosine.

    Raises:
        ValueError: no text, a model without prompts, a picture that is gone, or a kind that the model has not.
    """
    text = text.strip()
    if not text:
        raise ValueError("Maps show where a text is found in a picture. Type a text for them, or search by a text.")
    refuse_long([text])
    model = collection.encoder.encoder
    refuse_peer(model)
    found = prompt_maps(model.model, model.processor, text, image=collection.picture(hit.picture), kind=kind)
    picture, maps = found.pictures[0], found.maps[0]  # (H, W, 3), (K, H, W)
    shown = [(picture, f"“{text}” and this picture: cosine {found.score:.3f}")]
    if len(maps) > 1:
        summed = maps.sum(axis=0)
        shown.append((heat_over(picture, summed, *colour_scale(summed)), "all prompts"))
    names = collection.prompts() or found.prompts
    scale = colour_scale(maps)
    shown += [
        (heat_over(picture, one, *scale), f"{name} {share:+.3f}")
        for one, name, share in zip(maps, names, found.shares, strict=True)
    ]
    return shown


def class_names(typed: str | None) -> list[str]:
    """The names of classes that someone typed, by lines or commas, each once.

    Raises:
        ValueError: fewer than two, too many, or one too long.
    """
    names = list(dict.fromkeys(name.strip() for name in re.split(r"[,\n]", typed or "") if name.strip()))
    if not 2 <= len(names) <= MOST_CLASSES:
        raise ValueError(f"{len(names)} class names; expected 2 to {MOST_CLASSES}, one per line or with commas between them.")
    refuse_long(names)
    return names


def classify(collection: Collection, picture: PIL.Image.Image, names: Sequence[str]) -> dict[str, float]:
    """The probability of each class for a picture, as `mpclip eval zero_shot` compares them.

    Args:
        collection: its model.
        picture: RGB.
        names: C class names. Each is put into several sentences, and its embedding is the mean.

    Returns:
        Name -> probability. Those of a model of the softmax loss sum to 1; one of the sigmoid loss gives each class its own.

    Raises:
        ValueError: the model has no scale that turns cosines into probabilities.
    """
    encoder = collection.encoder.encoder
    classes = class_embeddings(encoder, list(names), list(OURS), quiet=True)  # (C, D)
    cosines = (encoder.images([picture], quiet=True) @ classes.T)[0]  # (C,)
    return dict(zip(names, probabilities(encoder, cosines).tolist(), strict=True))


@torch.no_grad()
def probabilities(encoder: Encoder, cosines: torch.Tensor) -> torch.Tensor:
    """Cosines of a picture with C texts -> probabilities, by the scale and the loss of a model: (C,) -> (C,) float32.

    Raises:
        ValueError: the model has no such scale.
    """
    model = encoder.model
    if isinstance(encoder, ModelEncoder):
        logits = model.logit_scale(cosines.to(encoder.device)).cpu()
        return logits.sigmoid() if model.config.loss == "sigmoid" else logits.softmax(dim=0)
    scale = getattr(model, "logit_scale", None)
    if scale is None:
        raise ValueError(
            f"{encoder.name} has no scale that turns cosines into probabilities. Take a dual encoder such as CLIP."
        )
    bias = getattr(model, "logit_bias", None)  # SigLIP's
    logits = cosines * scale.float().exp().cpu()
    return logits.softmax(dim=0) if bias is None else (logits + bias.float().cpu()).sigmoid()
