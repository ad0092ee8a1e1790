"""States of frozen towers, computed once and kept on disk.

    texts  -> hidden states that enter the first trained layer of the LLM   `cache_text_states`
    images -> tokens of the vision encoder                                  `cache_image_states`

They do not go stale: everything below is frozen. They are computed and stored in bfloat16, so training on them equals live
training to bfloat16 rounding; in Arrow shards that are memory-mapped.

A cache stands in a folder named by a hash of everything it depends on: weights, token ids or pixels, prompts, layer, dtype.
What has changed therefore misses, and is never silently used. Shards are written aside and renamed, and listed in a manifest
with their SHA-256: a killed run goes on after its last whole shard, and a damaged shard is computed again.
"""

import contextlib
import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import PartialState
from tqdm.auto import tqdm

from modeling_mpclip import PromptTree
from modeling_mpclip.image_tower import vision_tokens

logger = logging.getLogger(__name__)
SHARD_ROWS = 1024
REVISION = 1  # of the code that computes states; raise it when that changes what it gives


class StateStore:
    """Rows of bfloat16 states, (tokens, width) each with its own number of tokens.

    Args:
        folder: of a finished cache.
        width: channels of a token.
    """

    def __init__(self, folder: Path, width: int):
        shards = json.loads((folder / "manifest.json").read_text())["shards"]
        rows = [datasets.Dataset.from_file(str(folder / name)) for name in shards]
        self.rows = datasets.concatenate_datasets(rows).with_format("arrow")
        self.width = width

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> list[torch.Tensor]:
        """[(tokens, width) bfloat16] of some rows."""
        cells = self.rows[indices]["states"]
        return [torch.frombuffer(bytearray(cell.as_buffer()), dtype=torch.bfloat16).view(-1, self.width) for cell in cells]


def cached_store(
    folder: str | os.PathLike,
    key: dict,
    count: int,
    width: int,
    compute: Callable[[range], list[torch.Tensor]],
    title: str,
) -> StateStore:
    """The store for `key` under `folder`, computed as far as it is not there yet.

    Args:
        key: everything the states depend on, as JSON values; its hash names the cache.
        count: rows.
        compute: a range of rows -> [(tokens, width)] of their states.
        title: of the progress bar.

    With several processes the first computes and the others wait for it.
    """
    key = _complete_key(key, count)
    target = Path(folder) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    with PartialState().main_process_first():
        _complete(target, key, count, compute, title)
    return StateStore(target, width)


def _complete_key(key: dict, count: int) -> dict:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "revision": REVISION}
    return {**key, **versions, "count": count, "dtype": "bfloat16"}


def _damaged(folder: Path, manifest: dict) -> list[str]:
    """Listed shards that are missing or not what was written."""
    shards = manifest["shards"].items()
    return [name for name, digest in shards if not (folder / name).exists() or _sha256_file(folder / name) != digest]


