"""Recall of text-to-image and image-to-text retrieval on a data set of captioned images.

    python -m eval retrieval --model runs/demo/multi_prompt --data runs/demo/scenes --split test --json results/demo.json
    python -m eval retrieval --model you/your-model --data jxie/flickr8k --split test --json out.json --grid out.png

Every caption of the split searches all its images, and every image all its captions. Ties count against the model (see
eval/metrics.py). The data may be whatever mpclip/data/image_text.py opens; images that cannot be read are named and
skipped.

The JSON holds recalls in percent with 95% bootstrap intervals, the numbers of images and captions, and what it takes to
repeat the run: model, data, split, date, machine, command, seconds. On OpenMoji scenes it also says which aspects were
mistaken (eval/aspects.py).

--model runs the Python files that come with the checkpoint (trust_remote_code=True): give only checkpoints you trust.
"""

import argparse
import datetime
import json
import shlex
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor

from eval.aspects import count_mistakes
from eval.metrics import recall_intervals, recalls, retrieval_ranks
from eval.query_grid import query_grid
from mpclip.data.image_text import load_image_text
from mpclip.export.int8 import int8_config
from mpclip.hardware import describe_machine, usable_device

GRID_QUERIES = 6


def encode_dataset(model, processor, rows: datasets.Dataset, batch_size: int = 64, device: str = "cpu") -> dict:
    """Embeds every image and every caption of a table.

    Args:
        model: offers `dtype`, `get_text_features(input_ids=, attention_mask=)` and `get_image_features(pixel_values=)`,
            both giving a `pooler_output` (B, D). It is used as it is: on `device` and in eval mode.
        processor: offers `processor(text=list[str], ...)` and `processor(images=list[PIL], ...)`.
        rows: with `image` and `captions`, as from `load_image_text`.

    Returns:
        `image_embeds` (I, D) and `text_embeds` (T, D), fp32 on the CPU, L2-normalised, in the order of the rows;
        `caption_image` (T,) int64, the row that each caption belongs to.
    """
    captions_of_row = rows["captions"][:]
    captions = [caption for row in captions_of_row for caption in row]
    caption_image = torch.tensor([i for i, row in enumerate(captions_of_row) for _ in row], dtype=torch.int64)

    # Each distinct caption once, longest first: little padding, and memory runs out in the first batch or never.
    distinct = sorted(set(captions), key=lambda caption: (-len(caption), caption))
    place = {caption: n for n, caption in enumerate(distinct)}

    def embed_texts(start: int) -> Tensor:
        texts = distinct[start : start + batch_size]
        inputs = processor(text=texts, padding=True, truncation=True, return_tensors="pt")
        ids, mask = inputs["input_ids"].to(device), inputs["attention_mask"].to(device)  # (B, N)
        return model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output  # (B, D)

    def embed_images(start: int) -> Tensor:
        images = rows[start : start + batch_size]["image"]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(device, model.dtype)  # (B, C, H, W)
        return model.get_image_features(pixel_values=pixels).pooler_output  # (B, D)

    text_embeds = _in_batches(embed_texts, len(distinct), batch_size, "Embedding captions")
    return {
        "image_embeds": _in_batches(embed_images, len(rows), batch_size, "Embedding images"),
        "text_embeds": text_embeds[[place[caption] for caption in captions]],
        "caption_image": caption_image,
    }


def evaluate_retrieval(
    model: str,
    data: str,
    split: str,
    *,
    json_path: str | Path | None = None,
    grid_path: str | Path | None = None,
    batch_size: int = 64,
    dtype: str = "float32",
    quantize: str | None = None,
    device: str | None = None,
    limit: int | None = None,
    command: str | None = None,
) -> dict:
    """Measures retrieval of a saved model on one split, with what is needed to repeat it.

    Args:
        model: folder or Hub id of a checkpoint; the Python files in it are run.
        data, split, limit: as in `load_image_text`.
        json_path, grid_path: where to write the result, and a picture of a few queries with what they found.
        dtype: of the weights, "float32" or "bfloat16"; embeddings are normalised and compared in fp32 all the same.
        quantize: "int8" for int8 weights of the LLM (mpclip/export/int8.py), None for those of the checkpoint.
        device: by default the GPU if there is one.
        command: recorded in the result.

    Returns:
        `text_to_image`, `image_to_text`, `mean_recall` as in `retrieval_metrics`; `interval_95` as in
        `recall_intervals`; `images`, `captions` (their numbers), `model`, `data`, `split`, `limit`, `dtype`,
        `quantize`, `batch_size`, `date`, `machine`, `command`, `seconds`; on OpenMoji scenes `mistakes` as in `count_mistakes`.
    """
    started = time.monotonic()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = load_image_text(data, split, limit=limit)
    weights = {"dtype": getattr(torch, dtype)} | ({"quantization_config": int8_config()} if quantize == "int8" else {})
    loaded = AutoModel.from_pretrained(model, trust_remote_code=True, **weights).to(device).eval()
    processor = AutoProcessor.from_pretrained(model, trust_remote_code=True)

    embeds = encode_dataset(loaded, processor, rows, batch_size, device)
    result = measure(embeds, rows) | {
        "images": len(embeds["image_embeds"]),
        "captions": len(embeds["text_embeds"]),
        "model": model,
        "data": data,
        "split": split,
        "limit": limit,
        "dtype": dtype,
        "quantize": quantize,
        "batch_size": batch_size,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
        "command": command,
        "seconds": round(time.monotonic() - started, 1),
    }
    if grid_path:
        write_grid(rows, embeds, grid_path)
    if json_path:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def measure(embeds: dict, rows: datasets.Dataset) -> dict:
    """Everything that embeddings tell: recalls, their intervals, on OpenMoji scenes the mistakes.

    Args:
        embeds: as from `encode_dataset`.
        rows: the images they belong to.
    """
    text_ranks, image_ranks = retrieval_ranks(**embeds)
    result = recalls(text_ranks, image_ranks)
    result["interval_95"] = recall_intervals(text_ranks, image_ranks, embeds["caption_image"].numpy())
    if "scene" in rows.column_names:
        result["mistakes"] = count_mistakes(**embeds, text_ranks=text_ranks, rows=rows)
    return result


