"""Retrieval results for the card's table and metadata, from the JSON of training and of `python -m eval`."""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PureWindowsPath

from huggingface_hub import EvalResult

from eval import metrics
from eval.tables import markdown_table
from eval.tasks.retrieval import recalls_of
from mpclip.encoding.fingerprint import weights_fingerprint
from mpclip.files import read_json

from .facts import code

WAYS = metrics.SHORT  # direction -> prefix of its metrics: {"text_to_image": "t2i", ...}
RECALLS = tuple(f"R@{k}" for k in metrics.RECALLS)


@dataclass(frozen=True)
class Retrieval:
    """Recalls on one split, in percent.

    Attributes:
        data: name of the data set.
        split: name of the split.
        recalls: direction -> {"R@1": value, ...}.
        mean_recall: mean of the six recalls.
        intervals: the 95% intervals, direction -> {"R@1": [low, high], ...}; {} if the JSON has none.
        images, captions: how many the split has.
        quantized: "int8" if the weights were quantised while loading. Then the recalls are not those of the checkpoint's own
            weights.
        folds: number of parts of the split that were searched on their own, if several; the recalls are means over them.
        notes: further facts of the JSON, in words.
    """

    data: str
    split: str
    recalls: dict[str, dict[str, float]]
    mean_recall: float
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    images: int | None = None
    captions: int | None = None
    quantized: str | None = None
    folds: int | None = None
    notes: tuple[str, ...] = ()

    def name(self, table: bool = False) -> list[str]:
        """Data and split in Markdown, with the folds, and the type of the weights if they are not the checkpoint's own.

        Args:
            table: for the cells of a table.
        """
        weights = f", {self.quantized} weights" if self.quantized else ""
        folds = f", mean over {self.folds} folds" if self.folds else ""
        return [code(self.data, table), code(self.split, table) + folds + weights]

    def cells(self) -> list[str]:
        """The six recalls with half of their intervals, if known, and the mean recall."""
        cells = []
        for way in WAYS:
            for recall in RECALLS:
                low, high = self.intervals.get(way, {}).get(recall, (None, None))
                cells.append(f"{self.recalls[way][recall]:.1f}" + ("" if low is None else f" ± {(high - low) / 2:.1f}"))
        return [*cells, f"{self.mean_recall:.1f}"]

    def for_index(self) -> list[EvalResult]:
        """The entries of the Hub's model-index; none if the weights are not the checkpoint's own, or if the split has folds."""
        if self.quantized or self.folds:
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
    """The evaluation at the end of training; [] if there was none.

    Args:
        folder: of the checkpoint, with eval_results.json.
        training: content of training.json.
    """
    measured = read_json(folder / "eval_results.json")
    if not measured or not training.get("DataArguments", {}).get("eval_split"):
        return []
    data, arguments = training.get("data", {}), training["MPCLIPTrainingArguments"]
    notes = ["at the end of training"]
    if arguments["load_best_model_at_end"]:
        chosen_by = arguments["metric_for_best_model"]
        notes.append(f"the checkpoint was chosen on this split, by {chosen_by}, so these are not held-out numbers")
    return [
        Retrieval(
            data=data.get("name") or Path(training["DataArguments"]["dataset"]).name,
            split=training["DataArguments"]["eval_split"],
            recalls={way: {recall: measured[f"eval_{short}_{recall}"] for recall in RECALLS} for way, short in WAYS.items()},
            mean_recall=measured["eval_mean_recall"],
            notes=tuple(notes),
            **data.get("eval", {}),
        )
    ]


@dataclass(frozen=True)
class Measured:
    """The checkpoint of a card, to recognise its results.

    Attributes:
        folder: of the checkpoint.
        repo_id: its name on the Hub, or another name of it.
    """

    folder: Path
    repo_id: str

    @property
    def names(self) -> set[str]:
        """The names by which a result may call the checkpoint."""
        return {self.folder.absolute().name, self.repo_id}

    @cached_property
    def fingerprint(self) -> str | None:
        """The fingerprint of its weights; None if the folder has none."""
        return weights_fingerprint(self.folder)


def measured_by_eval(file: str | Path, config: dict, training: dict, checkpoint: Measured) -> Retrieval:
    """Read a result of `python -m eval retrieval --json`.

    Args:
        file: the JSON file.
        config: content of the model's config.json, which says whether its own weights are quantised.
        training: content of the model's training.json, to recognise its own data set.
        checkpoint: the checkpoint that the file must have measured.

    Raises:
        ValueError: the file is not such a result, or is of another model.
    """
    result = _result_of(checkpoint, file)
    try:
        recalls, intervals = recalls_of(result)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    quantized = _quantized(result, config)
    notes = [f"{quantized} weights of the LLM, made so while loading"] if quantized else []
    notes += [f"{result[key]}" for key in ("dtype", "date") if result.get(key)]
    notes += [f"the first {result['limit']} images only"] if result.get("limit") else []
    if not (result.get("fingerprint") and checkpoint.fingerprint):
        notes.append("recognised by the model's name alone, because the result does not record which weights it measured")
    return Retrieval(
        data=_data_name(result["data"], training),
        split=result["split"],
        recalls=recalls,
        mean_recall=result.get("metrics", result)["mean_recall"],
        intervals=intervals,
        images=result["images"],
        captions=result["captions"],
        quantized=quantized,
        folds=result.get("folds"),
        notes=tuple(notes),
    )


