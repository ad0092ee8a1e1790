"""Cached states: the outputs of frozen towers, computed once and stored on disk (`state_store.py`).

    texts  -> hidden states that enter the first trained layer of the LLM   `cache_text_states`
    images -> tokens of the vision encoder                                  `cache_image_states`
    clips  -> the same of their frames                                      `cache_clip_states`

The states stay valid because all weights below them are frozen. Training on states that were computed and stored in float32
equals training without a cache, up to rounding. In which dtype they are computed is a question of speed (`mpclip.hardware`), in
which they are stored one of space: bfloat16 (the default) takes half as much as float32, int8 a quarter. docs/cost.md has the
loss in recall.
"""

import copy
import functools
import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterable

import datasets
import PIL.Image
import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_mpclip import PromptTree
from modeling_mpclip.prompt_attention import PromptLayout
from modeling_mpclip.vision_encoder import run_vision_model
from mpclip.data.identity import identity_of_images
from mpclip.data.video import Clips, identity_of_videos

from .state_store import StateStore, complete_key, find_store, open_store


class TextStates:
    """Cached hidden states of texts.

    Args:
        store: one row per text, (text tokens + T', H).
        row_of: text -> index of its row.
        stored_nodes: T', the number of prompt nodes in a row.
        nodes: indices of the T nodes, out of T', that the model has.
    """

    def __init__(self, store: StateStore, row_of: dict[str, int], stored_nodes: int, nodes: list[int]):
        self.store, self.row_of, self.stored_nodes, self.nodes = store, row_of, stored_nodes, nodes

    def batch(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """B texts -> `text_hidden_states` (B, N + T, H) and `attention_mask` (B, N), padded on the left.

        Raises:
            KeyError: a text is not in the cache.
        """
        return padded_texts(self.store[[self.row_of[text] for text in texts]], self.stored_nodes, self.nodes)


def padded_texts(rows: list[torch.Tensor], stored_nodes: int, nodes: list[int]) -> dict[str, torch.Tensor]:
    """States of B texts, (text tokens + T', H) each -> `text_hidden_states` (B, N + T, H) and `attention_mask` (B, N).

    Args:
        rows: of the texts.
        stored_nodes, nodes: as for `TextStates`.
    """
    lengths = [len(row) - stored_nodes for row in rows]
    N = max(lengths)
    columns = [torch.cat([torch.arange(n), n + torch.tensor(nodes, dtype=torch.long)]) for n in lengths]
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
    format: str = "bfloat16",
    device: torch.device | str = "cpu",
    precision: str = "float32",
    tokens_per_batch: int | None = None,
) -> TextStates:
    """Compute and store the hidden states of texts and prompts that enter the boundary layer, or find them in the cache.

    A cache with more prompts than the model has is used too, because the state of a node depends only on the text and on the
    node's ancestors. So a single-prompt baseline, or a model without negation, uses the cache of the larger model.

    Args:
        model: an [`MPCLIPModel`] with adaptive_tokens="boundary" and frozen layers below the boundary.
        tokenizer: of the model.
        texts: equal texts are stored once.
        folder: of all caches.
        negated: include the negated prompts.
        format: "float32", "float16", "bfloat16" or "int8" (`state_store.FORMATS`): how the states are stored.
        device: device to compute on.
        precision: name of the dtype to compute in. Stored states that were computed in float32 are used too.
        tokens_per_batch: tokens of a batch, with padding and prompts. Default: 8192; on the CPU 1024, whose
            activations fit into its caches.

    Raises:
        ValueError: a parameter below the boundary is trained; its states would be wrong after the first step. Or the layers of
            the tower do not run one by one.
    """
    tower, key = model.text_model, text_key(model)
    texts = sorted(set(texts), key=lambda text: (len(text), text))  # so that a batch has texts of about the same length
    ids = tokenizer(texts, truncation=True)["input_ids"]
    key = {"kind": "text", **key, "ids": _sha256(json.dumps(ids).encode())}
    tree = model.prompt_tree(negated)
    identity = tree_identity(tree, tower)
    key = complete_key({**key, "tree": identity}, len(texts), format, precision)
    key, waiting = find_store(folder, key, lambda found: _nodes_in(found, identity) is not None)
    run = text_runner(model, tree, device, precision, tokens_per_batch)

    def compute(rows: range) -> Iterable[torch.Tensor]:
        return run([ids[i] for i in rows])

    store = open_store(folder, key, tower.config.hidden_size, compute, "text states", waiting)
    row_of = {text: i for i, text in enumerate(texts)}
    return TextStates(store, row_of, len(key["tree"]["token_ids"]), _nodes_in(key, identity))


