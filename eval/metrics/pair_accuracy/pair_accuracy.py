"""How often a right text beats the wrong ones, and Winoground's scores, as a module of `evaluate`. See README.md."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
Share of choices in percent in which the right candidate scores higher than every wrong one, as in SugarCrepe, VALSE, ARO and
NegBench; and the text, image and group scores of Winoground. A tie is wrong: a model that scores all candidates alike gets 0.
"""

INPUTS = """
evaluate.load(path):
    predictions: of each choice the scores of its candidates, two or more.
    references: integers, which candidate is the right one.
    kinds: names, one for each choice, given to `compute`. Default: all choices are of one kind.
evaluate.load(path, "winoground"):
    predictions: of each pair the scores [[s00, s01], [s10, s11]], where sIT is that of image I with text T. Image 0 belongs to
        text 0, and image 1 to text 1.

Returns:
    {"accuracy": ...}; with kinds also "accuracy_<kind>" for each, and "accuracy" is their mean
    of "winoground" {"text_score": ..., "image_score": ..., "group_score": ...}
"""

TIE = 1e-6  # scores that differ by no more are equal: the rounding of cosines in float32


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class PairAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.Sequence(datasets.Value("float64"))
        features = {
            "default": {"predictions": scores, "references": datasets.Value("int64")},
            "winoground": {"predictions": datasets.Sequence(scores)},
        }
        if self.config_name not in features:
            raise ValueError(f"there is no configuration {self.config_name!r}: give 'winoground', or nothing")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features[self.config_name]),
        )

    def _compute(self, predictions, references=None, kinds=None) -> dict[str, float]:
        if self.config_name == "winoground":
            return winoground(predictions)
        won = np.array([margin(scores, right) > TIE for scores, right in zip(predictions, references, strict=True)])
        if kinds is None:
            return {"accuracy": 100.0 * float(won.mean())}
        kinds = np.asarray(kinds)
        if kinds.shape != won.shape:
            raise ValueError(f"kinds {kinds.shape}: expected one name for each of the {len(won)} choices")
        of_kind = {f"accuracy_{kind}": 100.0 * float(won[kinds == kind].mean()) for kind in np.unique(kinds)}
        return {"accuracy": float(np.mean(list(of_kind.values())))} | of_kind


def margin(scores: list[float], right: int) -> float:
    """By how much the right candidate beats the best wrong one.

    Raises:
        ValueError: fewer than two candidates, scores that are not finite, or no candidate of the number `right`.
    """
    if len(scores) < 2 or not 0 <= right < len(scores):
        raise ValueError(f"{len(scores)} candidates, of which number {right} is right: expected two or more, counted from 0")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores {scores}: expected finite numbers")
    return scores[right] - max(scores[:right] + scores[right + 1 :])


def winoground(scores) -> dict[str, float]:
    """The three scores from (pairs, 2, 2): scores of image I with text T."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape[1:] != (2, 2) or not np.isfinite(scores).all():
        raise ValueError(f"predictions {scores.shape}: expected finite numbers of shape (pairs, 2 images, 2 texts)")
    (s00, s01), (s10, s11) = scores.transpose(1, 2, 0)  # (pairs,) each
    text = np.minimum(s00 - s01, s11 - s10) > TIE  # each image prefers its text
    image = np.minimum(s00 - s10, s11 - s01) > TIE  # each text prefers its image
    found = {"text_score": text, "image_score": image, "group_score": text & image}
    return {name: 100.0 * float(won.mean()) for name, won in found.items()}
