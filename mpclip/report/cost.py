"""What a model costs: its parameters, the bytes of an embedding, and the time to embed on this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RUNS = 5  # of which the median counts
AT_ONCE = 8  # texts or pictures of a batch


@dataclass
class Cost:
    """What a model costs.

    Attributes:
        parameters: name of a part of the model -> number of its parameters, largest first.
        dimensions: D of an embedding.
        text_alone, image_alone: milliseconds to embed one text or one picture alone, the median of several runs.
        text_batch, image_batch: milliseconds for each of `batch` texts or pictures that are embedded together.
        batch: size of these batches.
    """

    parameters: dict[str, int]
    dimensions: int
    text_alone: float
    image_alone: float
    text_batch: float
    image_batch: float
    batch: int

    @property
    def total(self) -> int:
        """The number of all parameters."""
        return sum(self.parameters.values())


def cost(encoder, texts: Sequence[str], images: Sequence) -> Cost:
    """Count and measure.

    Args:
        encoder: an `mpclip.encoding.Encoder` whose model is a module of torch.
        texts: some captions; the first `AT_ONCE` are embedded.
        images: as many pictures, decoded: reading files is not measured.
    """
    texts, images = list(texts[:AT_ONCE]), list(images[:AT_ONCE])
    batch = min(len(texts), len(images))
    times = [
        milliseconds(embed, some) / len(some)
        for embed, given in ((encoder.embed_texts, texts), (encoder.embed_images, images))
        for some in (given[:1], given[:batch])
    ]
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.model.named_children()}
    rest = sum(p.numel() for p in encoder.model.parameters()) - sum(parts.values())
    parts = {name.replace("_", " "): count for name, count in parts.items() if count} | ({"others": rest} if rest > 0 else {})
    dimensions = encoder.embed_texts(texts[:1]).shape[-1]
    return Cost(
        dict(sorted(parts.items(), key=lambda part: -part[1])), dimensions, times[0], times[2], times[1], times[3], batch
    )


def milliseconds(embed: Callable[[Sequence], object], inputs: Sequence) -> float:
    """The median time of several runs, after one that is not counted. Embeddings come to the CPU, so a GPU has finished."""
    embed(inputs)
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        embed(inputs)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)
