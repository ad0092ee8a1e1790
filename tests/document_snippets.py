"""The code of documents, and a folder in which it runs: tiny models stand where the documents have real ones."""

import re
import shlex
import textwrap
from pathlib import Path

from conftest import make_model, make_processor, make_tokenizer, save_towers

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, code) of the code blocks of a page in their order."""
    found = BLOCK.finditer((ROOT / page).read_text())
    return [(block["language"], textwrap.dedent(block["code"])) for block in found if block["language"] in languages]


def snippets(page: str) -> list[str]:
    """The Python code of a page."""
    return [code for _, code in blocks(page, "python")]


def commands(code: str) -> list[list[str]]:
    """The words of each `mpclip` command of a code block, without the first one."""
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mpclip ")]


def make_models(folder: Path) -> None:
    """The demo's model and the pretrained towers, all tiny, below `folder`."""
    tokenizer = make_tokenizer()
    make_model(num_prompts=6, tokenizer=tokenizer).save_pretrained(folder / "runs/demo/multi_prompt")
    make_processor(tokenizer).save_pretrained(folder / "runs/demo/multi_prompt")
    save_towers(folder / "towers")


def use_towers(folder: Path, monkeypatch) -> None:
    """Make the towers below `folder` those that are packaged."""
    towers = {"smollm2-135m": folder / "towers/text", "efficientnet-lite0": folder / "towers/vision"}
    for module in ("mpclip.data.backbones", "mpclip.training.run"):
        monkeypatch.setattr(f"{module}.resolve_backbone", lambda name: str(towers.get(name, name)))
