"""The two small files by which sentence-transformers knows a checkpoint, written wherever one is saved."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint_guard import OLDEST_VERSIONS

if TYPE_CHECKING:  # never run, so sentence-transformers is not needed here; but transformers ships the files it sees imported
    from .sentence_mpclip import MPCLIPSentenceModule  # noqa: F401

MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_mpclip.MPCLIPSentenceModule"}]
SETTINGS = {
    "model_type": "SentenceTransformer",
    "prompts": {"query": "", "document": ""},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}
# sentence-transformers refuses to load where these are not met; it does not write them when it saves a model again.
REQUIREMENTS = {package: f">={oldest}" for package, oldest in {**OLDEST_VERSIONS, "sentence-transformers": "6.0"}.items()}


def save_sentence_files(folder: str | Path) -> None:
    """Write `modules.json` and `config_sentence_transformers.json`; prompts and settings that stand there are kept."""
    Path(folder, "modules.json").write_text(json.dumps(MODULES, indent=2))
    file = Path(folder, "config_sentence_transformers.json")
    present = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    settings = SETTINGS | present | {"requirements": REQUIREMENTS}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
