"""What frozen towers tell of captions and pictures, as one vector each: the features of `benchmarks.closed_form`.

Of a text: the states at the end of every prompt after some layers, the mean of the states of its own tokens after others, and
the mean of its tokens' input embeddings ("words"), which needs no layer at all. Of a picture: the mean of its tokens, each
normalised as the attention pooling normalises them. They are kept in a folder, because the LLM runs for minutes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from modeling_mpclip import MPCLIPModel
from modeling_mpclip.prompt_attention import tree_tensors
from mpclip.data.image_text import load_image_text
from mpclip.data.joined_captions import with_joined_captions
from mpclip.progress import track
from mpclip.training.state_cache import vision_runner

BATCH = 64  # captions of about the same length


@dataclass
class Features:
    """The features of a split with I pictures and T captions.

    Attributes:
        text: name -> (T, n, H) float16. "prompts D": n = K states after layer D. "mean D": n = 1. "words": n = 1.
        image: (I, C) float16.
        owner: (T,) int64, the picture of each caption, ascending.
    """

    text: dict[str, torch.Tensor]
    image: torch.Tensor
    owner: torch.Tensor

    def first(self, pictures: int) -> "Features":
        """Those of the first pictures alone."""
        kept = self.owner < pictures
        return Features({k: x[kept] for k, x in self.text.items()}, self.image[:pictures], self.owner[kept])


@torch.inference_mode()
def text_features(
    model: MPCLIPModel,
    tokenizer,
    texts: list[str],
    prompt_layers: list[int],
    mean_layers: list[int],
    start: str = "",
    batch_size: int = BATCH,
) -> dict[str, torch.Tensor]:
    """Name -> (T, n, H) float16, as in `Features.text`.

    Args:
        model: with frozen towers.
        tokenizer: of its LLM.
        texts: T captions.
        prompt_layers, mean_layers: after how many layers the states are read; 0 is the input of the first layer.
        start: tokens in front of every text. They are no part of its means.
        batch_size: texts that run at a time. Long ones are fastest in small batches on a CPU.
    """
    tree, H = model.prompt_tree(), model.config.text_config.hidden_size
    front = len(tokenizer(start)["input_ids"]) if start else 0
    sizes = (
        {f"prompts {d}": model.config.num_prompts for d in prompt_layers} | {f"mean {d}": 1 for d in mean_layers} | {"words": 1}
    )
    found = {name: torch.zeros(len(texts), n, H, dtype=torch.float16) for name, n in sizes.items()}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = range(0, len(texts), batch_size)
    for begin in track(batches, "Features of texts", len(batches), "batch"):
        rows = order[begin : begin + batch_size]
        encoded = tokenizer(
            [start + texts[i] for i in rows], padding=True, padding_side="right", truncation=True, return_tensors="pt"
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"]  # (B, N) each
        states = model.text_model(ids, mask, tree=tree, output_hidden_states=True).hidden_states  # L + 1 of (B, N + T, H)
        readouts = ids.shape[1] + tree_tensors(tree, ids.device).readouts  # (K,)
        counted = mask[:, front:, None].float()  # (B, N - front, 1)
        mean = {d: (states[d][:, front : ids.shape[1]].float() * counted).sum(1) / counted.sum(1) for d in {0, *mean_layers}}
        for d in prompt_layers:
            found[f"prompts {d}"][rows] = states[d][:, readouts].half()  # (B, K, H)
        for d in mean_layers:
            found[f"mean {d}"][rows] = mean[d][:, None].half()  # (B, 1, H)
        found["words"][rows] = mean[0][:, None].half()
    return found


def image_features(model: MPCLIPModel, image_processor, images, precision: str) -> torch.Tensor:
    """(I, C) float16: the mean of the layer-normalised tokens of each picture."""
    run = vision_runner(model, image_processor, "cpu", precision)
    means = []
    batches = range(0, len(images), 8)
    for begin in track(batches, "Features of pictures", len(batches), "batch"):
        tokens = run(images[begin : begin + 8])  # (N, C) each
        means += [F.layer_norm(one.float(), one.shape[-1:]).mean(dim=0).half() for one in tokens]
    return torch.stack(means)


def features(
    data: str,
    split: str,
    folder: str | Path,
    towers: dict,
    prompt_layers: list[int],
    mean_layers: list[int],
    start: str = "",
    precision: str = "float32",
    joined: int | None = None,
    batch_size: int = BATCH,
) -> Features:
    """The features of a split, computed once for a folder.

    Args:
        data, split: the pictures with captions, as `load_image_text` takes them.
        folder: where they are kept. It is not keyed by anything but the split, `start` and `joined`: use one folder per model.
        towers: arguments of `MPCLIPModel.from_pretrained_towers`.
        prompt_layers, mean_layers, start, batch_size: of `text_features`.
        precision: name of the dtype to compute in.
        joined: captions of a picture that make its one text (`joined_captions.py`). None: each caption is a text.
    """
    name = "".join(c if c.isalnum() else "_" for c in f"{Path(data).name} {split}")
    texts_kept = f"text{'_after_start' if start else ''}{f'_joined_{joined}' if joined else ''}.safetensors"
    kept = Path(folder) / name / texts_kept, Path(folder) / name / "image.safetensors"
    rows = load_image_text(data, split)
    rows = with_joined_captions(rows, joined) if joined else rows
    captions = rows.with_format(None)["captions"][:]
    owner = torch.tensor([i for i, row in enumerate(captions) for _ in row])  # (T,)
    if not all(file.exists() for file in kept):
        from transformers import AutoImageProcessor, AutoTokenizer

        from mpclip.data.backbones import prepare_backbone

        model = MPCLIPModel.from_pretrained_towers(**towers, text_kwargs={"dtype": getattr(torch, precision)})
        model.eval().requires_grad_(False)
        kept[0].parent.mkdir(parents=True, exist_ok=True)
        if not kept[1].exists():
            processor = AutoImageProcessor.from_pretrained(prepare_backbone(towers["vision"]))
            save_file({"image": image_features(model, processor, rows["image"], precision)}, kept[1])
        if not kept[0].exists():
            tokenizer = AutoTokenizer.from_pretrained(prepare_backbone(towers["text"]))
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            texts = [text for row in captions for text in row]
            found = text_features(model, tokenizer, texts, prompt_layers, mean_layers, start, batch_size)
            save_file(found, kept[0])
    return Features(load_file(kept[0]), load_file(kept[1])["image"], owner)