def text_key(model) -> dict:
    """What the states of texts depend on in a model: weights, config and layer, as JSON values.

    Raises:
        ValueError: as for `cache_text_states`.
    """
    tower = model.text_model
    if tower.path != "tree":
        raise ValueError(
            f"The layers of a text model of type {tower.config.model_type!r} do not run one by one (docs/towers.md), "
            "so hidden states between them cannot be stored. Set cache_text_states=false; the states of a frozen vision tower "
            "are stored all the same."
        )
    if tower.boundary_embedding is None:
        raise ValueError(
            "adaptive_tokens='input' learns embeddings below the first layer, so no hidden state stays valid. "
            "Set adaptive_tokens='boundary', cache_text_states=false or cache_states=false."
        )
    below = {
        **{f"layers.{i}.{n}": p for i in range(tower.split_layer) for n, p in tower.layers[i].named_parameters()},
        "embed_tokens": tower.get_input_embeddings().weight,
    }
    trained = [name for name, parameter in below.items() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"{len(trained)} parameters below layer {tower.split_layer} are trained ({trained[0]}, ...), so cached states "
            "would become invalid. Freeze them, lower boundary_layer, or set cache_text_states=false."
        )
    return {"weights": _hash_of(tower, below), "config": _config_without_path(tower.config), "layer": tower.split_layer}


def text_runner(
    model, tree: PromptTree, device: torch.device | str, precision: str, tokens_per_batch: int | None = None
) -> Callable[[list[list[int]]], Iterable[torch.Tensor]]:
    """A function from the token ids of texts to their states at the boundary layer, (text tokens + T, H) each, on the CPU.

    Args:
        model, device, precision, tokens_per_batch: as for `cache_text_states`.
        tree: its prompts, T nodes.
    """
    tower = model.text_model
    tokens_per_batch = tokens_per_batch or (1024 if torch.device(device).type == "cpu" else 8192)

    @functools.cache
    def frozen_tower():
        return _frozen_twin(tower, device, getattr(torch, precision))

    @torch.inference_mode()
    def run(ids: list[list[int]]) -> Iterable[torch.Tensor]:
        twin = frozen_tower()
        batch: list[list[int]] = []
        for i, of_text in enumerate(ids, 1):
            batch.append(of_text)
            longest = max(map(len, batch)) + len(tree)
            if longest * (len(batch) + 1) > tokens_per_batch or i == len(ids):
                N = max(map(len, batch))
                padded = torch.tensor([[0] * (N - len(row)) + row for row in batch], device=twin.device).view(len(batch), N)
                mask = torch.tensor([[0] * (N - len(row)) + [1] * len(row) for row in batch], device=twin.device)
                layout = PromptLayout(mask.view(len(batch), N), tree)
                states = twin.lower(padded, layout, tower.split_layer).cpu()  # (b, N + T, H)
                yield from (states[j, N - len(row) :] for j, row in enumerate(batch))
                batch = []

    return run


def tree_identity(tree: PromptTree, tower) -> dict:
    """The tree as JSON values, with the hash of its embedding in place of the id of each adaptive token.

    The states depend on the embedding, not on the id.
    """
    rows = tower.adaptive_embedding.weight.detach().cpu()
    label = {token_id: _sha256_tensors({"": rows[i]})[:16] for i, token_id in enumerate(tower.adaptive_token_ids)}
    return {"token_ids": [label.get(token_id, token_id) for token_id in tree.token_ids], "parents": list(tree.parents)}


