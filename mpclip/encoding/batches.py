"""Batches for an encoder: texts of about one length together, progress, work shared by processes, and resume after a kill."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from mpclip.files import aside

logger = logging.getLogger(__name__)

PART_BATCHES = 16  # batches that a kill may cost


def by_length(texts: Sequence[str]) -> list[str]:
    """Each distinct text once, longest first: batches then hold little padding, and memory runs out at once or never."""
    return sorted(set(texts), key=lambda text: (-len(text), text))


def in_batches(
    embed: Callable[[Sequence], Tensor],
    items: Sequence,
    batch_size: int,
    title: str,
    *,
    progress: bool = True,
    shared: bool = False,
    resume: "Parts | None" = None,
) -> Tensor:
    """Embed items batch by batch.

    Args:
        embed: (up to `batch_size` items) -> (B, D) tensor.
        items: anything that can be sliced, such as a list or a column of a data set.
        title: of the progress bar.
        progress: show the bar where the output is a terminal.
        shared: the processes of a job (`accelerate launch`) take turns at the batches; every process gets all embeddings. All
            processes must call it.
        resume: where finished parts are kept and found again.

    Returns:
        (items, D) float32 on the CPU, in the order of the items.
    """
    starts = list(range(0, len(items), batch_size))
    state = PartialState() if shared else None
    if state is not None:
        starts = starts[state.process_index :: state.num_processes]
    done = resume.load() if resume is not None else {}
    waiting: dict[int, Tensor] = {}
    bar = tqdm(total=len(starts) * batch_size, desc=title, disable=None if progress else True, unit="")
    with torch.inference_mode(), bar:
        for start in starts:
            if start not in done:
                done[start] = waiting[start] = embed(items[start : start + batch_size]).float().cpu()  # (B, D)
            bar.update(min(batch_size, len(items) - start))
            if resume is not None and (len(waiting) == PART_BATCHES or (start == starts[-1] and waiting)):
                resume.save(waiting)
                waiting = {}
    if state is not None and state.num_processes > 1:
        done = dict(gather_object(list(done.items())))
    return torch.cat([done[start] for start in sorted(done)])


class Parts:
    """Embeddings of finished batches on disk, so that a long encoding goes on where it was killed.

    Args:
        folder: where the parts of all encodings lie.
        key: what the embeddings depend on: the model's fingerprint, the items, the batch size. Another key has other parts.
    """

    def __init__(self, folder: str | Path, key: dict):
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder, digest[:20])

    def load(self) -> dict[int, Tensor]:
        """Start of a batch -> (B, D) float32. A damaged part is named in a warning and computed again."""
        found: dict[int, Tensor] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                found |= {int(start): embeds for start, embeds in load_file(file).items()}
            except SafetensorError as error:
                logger.warning("%s is damaged (%s); its embeddings are computed again.", file, error)
                file.unlink()
        return found

    def save(self, batches: dict[int, Tensor]) -> None:
        """Write some batches as one part, whole or not at all."""
        with aside(self.folder / f"{min(batches):012d}.safetensors") as written:
            save_file({str(start): embeds.contiguous() for start, embeds in batches.items()}, written)