def table(result: dict) -> str:
    """The recalls with their intervals, in aligned columns."""
    lines = [f"{result['captions']:,} captions, {result['images']:,} images".ljust(32) + "R@1     R@5    R@10"]
    for direction in ("text_to_image", "image_to_text"):
        recall, interval = result[direction], result["interval_95"][direction]
        lines += [f"{direction.replace('_', '-'):<28}" + "".join(f"{value:>7.1f} " for value in recall.values())]
        margins = (f"±{(high - low) / 2:.1f}" for low, high in interval.values())
        lines += [f"{'  95% interval':<28}" + "".join(f"{margin:>7} " for margin in margins)]
    lines += [f"{'mean recall':<28}{result['mean_recall']:>7.1f}"]
    if "mistakes" in result:
        wrong = {what: count for what, count in result["mistakes"].items() if what != "queries"}
        lines += ["", f"{'wrong image at first place':<28}{sum(wrong.values()):>7,} of {result['captions']:,} captions"]
        lines += [f"  {what:<26}{count:>7,}" for what, count in wrong.items()]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str]) -> None:
    """The command; `arguments` are those after `python -m eval retrieval`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval retrieval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id; its Python files are run")
    parser.add_argument("--data", required=True, help="folder, parquet file, saved data set, or Hub id")
    parser.add_argument("--split", required=True, help="name of the split, such as validation or test")
    parser.add_argument("--json", required=True, metavar="OUT.json", help="where to write the result")
    parser.add_argument("--grid", metavar="OUT.png", help=f"also draw {GRID_QUERIES} queries with the images they found")
    parser.add_argument("--batch_size", type=int, default=64, help="images or captions at a time (default 64)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights; bfloat16 is faster, at slightly different embeddings (default float32)",
    )
    parser.add_argument(
        "--quantize", choices=("int8",), help="load the LLM's weights as int8, whatever the checkpoint holds (needs torchao)"
    )
    parser.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument("--limit", type=int, help="only the first LIMIT images, for a quick look")
    options = parser.parse_args(arguments)

    try:
        result = evaluate_retrieval(
            options.model,
            options.data,
            options.split,
            json_path=options.json,
            grid_path=options.grid,
            batch_size=options.batch_size,
            dtype=options.dtype,
            quantize=options.quantize,
            device=options.device,
            limit=options.limit,
            command=shlex.join(["python", "-m", "eval", "retrieval", *arguments]),
        )
    except (ImportError, OSError, ValueError) as error:  # what the user can mend; several libraries write many lines
        raise SystemExit(f"{parser.prog}: {' '.join(str(error).split())}") from error
    print(table(result))
    print(f"\nwritten: {options.json}" + (f", {options.grid}" if options.grid else ""))


def _in_batches(embed, count: int, batch_size: int, title: str) -> Tensor:
    """(count, D) fp32 on the CPU, L2-normalised, from `embed(start)` for each batch."""
    parts = []
    with torch.inference_mode(), tqdm(total=count, desc=title, disable=None) as progress:
        for start in range(0, count, batch_size):
            embeds = normalize(embed(start).float(), dim=-1).cpu()  # (B, D); a norm in bf16 would be off by 0.003
            parts.append(embeds)
            progress.update(len(embeds))
    return torch.cat(parts)


def write_grid(rows: datasets.Dataset, embeds: dict, path: str | Path) -> None:
    """Draws a few queries with what they found, evenly spread over the captions so that nobody picked them.

    Args:
        rows: the images and captions.
        embeds: their embeddings, as from `encode_dataset`.
        path: of the PNG.
    """
    count = len(embeds["text_embeds"])
    chosen = np.linspace(0, count - 1, min(GRID_QUERIES, count)).astype(int)  # (Q,)
    captions = [caption for row in rows["captions"][:] for caption in row]
    query_grid(
        [captions[t] for t in chosen],
        rows["image"],
        embeds["text_embeds"][chosen] @ embeds["image_embeds"].T,  # (Q, I)
        embeds["caption_image"][chosen],
        path,
    )
