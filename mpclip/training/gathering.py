"""Embeddings of all processes for the contrastive loss, as `total_loss` takes them (`others`).

Each process contrasts its own B images with the texts of all processes, and its own texts with all images, so it keeps
B x (B of all processes) logits. The gradient of an embedding of another process is sent back to that process:

    softmax   all embeddings are gathered at once, and gradients are summed where they belong   `others_gathered`
    sigmoid   blocks of B embeddings travel around a ring, and their gradients travel back      `others_in_ring`

DDP averages the gradients of the processes. The loss of each is a mean over its own rows, and the mean of these losses is the
loss of one process with all pairs. So the averaged gradient is that of one process, and no factor is needed.

Local are the diversity loss, and of the negation loss all but the softmax over the texts of all processes. Batch norms are in
evaluation mode (`MPCLIPModel.train`), so no embedding depends on another example.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist


def others_gathered(x: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of the other processes, the next process first, by one all-gather.

    Args:
        x: (B, ...), of the same shape in all processes.

    Returns:
        One (B, ...) tensor per other process. The gradient of each returns to its process.
    """
    blocks = _Gather.apply(x).chunk(dist.get_world_size())
    rank = dist.get_rank()
    return [*blocks[rank + 1 :], *blocks[:rank]]


def others_in_ring(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """As `others_gathered`, but one after the other: every process passes on what it has and gets that of the next one."""
    for _ in range(dist.get_world_size() - 1):
        x = _FromNext.apply(x)
        yield x


def of_first_process(number: int | None, device: torch.device) -> int | None:
    """A number as process 0 has drawn it; None if there is none, which must be so in all processes."""
    if number is None:
        return None
    drawn = torch.tensor(number, device=device)
    dist.broadcast(drawn, src=0)
    return int(drawn)


def refuse_uneven(pairs: int, expected: int) -> None:
    """Refuse a batch with another number of pairs than the other processes have: the exchange would fail or never end.

    Args:
        pairs: of this process's batch.
        expected: pairs per step and process.

    Raises:
        ValueError: they differ.
    """
    if pairs != expected:
        raise ValueError(
            f"Process {dist.get_rank()} has a batch of {pairs} pairs, and the others one of {expected}. With several processes "
            "all batches are contrasted together and must be equally large: leave dataloader_drop_last true."
        )


class _Gather(torch.autograd.Function):
    """(B, ...) of each process -> (B of all processes, ...), in the order of the processes."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        blocks = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(blocks, x.contiguous())
        return torch.cat(blocks)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        blocks = [block.contiguous() for block in grad.chunk(dist.get_world_size())]
        own = torch.empty_like(blocks[0])
        dist.reduce_scatter(own, blocks)  # the sum over the processes
        return own


class _FromNext(torch.autograd.Function):
    """The tensor of the next process, while the one before gets ours. The gradient goes the other way."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return _passed(x, -1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return _passed(grad, 1)


def _passed(x: torch.Tensor, step: int) -> torch.Tensor:
    """Send x to the process `step` further on in the ring, and return what comes from the other side."""
    rank, count = dist.get_rank(), dist.get_world_size()
    received, x = torch.empty_like(x, memory_format=torch.contiguous_format), x.contiguous()
    exchange = [dist.P2POp(dist.isend, x, (rank + step) % count), dist.P2POp(dist.irecv, received, (rank - step) % count)]
    for transfer in dist.batch_isend_irecv(exchange):
        transfer.wait()
    return received
