"""Runs an encoder over batches: sorts texts by length, shows progress, shares work among processes, resumes after a kill."""

import time
from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from mpclip.progress import progress

from .cache import Parts

PART_BATCHES, PART_SECONDS = 16, 30.0  # of a saved part, at most (and a batch at least); a kill loses no more than these


def by_length(texts: Sequence[str]) -> list[str]:
    """Each distinct text once, longest first. Batches then contain little padding, and the first one needs the most memory."""
    return sorted(set(texts), key=lambda text: (-len(text), text))


def in_batches(
    embed: Callable[[Sequence], Tensor],
    items: Sequence,
    batch_size: int,
    title: str,
    *,
    quiet: bool = False,
    shared: bool = False,
    resume: Parts | None = None,
) -> Tensor:
    """Embed items batch by batch.

    Args:
        embed: a batch of up to `batch_size` items -> (B, D) tensor.
        items: anything that can be sliced, such as a list or a column of a data set.
        batch_size: items per batch.
        title, quiet: as for `progress`.
        shared: share the batches among the processes of a job (`accelerate launch`). All processes must call the function, and
            each gets all embeddings.
        resume: stores finished parts and loads those of an interrupted call. None: nothing is stored.

    Returns:
        (items, D) float32 on the CPU, in the order of the items.
    """
    all_starts = starts = list(range(0, len(items), batch_size))
    state = PartialState() if shared else None
    if state is not None:
        starts = starts[state.process_index :: state.num_processes]  # each batch belongs to one process
    done = resume.load() if resume is not None else {}
    waiting: dict[int, Tensor] = {}
    saved = time.monotonic()
    sizes = {start: min(batch_size, len(items) - start) for start in starts}
    before = sum(size for start, size in sizes.items() if start in done)
    with torch.inference_mode(), progress(title, sum(sizes.values()), "item", before, quiet) as shown:
        for start in starts:
            if start not in done:
                done[start] = waiting[start] = embed(items[start : start + batch_size]).float().cpu()  # (B, D)
                shown.update(sizes[start])
            full = len(waiting) == PART_BATCHES or time.monotonic() - saved > PART_SECONDS
            if resume is not None and waiting and (full or start == starts[-1]):
                resume.save(waiting)
                waiting, saved = {}, time.monotonic()
    if state is not None and state.num_processes > 1:
        done = dict(gather_object([(start, done[start]) for start in starts]))
    return torch.cat([done[start] for start in all_starts])
