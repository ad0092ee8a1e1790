"""Measured retrieval, from the JSON of training and of `python -m eval retrieval`, for the card's table and its metadata."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import EvalResult

from eval.tables import markdown_table
from eval.tasks.retrieval import recalls_of
from mpclip.files import read_json

from .facts import code

WAYS = {"text_to_image": "t2i", "image_to_text": "i2t"}  # as `python -m eval` and as Trainer call them
RECALLS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Retrieval:
    """Recalls of one split in percent.

    recalls: way -> "R@1", ... -> value; intervals: the same with (low, high), empty where the JSON has none.
    quantized: "int8" where the weights were made so while loading: recalls of something else than the checkpoint.
    notes: what else the JSON tells, in words.
    """

    data: str
    split: str
    recalls: dict[str, dict[str, float]]
    mean_recall: float
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    images: int | None = None
    captions: int | None = None
    quantized: str | None = None
    notes: tuple[str, ...] = ()

    def name(self, table: bool = False) -> list[str]:
        """Data, split, and the weights if they are not the checkpoint's; Markdown."""
        weights = f", {self.quantized} weights" if self.quantized else ""
        return [code(self.data, table), code(self.split, table) + weights]

    def cells(self) -> list[str]:
        """The six recalls, with half of their interval where it is known, and the mean."""
        cells = []
        for way in WAYS:
            for recall in RECALLS:
                low, high = self.intervals.get(way, {}).get(recall, (None, None))
                cells.append(f"{self.recalls[way][recall]:.1f}" + ("" if low is None else f" ± {(high - low) / 2:.1f}"))
        return [*cells, f"{self.mean_recall:.1f}"]

    def for_index(self) -> list[EvalResult]:
        """The rows of the Hub's model-index; none of weights that are not the checkpoint's."""
        if self.quantized:
            return []
        return [
            EvalResult(
                task_type=f"{way.replace('_', '-')}-retrieval",
                task_name=f"{way.replace('_', '-').capitalize()} retrieval",
                dataset_type=self.data,
                dataset_name=self.data,
                dataset_split=self.split,
                metric_type=f"recall_at_{recall.removeprefix('R@')}",
                metric_name=f"{recall}, percent",
                metric_value=round(self.recalls[way][recall], 2),
            )
            for way in WAYS
            for recall in RECALLS
        ]


def measured_in_training(folder: Path, training: dict) -> list[Retrieval]:
    """The evaluation at the end of training, none where there was none."""
    metrics = read_json(folder / "eval_results.json")
    if not metrics or not training.get("DataArguments", {}).get("eval_split"):
        return []
    data, arguments = training.get("data", {}), training["MPCLIPTrainingArguments"]
    notes = ["at the end of training"]
    if arguments["load_best_model_at_end"]:
        notes.append(f"the checkpoint was chosen on this split, by {arguments['metric_for_best_model']}: not held-out numbers")
    return [
        Retrieval(
            data=data.get("name") or Path(training["DataArguments"]["dataset"]).name,
            split=training["DataArguments"]["eval_split"],
            recalls={way: {recall: metrics[f"eval_{short}_{recall}"] for recall in RECALLS} for way, short in WAYS.items()},
            mean_recall=metrics["eval_mean_recall"],
            notes=tuple(notes),
            **data.get("eval", {}),
        )
    ]


def measured_by_eval(file: str | Path, config: dict, training: dict, names: set[str]) -> Retrieval:
    """A result of `python -m eval retrieval --json`.

    Args:
        config: of the model; where its own weights are quantised, loading quantises nothing more.
        training: of the model, by which its own data set is recognised.
        names: what the model may be called in it: the name of its folder, its Hub id.

    Raises:
        ValueError: the file is something else, or measures another model.
    """
    result = _result_of_this_model(file, names)
    try:
        recalls, intervals = recalls_of(result)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    quantized = _quantized(result, config)
    notes = [f"{quantized} weights of the LLM, made so while loading"] if quantized else []
    notes += [f"{result[key]}" for key in ("dtype", "date") if result.get(key)]
    notes += [f"the first {result['limit']} images only"] if result.get("limit") else []
    return Retrieval(
        data=_data_name(result["data"], training),
        split=result["split"],
        recalls=recalls,
        mean_recall=result.get("metrics", result)["mean_recall"],
        intervals=intervals,
        images=result["images"],
        captions=result["captions"],
        quantized=quantized,
        notes=tuple(notes),
    )


