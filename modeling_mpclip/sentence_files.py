"""Writes the three small files of sentence-transformers into a checkpoint. Every saved checkpoint has them.

sentence-transformers needs `modules.json` and `config_sentence_transformers.json` to load the folder. mteb reads files before
it loads the model: `sentence_bert_config.json` says which kinds of inputs the model takes and how long a text may be.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint_guard import OLDEST_VERSIONS

if TYPE_CHECKING:  # never runs, so sentence-transformers is not needed; transformers copies the modules that are imported
    from .sentence_mpclip import MPCLIPSentenceModule  # noqa: F401

MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_mpclip.MPCLIPSentenceModule"}]
SETTINGS = {
    "model_type": "SentenceTransformer",
    "prompts": {"query": "", "document": ""},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}
# Kind of input -> the method of MPCLIPModel that embeds it, in the form of sentence-transformers.
MODALITIES = {
    "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
    "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
}
UNLIMITED = 10**9  # a tokenizer without a limit gives a larger number
# sentence-transformers refuses to load a model whose requirements are not met. It does not write them when it saves a model.
REQUIREMENTS = {package: f">={oldest}" for package, oldest in {**OLDEST_VERSIONS, "sentence-transformers": "6.0"}.items()}


def save_sentence_files(folder: str | Path) -> None:
    """Write `modules.json`, `config_sentence_transformers.json` and `sentence_bert_config.json` to a folder.

    Prompts and settings in an existing `config_sentence_transformers.json` are kept.

    Args:
        folder: of the checkpoint.
    """
    Path(folder, "modules.json").write_text(json.dumps(MODULES, indent=2))
    file = Path(folder, "config_sentence_transformers.json")
    settings = SETTINGS | _content(file) | {"requirements": REQUIREMENTS}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    save_input_kinds(folder)


def save_input_kinds(folder: str | Path, max_length: int | None = None) -> None:
    """Write `sentence_bert_config.json`: which kinds of inputs the model takes, and the tokens that a text is cut to.

    Args:
        folder: of the checkpoint. Its config.json says whether the model takes texts alone; without it, it takes pictures too.
        max_length: in tokens, without the prompts. None keeps what the file says. A number that stands for "unlimited" is
            written as null.
    """
    file = Path(folder, "sentence_bert_config.json")
    text_only = _content(Path(folder, "config.json")).get("text_only", False)
    modalities = {kind: method for kind, method in MODALITIES.items() if kind == "text" or not text_only}
    settings = _content(file) | {"modality_config": modalities, "module_output_name": "sentence_embedding"}
    if max_length is not None:
        settings["max_seq_length"] = max_length if max_length < UNLIMITED else None
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _content(file: Path) -> dict:
    """A JSON file; {} if there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