def _nodes_in(found: dict, identity: dict) -> list[int] | None:
    """The indices of the nodes of a tree in the store of a key; None if the store does not have all of them.

    Args:
        found: key of a store.
        identity: the tree, from `tree_identity`.
    """
    try:
        # Not by from_dict, which takes numbers alone: labels stand for the ids of adaptive tokens.
        trees = (PromptTree(tuple(tree["token_ids"]), tuple(tree["parents"])) for tree in (found["tree"], identity))
        stored, wanted = trees
        return stored.locate(wanted)
    except ValueError:  # another tree
        return None


class ImageStates:
    """Cached vision tokens.

    Args:
        store: one row per image, (N, C), without tokens of padding.
    """

    def __init__(self, store: StateStore):
        self.store = store

    def batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """B row numbers -> `vision_hidden_states` (B, N, C), and `pixel_attention_mask` (B, N) if some have fewer tokens."""
        return padded_pictures(self.store[indices])


def padded_pictures(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tokens of B pictures, (N, C) each -> `vision_hidden_states` (B, N, C), and the mask if some have fewer tokens."""
    if len({len(row) for row in rows}) == 1:
        return {"vision_hidden_states": torch.stack(rows)}
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)  # (B, N)
    return {"vision_hidden_states": pad_sequence(rows, batch_first=True), "pixel_attention_mask": mask}


class ClipStates:
    """Cached vision tokens of the frames of clips.

    Args:
        store: one row per clip, (T * N, C); the number of frames T differs between clips.
        tokens_per_frame: N.
    """

    def __init__(self, store: StateStore, tokens_per_frame: int):
        self.store, self.tokens_per_frame = store, tokens_per_frame

    def batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """B row numbers -> `vision_hidden_states` (B, T, N, C) and `frame_mask` (B, T), 0 for padding frames."""
        rows = [row.unflatten(0, (-1, self.tokens_per_frame)) for row in self.store[indices]]  # (T, N, C) each
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)  # (B, T)
        return {"vision_hidden_states": pad_sequence(rows, batch_first=True), "frame_mask": mask}


def cache_image_states(
    model,
    image_processor,
    rows: datasets.Dataset,
    folder: str | os.PathLike,
    format: str = "bfloat16",
    device: torch.device | str = "cpu",
    precision: str = "float32",
    batch_size: int | None = None,
) -> ImageStates:
    """Compute and store the vision tokens of all images of a table, or find them in the cache.

    Args:
        model: an [`MPCLIPModel`] with a frozen vision encoder.
        image_processor: of the model's processor.
        rows: a table with a column `image`.
        folder, format, device, precision: as for `cache_text_states`.
        batch_size: images per batch. Default: 32; on the CPU 8, whose activations fit into its caches.

    Raises:
        ValueError: the vision encoder is trained.
    """

    batch_size = batch_size or _images_per_batch(device)

    def tokens_of(run: Callable, wanted: range) -> Iterable[torch.Tensor]:
        for start in range(wanted.start, wanted.stop, batch_size):
            yield from run(rows[start : min(start + batch_size, wanted.stop)]["image"])

    key = {"kind": "image", "images": identity_of_images(rows)}
    return ImageStates(_vision_store(model, image_processor, key, len(rows), tokens_of, folder, format, device, precision))


def cache_clip_states(
    model,
    image_processor,
    clips: Clips,
    folder: str | os.PathLike,
    format: str = "bfloat16",
    device: torch.device | str = "cpu",
    precision: str = "float32",
    batch_size: int | None = None,
) -> ClipStates:
    """Compute and store the vision tokens of the frames of all clips, or find them in the cache.

    Args:
        model, image_processor, folder, format, device, precision: as for `cache_image_states`.
        clips: the clips; frames are decoded while others are encoded.
        batch_size: frames per batch, which has whole clips. Default: as for `cache_image_states`.

    Raises:
        ValueError: the vision encoder is trained, or a clip cannot be decoded.
    """
    step = max(1, (batch_size or _images_per_batch(device)) // clips.num_frames)

    def tokens_of(run: Callable, wanted: range) -> Iterable[torch.Tensor]:
        for start in range(wanted.start, wanted.stop, step):
            batch = clips[start : min(start + step, wanted.stop)]
            tokens = iter(run([frame for clip in batch for frame in clip]))
            yield from (torch.cat([next(tokens) for _ in clip]) for clip in batch)  # (T * N, C) each

    key = {"kind": "clip", "clips": identity_of_videos(clips.paths), "frames": clips.num_frames, "sampling": clips.sampling}
    store = _vision_store(model, image_processor, key, len(clips), tokens_of, folder, format, device, precision)
    blank = image_processor([PIL.Image.new("RGB", (32, 32))], return_tensors="pt").to(model.device)
    with torch.inference_mode():
        tokens_per_frame = run_vision_model(model.vision_model, **blank).last_hidden_state.shape[1]
    return ClipStates(store, tokens_per_frame)


def _images_per_batch(device: torch.device | str) -> int:
    return 8 if torch.device(device).type == "cpu" else 32


def _vision_store(
    model,
    image_processor,
    key: dict,
    count: int,
    tokens_of: Callable[[Callable, range], Iterable[torch.Tensor]],
    folder: str | os.PathLike,
    format: str,
    device: torch.device | str,
    precision: str,
) -> StateStore:
    """The store of vision tokens with a key.

    Args:
        key: what tells the pictures apart.
        count: number of rows.
        tokens_of: a function from pictures to their tokens, and a range of rows -> the tokens of each row.
        model, image_processor, folder, format, device, precision: as for `cache_image_states`.
    """
    key = complete_key({**key, **vision_key(model, image_processor)}, count, format, precision)
    run = vision_runner(model, image_processor, device, precision)

    def compute(wanted: range) -> Iterable[torch.Tensor]:
        yield from tokens_of(run, wanted)

    key, waiting = find_store(folder, key)
    return open_store(folder, key, model.image_token_dim, compute, "image states", waiting)


def vision_key(model, image_processor) -> dict:
    """What the tokens of pictures depend on in a model and its image processor, as JSON values.

    Raises:
        ValueError: the vision encoder is trained.
    """
    trained = [name for name, parameter in model.vision_model.named_parameters() if parameter.requires_grad]
    if trained:
        raise ValueError(f"The vision encoder is trained ({trained[0]}, ...); freeze it or set cache_states=false.")
    return {
        "weights": _hash_of(model.vision_model, model.vision_model.state_dict()),
        "config": _config_without_path(model.vision_model.config),
        "processor": image_processor.to_json_string(),
    }


def vision_runner(
    model, image_processor, device: torch.device | str, precision: str
) -> Callable[[list], Iterable[torch.Tensor]]:
    """A function from pictures to the tokens of each, on the CPU.

    Args:
        model, image_processor, device, precision: as for `cache_image_states`.
    """

    @functools.cache
    def frozen_tower():
        return _frozen_twin(model.vision_model, device, getattr(torch, precision)).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(images: list) -> Iterable[torch.Tensor]:
        """Pictures -> the (N, C) tokens of each, without tokens of padding."""
        twin = frozen_tower()
        inputs = image_processor(images, return_tensors="pt").to(twin.device)
        tokens = run_vision_model(twin, **inputs).last_hidden_state.cpu()  # (b, N, C)
        mask = inputs.get("pixel_attention_mask")
        return tokens if mask is None else [row[m.bool()] for row, m in zip(tokens, mask.cpu(), strict=True)]

    return run


def _config_without_path(config) -> dict:
    """The config of a tower as JSON values, without the folder that it was loaded from."""
    return {name: value for name, value in json.loads(config.to_json_string(use_diff=False)).items() if name != "_name_or_path"}


def _frozen_twin(module: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> torch.nn.Module:
    """A copy of a tower to compute with. Made only if states are missing: it takes seconds and the memory of a tower."""
    return copy.deepcopy(module).to(device, dtype).eval().requires_grad_(False)


_hashes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # tower -> (state of its tensors, their hash)


def _hash_of(tower: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the frozen tensors of a tower. Computed once for all splits, and again after a write to a tensor."""
    written = [(name, tensor.data_ptr(), tensor._version) for name, tensor in sorted(tensors.items())]
    if tower not in _hashes or _hashes[tower][0] != written:
        _hashes[tower] = written, _sha256_tensors(tensors)
    return _hashes[tower][1]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_tensors(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
