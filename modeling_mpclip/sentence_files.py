"""Writes the two small files that sentence-transformers needs to load a checkpoint. Every saved checkpoint has them."""

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
# sentence-transformers refuses to load a model whose requirements are not met. It does not write them when it saves a model.
REQUIREMENTS = {package: f">={oldest}" for package, oldest in {**OLDEST_VERSIONS, "sentence-transformers": "6.0"}.items()}


def save_sentence_files(folder: str | Path) -> None:
    """Write `modules.json` and `config_sentence_transformers.json` to a folder.

    Prompts and settings in an existing `config_sentence_transformers.json` are kept.

    Args:
        folder: of the checkpoint.
    """
    Path(folder, "modules.json").write_text(json.dumps(MODULES, indent=2))
    file = Path(folder, "config_sentence_transformers.json")
    present = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    settings = SETTINGS | present | {"requirements": REQUIREMENTS}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