def all_measured(folder: Path, config: dict, training: dict, files: list, names: set[str]) -> list[Retrieval]:
    """What was measured, a row per split and weights; a file outdoes the evaluation of training, which has no intervals.

    A result of `python -m eval differences` becomes a note of the retrieval row of the same data and split.

    Raises:
        ValueError: two files measure the same weights on the same split, or differences come without their retrieval.
    """
    rows = {(row.data, row.split, row.quantized): row for row in measured_in_training(folder, training)}
    source: dict[tuple, object] = {}
    differences = []
    for file in files:
        if _read(file).get("task") == "differences":
            differences.append(file)
            continue
        row = measured_by_eval(file, config, training, names)
        key = row.data, row.split, row.quantized
        if key in source:
            raise ValueError(f"{source[key]} and {file} both measure {row.data}, {row.split}: give one of them.")
        rows[key], source[key] = row, file
    for file in differences:
        result = _result_of_this_model(file, names)
        key = _data_name(result["data"], training), result["split"], _quantized(result, config)
        if key not in rows:
            raise ValueError(f"{file} tells differences on {key[0]}, {key[1]}: give a retrieval result of that split too.")
        rows[key] = replace(rows[key], notes=(*rows[key].notes, _differences_in_words(result["metrics"])))
    return list(rows.values())


def _differences_in_words(metrics: dict[str, float]) -> str:
    kinds = {name.removeprefix("wrong_"): value for name, value in metrics.items() if name.startswith("wrong_")}
    listed = ", ".join(f"{kind.replace('_', ' ')} {value:.1f}" for kind, value in kinds.items())
    return f"percent of captions with a wrong picture first, by what differs: {listed or 'none'}"


def _read(file: str | Path) -> dict:
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}); `python -m eval retrieval --json` writes one.") from error
    if not isinstance(result, dict):
        raise ValueError(f"{file} is no result of `python -m eval`: it holds a {type(result).__name__}.")
    return result


def _result_of_this_model(file: str | Path, names: set[str]) -> dict:
    result = _read(file)
    missing = sorted({"images", "captions", "model", "data", "split"} - result.keys())
    if missing:
        raise ValueError(f"{file} is no result of `python -m eval retrieval --json`: it has no {', '.join(missing)}.")
    if result["model"] not in names and Path(result["model"]).absolute().name not in names:
        raise ValueError(
            f"{file} measures {result['model']}, and this is the card of {' or '.join(sorted(names))}: evaluate this model, "
            "or give --repo_id if that is its name on the Hub."
        )
    return result


def _quantized(result: dict, config: dict) -> str | None:
    return None if config.get("quantization_config") else result.get("quantize")


def measured_by_card(index: list[EvalResult] | None) -> list[Retrieval]:
    """What the model-index of a card tells, as `Retrieval.for_index` wrote it; other results are left out."""
    recalls: dict[tuple[str, str], dict] = {}
    for result in index or []:
        way = result.task_type.removesuffix("-retrieval").replace("-", "_")
        recall = result.metric_type.replace("recall_at_", "R@")
        if way in WAYS and recall in RECALLS:
            ways = recalls.setdefault((result.dataset_name, result.dataset_split), {way: {} for way in WAYS})
            ways[way][recall] = result.metric_value
    return [
        Retrieval(data, split, ways, sum(sum(recall.values()) for recall in ways.values()) / (len(WAYS) * len(RECALLS)))
        for (data, split), ways in recalls.items()
        if all(len(recall) == len(RECALLS) for recall in ways.values())
    ]


def result_table(rows: list[Retrieval]) -> str:
    """As Markdown."""
    head = ["data", "split", "T2I R@1", "R@5", "R@10", "I2T R@1", "R@5", "R@10", "mean"]
    return markdown_table(head, [[*row.name(table=True), *row.cells()] for row in rows])


def _data_name(data: str, training: dict) -> str:
    """Of the training's data set the name it has there; of a folder or file its last part; a Hub id as it is."""
    if data == training.get("DataArguments", {}).get("dataset") and "data" in training:
        return training["data"]["name"]
    path = Path(data)
    return path.absolute().name if path.exists() or path.is_absolute() or data.startswith(".") else data
