"""write_derived_card: the short card of a text-only export or an int8 checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from mpclip.files import read_json

from .card import OLDEST_TRANSFORMERS, PAPER
from .evaluation import Measured, all_measured, measured_by_card, result_table
from .facts import code, language_codes, plain

TEMPLATE = Path(__file__).parent / "derived.md"
# Metadata that are copied from the card of the source.
INHERITED = ("license", "license_name", "license_link", "datasets")
OF_PICTURES = ("image-text-retrieval", "video-text-retrieval")  # tags that a text-only export does not inherit


def write_derived_card(
    folder: str | Path,
    source: str | Path,
    *,
    evaluations: Sequence[str | Path] = (),
    out: str | Path | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write the card of a checkpoint that `mpclip.export.text` or `mpclip.export.int8` made from another one.

    Args:
        folder: the new checkpoint.
        source: folder or Hub id of the checkpoint that it was made from. Licence, language, data set and recalls are read from
            the card of the source.
        evaluations: JSON files of `python -m eval retrieval` that measure `folder` itself.
        out: the card's file; README.md in `folder` by default.
        repo_id: name that the snippet loads; by default the folder's name.

    Returns:
        The card's file.

    Raises:
        FileNotFoundError: `folder` has no config.json, or `source` has no card.
        ValueError: `folder` is neither a text-only export nor an int8 checkpoint, or a file of `evaluations` is not a result
            of it.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if not config:
        raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a checkpoint.")
    text_only, int8 = config.get("text_only", False), "Int8WeightOnlyConfig" in json.dumps(config.get("quantization_config"))
    if not text_only and not int8:
        raise ValueError(f"{folder} is neither a text-only export nor an int8 checkpoint: write its card without --source.")
    card, hub_id = _card_of(source)
    name = repo_id or folder.absolute().name
    results = all_measured(Measured(folder, name), config, {}, list(evaluations))
    of_source = measured_by_card(card.data.eval_results)
    title = name.split("/")[-1]
    in_index = [result for row in results for result in row.for_index()]
    metadata = ModelCardData(
        **{key: value for key in INHERITED if (value := card.data.get(key))},
        language=language_codes(card.data.get("language")) or None,
        tags=[tag for tag in card.data.get("tags") or [] if not (text_only and tag in OF_PICTURES)] or None,
        base_model=hub_id,
        base_model_relation="quantized" if hub_id and int8 else None,
        library_name="sentence-transformers" if text_only else "transformers",
        pipeline_tag="sentence-similarity" if text_only else card.data.get("pipeline_tag"),
        model_name=title if in_index else None,
        eval_results=in_index or None,
    )
    facts = {
        "code": code,
        "plain": plain,
        "title": title,
        "repo": json.dumps(name, ensure_ascii=False),
        "source": f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else code(Path(source).absolute().name),
        "text_only": text_only,
        "int8": int8,
        "size": f"{sum(file.stat().st_size for file in folder.glob('*.safetensors')) / 1e6:,.1f} MB",
        "oldest_transformers": OLDEST_TRANSFORMERS,
        "results": results,
        "result_table": result_table(results),
        "source_table": result_table(of_source) if of_source else None,
        "gemma": card.data.get("license") == "gemma",
        "paper": PAPER,
    }
    out = Path(out) if out is not None else folder / "README.md"
    ModelCard.from_template(metadata, template_path=str(TEMPLATE), **facts).save(out)
    return out


def _card_of(source: str | Path) -> tuple[ModelCard, str | None]:
    """The card of a checkpoint, and its Hub id if it is known.

    Raises:
        FileNotFoundError: the folder `source` has no README.md.
    """
    if not Path(source).is_dir():
        return ModelCard.load(str(source)), str(source)
    file = Path(source, "README.md")
    if not file.is_file():
        raise FileNotFoundError(f"{source} has no card: write it first with python -m model_card {source}")
    hub_id = read_json(Path(source, "training.json")).get("MPCLIPTrainingArguments", {}).get("hub_model_id")
    return ModelCard.load(file), hub_id if hub_id and "/" in hub_id else None