def all_measured(checkpoint: Measured, config: dict, training: dict, files: list) -> list[Retrieval]:
    """All results of a checkpoint: a row for each split, type of weights and number of folds.

    A file replaces the evaluation at the end of training on the same split, because that has no intervals. A result of
    `python -m eval differences` becomes a note in the retrieval row of the same data and split.

    Args:
        checkpoint, config, training: see `measured_by_eval`.
        files: JSON files of `python -m eval`.

    Raises:
        ValueError: a file is not a result of this model, two files measure the same weights on the same split, or a result of
            differences has no retrieval result on its split.
    """
    rows = {(row.data, row.split, row.quantized, row.folds): row for row in measured_in_training(checkpoint.folder, training)}
    source: dict[tuple, object] = {}
    differences = []
    for file in files:
        if _read(file).get("task") == "differences":
            differences.append(file)
            continue
        row = measured_by_eval(file, config, training, checkpoint)
        key = row.data, row.split, row.quantized, row.folds
        if key in source:
            raise ValueError(f"{source[key]} and {file} both measure {row.data}, {row.split}: give one of them.")
        rows[key], source[key] = row, file
    for file in differences:
        result = _result_of(checkpoint, file)
        key = _data_name(result["data"], training), result["split"], _quantized(result, config), None
        if key not in rows:
            raise ValueError(f"{file} tells differences on {key[0]}, {key[1]}: give a retrieval result of that split too.")
        rows[key] = replace(rows[key], notes=(*rows[key].notes, _differences_in_words(result["metrics"])))
    return list(rows.values())


def _differences_in_words(measured: dict[str, float]) -> str:
    """The metrics of `python -m eval differences`, as a note."""
    kinds = {name.removeprefix("wrong_"): value for name, value in measured.items() if name.startswith("wrong_") and value}
    listed = ", ".join(f"{kind.replace('_', ' ')} {value:.1f}" for kind, value in kinds.items())
    return f"percent of captions with a wrong picture first, by what differs: {listed or 'none'}"


def _read(file: str | Path) -> dict:
    """The content of a JSON file that holds an object.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}); `python -m eval retrieval --json` writes one.") from error
    if not isinstance(result, dict):
        raise ValueError(f"{file} is no result of `python -m eval`: it holds a {type(result).__name__}, not an object.")
    return result


def _result_of(checkpoint: Measured, file: str | Path) -> dict:
    """The content of a result that measures `checkpoint`; see `measured_by_eval`.

    A result that records the fingerprint of its weights must have measured these weights, whatever it calls them. Of an older
    one, the name of the model must be that of the checkpoint.
    """
    result = _read(file)
    missing = sorted({"images", "captions", "model", "data", "split"} - result.keys())
    if missing:
        raise ValueError(f"{file} is no result of `python -m eval retrieval --json`: it has no {', '.join(missing)}.")
    if result.get("fingerprint") and checkpoint.fingerprint:
        if result["fingerprint"] != checkpoint.fingerprint:
            raise ValueError(
                f"{file} measures other weights than those in {checkpoint.folder}: their fingerprints are "
                f"{result['fingerprint'][:12]}... and {checkpoint.fingerprint[:12]}... Evaluate this checkpoint again."
            )
    elif not {result["model"], _last_part(result["model"])} & checkpoint.names:
        own = " or ".join(sorted(checkpoint.names))
        raise ValueError(
            f"{file} measures {result['model']}, and this is the card of {own}. Evaluate this model, or give --repo_id "
            f"{result['model']} if that is its name on the Hub."
        )
    return result


def _last_part(path: str) -> str:
    """The last part of a path, also of one that was written on Windows."""
    written_on_windows = "\\" in path and not Path(path).exists()
    return PureWindowsPath(path).name if written_on_windows else Path(path).absolute().name


def _quantized(result: dict, config: dict) -> str | None:
    """The type that loading gave the weights; None if they are the checkpoint's own."""
    return None if config.get("quantization_config") else result.get("quantize")


def measured_by_card(index: list[EvalResult] | None) -> list[Retrieval]:
    """The retrieval results in a card's model-index, as written by `Retrieval.for_index`. Other results are left out."""
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
    """The results as a Markdown table."""
    head = ["data", "split", "T2I R@1", "R@5", "R@10", "I2T R@1", "R@5", "R@10", "mean"]
    return markdown_table(head, [[*row.name(table=True), *row.cells()] for row in rows])


def _data_name(data: str, training: dict) -> str:
    """The name of a data set in the card.

    The training's own data set has the name that training.json gives it. A folder or file is called by the last part of its
    path. A Hub id stays as it is.
    """
    if data == training.get("DataArguments", {}).get("dataset") and "data" in training:
        return training["data"]["name"]
    is_path = Path(data).exists() or Path(data).is_absolute() or data.startswith(".") or "\\" in data
    return _last_part(data) if is_path else data
