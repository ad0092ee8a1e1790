"""Whether a picture's right text beats wrong ones: composition and negation.

    mpclip eval composition --model runs/demo/multi_prompt --data runs/demo/scenes --split test --build \\
        --json composition.json
    mpclip eval composition --model runs/demo/multi_prompt --data sugar-crepe/data --image_folder coco/val2017 \\
        --split all --json sugarcrepe.json
    mpclip eval composition --model runs/demo/multi_prompt --data runs/demo/scenes --split test --build \\
        --likelihood smollm2-135m --json with_text_only.json

The data are a published set (SugarCrepe, VALSE, ARO, Winoground, NegBench's multiple choice), rows of your own, or, with
--build, pictures with captions: wrong texts are then made by written rules (mpclip/data/composition). A choice is right if the
right text's cosine with the picture is above that of every wrong text; a tie is wrong. The metrics are in percent:

    accuracy   the mean over kinds (the primary metric), each kind counting the same
    KIND       right choices of one kind, such as swap_att

Winoground has pairs of pictures, whose two texts have the same words. Its metrics: text_score (both pictures choose their
text), image_score (both texts choose their picture) and group_score (both; the primary metric).

--likelihood MODEL also lets a language model choose, which does not see the picture. What it gets right says nothing of the
pictures:

    text_only_accuracy, text_only_KIND             the likelier text is chosen; shorter texts are likelier
    text_only_per_token_accuracy, ..._KIND         the same by likelihood per token, which favours no length
    where_text_only_fails                          accuracy over the choices that the likelier text gets wrong

The items are `unit` and `kind` of each choice (`kinds` has the names), and `margin`: the right text's score minus that of the
best wrong one. Intervals draw pictures, of Winoground pairs.
"""

import argparse

import numpy as np

from eval.result import Result

TIE = 1e-6  # cosines that differ by less are equal: rounding of fp32
WINOGROUND = ("text_score", "image_score", "group_score")
JUDGES = {"": "margin", "text_only_": "text_only_margin", "text_only_per_token_": "text_only_per_token_margin"}


