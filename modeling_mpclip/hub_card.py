"""The short model card that `push_to_hub` writes from a model's config. A training run writes a longer one (model_card/).

transformers on its own would push an empty form to fill in, and would overwrite a card in the saved folder.
"""

import json
import re
from pathlib import Path

CARD = "README.md"
FORM = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
MARK = "<!-- Written by push_to_hub, and again by the next one: delete this line to keep what you change. -->"
TAGS = ["mp-clip", "sentence-transformers", "custom_code"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def card_in(folder: str | Path) -> str | None:
    """The text of the card in a folder; None if there is no card."""
    file = Path(folder, CARD)
    return file.read_text(encoding="utf-8") if file.is_file() else None


def is_form(card: str | None) -> bool:
    """Whether the text of a card is the empty form of transformers."""
    return card is not None and FORM in card


def put_card(folder: str | Path, before: str | None, repo_id: str, config) -> None:
    """Replace the card that transformers wrote to `folder`; keep a card that a person wrote.

    Args:
        folder: the folder that is about to be pushed.
        before: text of the card that stood in the saved folder before transformers wrote one. If a person wrote it, it is
            kept; otherwise the repository's card is kept if a person wrote that.
        repo_id: the repository, "user/name"; the name is the title of the card.
        config: the model's [`MPCLIPConfig`].
    """
    written = card_in(folder)
    kept = next((card for card in (before, written) if card and not is_form(card) and MARK not in card), None)
    if kept is None:
        kept = _render(_metadata(written or ""), repo_id, config)
    Path(folder, CARD).write_text(kept, encoding="utf-8")


def _metadata(card: str) -> dict[str, str]:
    """The YAML metadata on top of a card: key -> the text behind it, including the lines of a list."""
    block = card.split("---")[1] if card.startswith("---") else ""
    return dict(re.findall(r"^(\w+):(.*(?:\n[ -].*)*)", block, re.MULTILINE))


def _render(given: dict[str, str], repo_id: str, config) -> str:
    """The text of the card. The metadata in `given`, such as a licence or tags, is kept."""
    towers = [tower for tower in (config.text_config, config.vision_config) if tower is not None]
    # A tower that was loaded from a folder has no Hub id, even if the path of the folder looks like one.
    ids = [name for tower in towers if HUB_ID.fullmatch(name := tower._name_or_path or "") and not Path(name).exists()]
    tags = TAGS if config.text_only else [*TAGS, "image-text-retrieval"]
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction" if config.text_only else "zero-shot-image-classification",
        "tags": list(dict.fromkeys([*re.findall(r"[\w-][\w.-]*", given.get("tags", "")), *tags])),
        **({"base_model": ids} if ids else {}),
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in metadata.items()]  # JSON is YAML
    written = "\n".join([*lines, *(f"{name}:{value}" for name, value in given.items() if name not in metadata)])
    K, D = config.num_prompts, config.projection_dim
    prompts = "\n".join(json.dumps(template, ensure_ascii=False) for template in config.templates)
    read = f"It reads a text through {K} prompts, each of which gives {D // K} of the {D} dimensions:\n\n```\n{prompts}\n```"
    return f"""---
{written}
---
{MARK}

# {escaped(repo_id.split("/")[-1])}

An MP-CLIP model ([arXiv 2508.02762](https://arxiv.org/abs/2508.02762)), made of {" and ".join(t.model_type for t in towers)}.
{read if prompts else f"Its embeddings have {D} dimensions."}

This card was written from the model's config. It does not say how the model was trained or how good it is. The licence of the
weights follows the licences of the models that they come from.

```python
{_snippet(repo_id, config)}
```
"""


def escaped(text: str) -> str:
    """Any text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", text)


def _snippet(repo_id: str, config) -> str:
    """The Python example of the card."""
    repo = json.dumps(repo_id)
    if config.text_only:
        return f"""import torch
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained({repo}, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained({repo})

batch = tokenizer(["a photo of a cat", "a photo of a dog"], padding=True, return_tensors="pt")
with torch.no_grad():
    embeddings = model(**batch).text_embeds  # (2, {config.projection_dim}), normalised"""
    return f"""import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained({repo}, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained({repo}, trust_remote_code=True)

picture = Image.new("RGB", (224, 224), "red")  # or Image.open("photo.jpg")
batch = processor(text=["a photo of a cat", "a photo of a dog"], images=[picture])
with torch.no_grad():
    output = model(**batch)  # text_embeds, image_embeds: normalised, {config.projection_dim} dimensions
probabilities = output.logits_per_image.{"sigmoid()" if config.loss == "sigmoid" else "softmax(dim=-1)"}  # (1, 2)"""