def _complete(target: Path, key: dict, count: int, compute: Callable, title: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    manifest_file = target / "manifest.json"
    manifest = {"key": key, "done": False, "shards": {}}
    if manifest_file.exists():
        manifest = json.loads(manifest_file.read_text())
    for name in _damaged(target, manifest):
        logger.warning("%s is damaged or missing; its states are computed again.", target / name)
        del manifest["shards"][name]

    shards = {f"{start:09d}.arrow": range(start, min(start + SHARD_ROWS, count)) for start in range(0, count, SHARD_ROWS)}
    done = sum(len(rows) for name, rows in shards.items() if name in manifest["shards"])
    if done == count:
        return
    with tqdm(total=count, initial=done, desc=title, unit="row") as progress:
        for name, rows in shards.items():
            if name in manifest["shards"]:
                continue
            aside = target / f"{name}.part-{os.getpid()}"
            with datasets.arrow_writer.ArrowWriter(path=str(aside), features=_FEATURES) as writer:
                for states in compute(rows):
                    writer.write({"states": states.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()})
                    progress.update()
                writer.finalize()
            os.replace(aside, target / name)
            manifest["shards"] = dict(sorted({**manifest["shards"], name: _sha256_file(target / name)}.items()))
            manifest["done"] = len(manifest["shards"]) == len(shards)
            _write_aside(manifest_file, json.dumps(manifest, indent=1))


_FEATURES = datasets.Features({"states": datasets.Value("large_binary")})


class TextStates:
    """Cached hidden states of texts, padded into batches.

    `store` holds (text tokens + T', H) rows; of its T' prompt nodes those in `nodes` are handed out.
    """

    def __init__(self, store: StateStore, row_of: dict[str, int], stored_nodes: int, nodes: list[int]):
        self.store, self.row_of, self.stored_nodes, self.nodes = store, row_of, stored_nodes, nodes

    def batch(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """`text_hidden_states` (B, N + T, H) bfloat16 and `attention_mask` (B, N), padded on the left."""
        rows = self.store[[self.row_of[text] for text in texts]]
        lengths = [len(row) - self.stored_nodes for row in rows]
        N = max(lengths)
        columns = [torch.cat([torch.arange(n), n + torch.tensor(self.nodes, dtype=torch.long)]) for n in lengths]
        padded = torch.stack(
            [torch.cat([row.new_zeros(N - n, row.shape[1]), row[c]]) for row, n, c in zip(rows, lengths, columns, strict=True)]
        )  # (B, N + T, H)
        mask = torch.tensor([[0] * (N - n) + [1] * n for n in lengths])  # (B, N)
        return {"text_hidden_states": padded, "attention_mask": mask}


def cache_text_states(
    model,
    tokenizer,
    texts: Iterable[str],
    folder: str | os.PathLike,
    negated: bool = False,
    device: torch.device | str = "cpu",
    tokens_per_batch: int = 8192,
) -> TextStates:
    """Hidden states of every distinct text with the prompts, entering the model's boundary layer.

    Args:
        model: an `MPCLIPModel` with adaptive_tokens="boundary" and frozen layers below the boundary.
        negated: with the negated prompts.
        device: to compute on.
        tokens_per_batch: padded tokens computed at once.

    A cache that holds more prompts than the model has serves it too: a node's state depends on its ancestors alone. So a
    single-prompt baseline, or a model without negation, uses what was computed for the larger one.

    Raises:
        ValueError: something below the boundary is trained, so that its states would go stale with the first step.
    """
    tower = model.text_model
    if tower.boundary_embedding is None:
        raise ValueError(
            "adaptive_tokens='input' learns the embeddings below every layer, so no hidden state stays valid. "
            "Set adaptive_tokens='boundary', or cache_states=false."
        )
    below = {
        **{f"layers.{i}.{n}": p for i in range(tower.split_layer) for n, p in tower.layers[i].named_parameters()},
        "embed_tokens": tower.embed_tokens.weight,
    }
    trained = [name for name, parameter in below.items() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"{len(trained)} parameters below layer {tower.split_layer} are trained ({trained[0]}, ...): their cached states "
            "would go stale. Freeze them, lower boundary_layer, or set cache_states=false."
        )
    texts = sorted(set(texts), key=lambda text: (len(text), text))  # neighbours have about the same length
    ids = [tokenizer(text, truncation=True)["input_ids"] for text in texts]
    key = {
        "kind": "text",
        "weights": _sha256_tensors(below),
        "config": _config_without_path(tower.config),
        "ids": _sha256(json.dumps(ids).encode()),
        "layer": tower.split_layer,
    }
    tree = model.prompt_tree(negated)
    identity = _identity(tree, tower)
    stored, nodes = _cached_superset(Path(folder), _complete_key(key, len(texts)), identity)
    twin = _bfloat16_twin(tower, device)
    if twin.device.type == "cpu":
        twin.set_attn_implementation("eager")  # on short rows faster than sdpa there, and equal to rounding

    @torch.inference_mode()
    def compute(rows: range) -> Iterable[torch.Tensor]:
        batch: list[list[int]] = []
        for i in rows:
            batch.append(ids[i])
            longest = max(map(len, batch)) + len(tree)
            if longest * (len(batch) + 1) > tokens_per_batch or i == rows[-1]:
                N = max(map(len, batch))
                padded = torch.tensor([[0] * (N - len(row)) + row for row in batch], device=twin.device).view(len(batch), N)
                mask = torch.tensor([[0] * (N - len(row)) + [1] * len(row) for row in batch], device=twin.device)
                states = twin.lower(padded, mask.view(len(batch), N), tree, tower.split_layer).cpu()  # (b, N + T, H)
                yield from (states[j, N - len(row) :] for j, row in enumerate(batch))
                batch = []

    store = cached_store(folder, {**key, "tree": stored}, len(texts), tower.config.hidden_size, compute, "text states")
    return TextStates(store, {text: i for i, text in enumerate(texts)}, len(stored["token_ids"]), nodes)


def _identity(tree: PromptTree, tower) -> dict:
    """The tree with each adaptive token told by its embedding, on which the states depend, in place of its number."""
    rows = tower.adaptive_embedding.weight.detach().cpu()
    label = {token_id: _sha256_tensors({"": rows[i]})[:16] for i, token_id in enumerate(tower.adaptive_token_ids)}
    return {"token_ids": [label.get(token_id, token_id) for token_id in tree.token_ids], "parents": list(tree.parents)}


def _cached_superset(folder: Path, key: dict, identity: dict) -> tuple[dict, list[int]]:
    """The tree of a whole and undamaged cache that contains `identity`, and where; `identity` itself if there is none."""
    for manifest_file in sorted(folder.glob("*/manifest.json")):
        manifest = json.loads(manifest_file.read_text())
        stored = manifest["key"].get("tree")
        same = all(manifest["key"].get(name) == value for name, value in key.items())
        if stored and same and manifest["done"]:
            with contextlib.suppress(ValueError):
                nodes = PromptTree.from_dict(stored).locate(PromptTree.from_dict(identity))
                if not _damaged(manifest_file.parent, manifest):
                    return stored, nodes
    return identity, list(range(len(identity["parents"])))


class ImageStates:
    """Cached vision tokens, (N, C) for each row of a data set."""

    def __init__(self, store: StateStore):
        self.store = store

    def batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """`vision_hidden_states` (B, N, C) bfloat16."""
        return {"vision_hidden_states": torch.stack(self.store[indices])}


def cache_image_states(
    model,
    image_processor,
    rows: datasets.Dataset,
    folder: str | os.PathLike,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> ImageStates:
    """Vision tokens of every image of `rows` (column `image`), which the vision encoder must not be trained on.

    Raises:
        ValueError: the vision encoder is trained.
    """
    trained = [name for name, parameter in model.vision_model.named_parameters() if parameter.requires_grad]
    if trained:
        raise ValueError(f"The vision encoder is trained ({trained[0]}, ...); freeze it or set cache_states=false.")
    key = {
        "kind": "image",
        "weights": _sha256_tensors(model.vision_model.state_dict()),
        "config": _config_without_path(model.vision_model.config),
        "processor": image_processor.to_json_string(),
        "images": _identity_of_images(rows),
    }
    twin = _bfloat16_twin(model.vision_model, device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def compute(wanted: range) -> Iterable[torch.Tensor]:
        for start in range(wanted.start, wanted.stop, batch_size):
            images = rows[start : min(start + batch_size, wanted.stop)]["image"]
            pixels = image_processor(images, return_tensors="pt")["pixel_values"].to(twin.device, torch.bfloat16)
            yield from vision_tokens(twin(pixel_values=pixels).last_hidden_state).cpu()  # (b, N, C)

    return ImageStates(cached_store(folder, key, len(rows), model.image_token_dim, compute, "image states"))


def _config_without_path(config) -> dict:
    """What a tower computes does not depend on the folder it was loaded from."""
    return {name: value for name, value in json.loads(config.to_json_string(use_diff=False)).items() if name != "_name_or_path"}


def _identity_of_images(rows: datasets.Dataset) -> str:
    """A hash that changes with the images: of their bytes where the table holds them, else of path, size and time."""
    digest = hashlib.sha256()
    for cell in rows.with_format(None).cast_column("image", datasets.Image(decode=False))["image"]:
        if cell["bytes"] is not None:
            digest.update(cell["bytes"])
        else:
            status = os.stat(cell["path"])
            digest.update(f"{cell['path']} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _bfloat16_twin(module: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
    """A frozen copy in bfloat16, in which CPUs and GPUs run a forward pass several times faster than in float32."""
    return copy.deepcopy(module).to(device, torch.bfloat16).eval().requires_grad_(False)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_tensors(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f"{path.name}.part-{os.getpid()}")
    aside.write_text(text)
    os.replace(aside, path)