class Composition:
    """The task; see `eval.task.Task`."""

    name = "composition"
    takes = (
        "a file or folder of SugarCrepe, VALSE, ARO, Winoground or NegBench (its pictures: --image_folder; --split all); or, "
        "with --build, pictures with captions"
    )

    def __init__(self, options: argparse.Namespace | None = None):
        self.build: bool = getattr(options, "build", False)
        self.seed: int = getattr(options, "seed", 0)
        self.likelihood: str | None = getattr(options, "likelihood", None)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--build", action="store_true", help="make wrong texts from the captions of --data by rules")
        parser.add_argument("--seed", type=int, default=0, help="of --build (default: 0)")
        parser.add_argument(
            "--likelihood",
            metavar="MODEL",
            help="also measure a causal language model that sees the texts alone: a folder, a Hub id, or smollm2-135m",
        )

    def load(self, source: str, split: str, limit: int | None = None, **reading):
        """The choices and their pictures: a `mpclip.data.composition.choices.ChoiceSet`.

        Raises:
            ValueError: this is no published set, or no rule applies to a caption.
        """
        if self.build:
            from mpclip.data.composition.build import build_choices
            from mpclip.data.image_text import load_image_text

            return build_choices(load_image_text(source, split, limit=limit, **reading), self.seed)
        from mpclip.data.composition.pictures import load_choices

        return load_choices(source, split, limit, **reading)

    def run(self, encoder, choice_set, batch_size: int = 64, cache: str | None = None, **encoding) -> Result:
        """Embed pictures and texts and measure; see `eval.task.Task.run`."""
        from eval.likelihood import Likelihood
        from mpclip.data.composition.choices import Crops
        from mpclip.encoding import encode_images, encode_texts

        texts = [text for choice in choice_set.choices for text in (choice.right, *choice.wrong)]
        distinct = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(distinct)}
        at = np.asarray([place[text] for text in texts])  # (texts,) where each text of each choice is among the T distinct ones
        text_embeds = encode_texts(encoder, distinct, batch_size, cache, **encoding)  # (T, D)
        if choice_set.boxes is None:
            image_embeds = encode_images(encoder, choice_set.pictures, batch_size, cache, **encoding)  # (I, D)
        else:  # not cached: a cache knows whole pictures
            image_embeds = encoder.images(Crops(choice_set.pictures, choice_set.boxes), batch_size, **encoding)  # (I, D)
        scores = {"": scores_of(choice_set.choices, at, text_embeds.numpy(), image_embeds.numpy())}
        if self.likelihood:
            judged = Likelihood(self.likelihood, encoder.device).of(distinct, batch_size, cache, **encoding).numpy()  # (T, 2)
            scores |= {"text_only_": judged[at, 0], "text_only_per_token_": judged[at, 0] / judged[at, 1]}
        result = measure(choice_set, scores)
        if self.build:
            result.origin |= {"build": True, "seed": self.seed}
        if self.likelihood:
            result.origin["likelihood"] = self.likelihood
        return result

    @staticmethod
    def units(items: dict[str, np.ndarray]) -> int:
        """The number of pictures, or of Winoground's pairs."""
        return int(items["unit"].max()) + 1

    @staticmethod
    def metrics_of(items: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
        """See `eval.task.Task.metrics_of`. nan for a kind of which no choice is drawn."""
        kinds, kind = items["kinds"].tolist(), items["kind"]
        weights = counts[items["unit"]].astype(float)  # (N,)
        totals = np.bincount(kind, weights, len(kinds))  # (kinds,)
        metrics: dict[str, float] = {}
        for prefix, name in JUDGES.items():
            if name not in items:
                continue
            right = np.bincount(kind, weights * (items[name] > TIE), len(kinds))
            with np.errstate(invalid="ignore"):
                shares = 100.0 * right / totals
            if tuple(kinds) != WINOGROUND:
                metrics[f"{prefix}accuracy"] = float(np.mean(shares[totals > 0]))
            metrics |= {f"{prefix}{label}": float(share) for label, share in zip(kinds, shares, strict=True)}
        if "text_only_margin" in items and tuple(kinds) != WINOGROUND:
            hard = weights * (items["text_only_margin"] <= TIE)
            found = float(hard @ (items["margin"] > TIE))
            metrics["where_text_only_fails"] = 100.0 * found / hard.sum() if hard.sum() else float("nan")
        return metrics


def scores_of(choices: list, at: np.ndarray, text_embeds: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
    """The cosine of each text of each choice with the choice's picture.

    Args:
        choices: the choices.
        at: (texts,) the row of `text_embeds` of each text: of the first choice the right text and then the wrong ones, then
            those of the next choice.
        text_embeds, image_embeds: (T, D), (I, D) float32, L2-normalised.

    Returns:
        (texts,) float32
    """
    found, start = [], 0
    for choice in choices:
        end = start + 1 + len(choice.wrong)
        found.append(text_embeds[at[start:end]] @ image_embeds[choice.picture])  # (1 + wrong,)
        start = end
    return np.concatenate(found)


def measure(choice_set, scores: dict[str, np.ndarray]) -> Result:
    """The result, from the scores of the texts.

    Args:
        choice_set: a `mpclip.data.composition.choices.ChoiceSet`.
        scores: judge of `JUDGES` -> (texts,), in the order of `scores_of`. "" is the model.

    Raises:
        ValueError: a score of the model is not a finite number.
    """
    from eval.intervals import bootstrap

    if not np.isfinite(scores[""]).all():
        raise ValueError(f"{(~np.isfinite(scores[''])).sum()} of {len(scores[''])} scores are not finite: the model is damaged")
    choices = choice_set.choices
    kinds = list(choice_set.kinds)
    unit, kind = np.asarray(choice_set.units, dtype=np.int32), np.asarray([kinds.index(choice.kind) for choice in choices])
    best = {judge: right_and_best_wrong(choices, of_texts) for judge, of_texts in scores.items()}  # two arrays (N,) each
    if choice_set.paired:
        kinds, unit = list(WINOGROUND), np.tile(unit[::2], 3)  # (3 x pairs,)
        kind = np.repeat(np.arange(3), len(choices) // 2)
        margins = {judge: pair_margins(right, wrong) for judge, (right, wrong) in best.items()}
    else:
        margins = {judge: right - wrong for judge, (right, wrong) in best.items()}  # (N,) each
    items = {"unit": unit, "kind": kind.astype(np.int16), "kinds": np.asarray(kinds)}
    items |= {JUDGES[judge]: margin.astype(np.float32) for judge, margin in margins.items()}
    units = Composition.units(items)
    sizes = {} if choice_set.paired else {f"choices_{name}": count for name, count in choice_set.kinds.items()}
    return Result(
        task=Composition.name,
        primary="group_score" if choice_set.paired else "accuracy",
        metrics=Composition.metrics_of(items, np.ones(units, dtype=int)),
        intervals=bootstrap(Composition.metrics_of, items, units),
        counts={"images": len(choice_set.pictures), "choices": len(choices), **sizes},
        items=items,
    )


def right_and_best_wrong(choices: list, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The score of each choice's right text (N,), and that of its best wrong one (N,)."""
    starts = np.cumsum([0, *(1 + len(choice.wrong) for choice in choices)])[:-1]  # (N,) where each choice's texts begin
    wrong = scores.copy()
    wrong[starts] = -np.inf
    return scores[starts], np.maximum.reduceat(wrong, starts)


def pair_margins(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """By how much the text, the image and the group score of Winoground's pairs are won; negative where they are lost.

    Args:
        right, wrong: (2 x pairs,) scores of the right and the wrong text of each picture. The right text of one picture of a
            pair is the wrong text of the other.

    Returns:
        (3 x pairs,): text margins of all pairs, image margins, group margins.
    """
    first, second = slice(0, None, 2), slice(1, None, 2)
    text = np.minimum(right[first] - wrong[first], right[second] - wrong[second])
    image = np.minimum(right[first] - wrong[second], right[second] - wrong[first])
    return np.concatenate([text, image, np.minimum(text, image)])
