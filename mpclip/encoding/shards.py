"""Embeds shards: one in, one parquet file out. Any number of workers may do this on one folder, and any of them may die.

    worker = ShardWorker(load_encoder("runs/demo/multi_prompt"), "embeddings")
    worker.run(open_shards("laion/*.tar"))

A worker skips a shard whose file is there and whole, and one that another worker has in hand. What it writes appears whole or
not at all. So the command that failed is the command that goes on. No scheduler is needed, and under any of them it works:
shard_shares.py reads torchrun's and Slurm's variables. ray.py runs the same work on Ray.
"""

import datetime
import hashlib
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers

from modeling_mpclip.picture_files import open_rgb
from mpclip.data.picture_size import MAX_MEGAPIXELS
from mpclip.hardware import choose_precision, describe_machine
from mpclip.progress import progress

from .decoding import PIXELS_AHEAD, decoded, pixels_of
from .encoder import Encoder
from .shard_files import STORED, Damaged, OtherEmbeddings, columns_of, read_note, refuse_other, write_embeddings
from .shard_locks import STALE, ShardLock
from .shard_sources import Sample, Shard

logger = logging.getLogger(__name__)
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class EmbedOptions:
    """What a file of embeddings depends on, beside the model and the shard.

    Attributes:
        stored: dtype of the embeddings in the file: "float16" or "float32".
        captions: also embed each picture's first caption.
        max_megapixels, image_column, caption_column: as in `mpclip.data.reading.ReadingOptions`.
    """

    stored: str = "float16"
    captions: bool = False
    max_megapixels: float = MAX_MEGAPIXELS
    image_column: str | None = None
    caption_column: str | None = None

    def __post_init__(self):
        if self.stored not in STORED:
            raise ValueError(f"stored={self.stored!r}: expected one of {', '.join(STORED)}")


@dataclass
class Done:
    """What a worker did: numbers of shards it `embedded`, found `whole` or found in the hands of others (`busy`); numbers of
    rows and of unreadable samples that it embedded; and shards that `failed`, by name, with the reason."""

    embedded: int = 0
    whole: int = 0
    busy: int = 0
    rows: int = 0
    unreadable: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class ShardWorker:
    """Embeds shards with one model.

    Args:
        encoder: of a checkpoint, with pictures.
        out: folder for NAME.parquet of each shard; see shard_files.py.
        options: what the files hold.
        batch_size: pictures per batch, and captions. The embeddings are those of `encoder.images` with this batch size, to the
            digit; only where pictures are so large that a batch would fill the memory is it cut.
        stale: seconds after which the lock of a worker that gives no sign is anyone's.
        verify: read existing files whole, and hash shards, instead of looking at ends, sizes and dates.

    Raises:
        ValueError: the model embeds texts alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        out: str | Path,
        options: EmbedOptions | None = None,
        batch_size: int = 64,
        stale: float = STALE,
        verify: bool = False,
    ):
        encoder.refuse_text_only()
        self.encoder, self.out, self.options = encoder, Path(out), options or EmbedOptions()
        self.batch_size, self.stale, self.verify = batch_size, stale, verify
        self.depends = depends_on(encoder, self.options)

    def run(self, shards: Sequence[Shard]) -> Done:
        """Embed the shards that are not embedded yet, one after the other.

        A shard that cannot be read, or gives embeddings that are not finite, is named and left; the others go on.

        Raises:
            ValueError: a file in `out` is of another model, of other options or of something else; nothing is embedded.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if there := next((shard for shard in shards if self.path(shard).exists()), None):
            self.is_whole(there)  # rather than after the first shards
        done, rest = Done(), 0.0
        total = max(1, round(sum(shard.bytes for shard in shards) / MEGABYTE))
        with progress("Embedding", total, "megabyte") as shown:
            for shard in shards:
                self._one(shard, done)
                rest += shard.bytes / MEGABYTE
                shown.update(int(rest))
                rest -= int(rest)
        return done

    def embed(self, shard: Shard, still_mine: Callable[[], bool] = lambda: True) -> tuple[int, int] | None:
        """Embed one shard, whatever is there already, and write its file.

        Args:
            shard: the shard.
            still_mine: asked before the file is written, whether it shall be.

        Returns:
            Numbers of rows and of unreadable samples; None if the shard is no longer this worker's.

        Raises:
            ValueError: the shard cannot be read or changes meanwhile, or an embedding is not finite.
        """
        identity = shard.identity({})
        rows: dict[str, list] = {name: [] for name in ("key", "place", "url", "sha256", "caption")}
        unreadable: list[tuple[str, str]] = []
        parts: list[np.ndarray] = []
        waiting: list[PIL.Image.Image] = []

        def embed_waiting() -> None:
            if waiting:
                parts.append(self.encoder.images(waiting, self.batch_size, quiet=True).numpy())  # (B, D)
                waiting.clear()

        for sample, made, fault in decoded(shard.samples(), _decode, 2 * self.batch_size, self.options.max_megapixels):
            if fault is not None:
                unreadable.append((sample.key, fault))
                continue
            sha256, picture = made
            caption = next(iter(sample.captions), None)
            cells = (sample.key, sample.place or None, sample.url, sha256, caption)
            for column, cell in zip(rows.values(), cells, strict=True):
                column.append(cell)
            waiting.append(picture)
            if len(waiting) == self.batch_size or sum(map(pixels_of, waiting)) > PIXELS_AHEAD:
                embed_waiting()
        embed_waiting()
        embeddings = np.concatenate(parts) if parts else self._nothing()  # (n, D)
        captions = None
        if self.options.captions:
            texts = [caption for caption in rows["caption"] if caption is not None]
            captions = self.encoder.texts(texts, self.batch_size, quiet=True).numpy() if texts else self._nothing()  # (c, D)
        for found, of in ((embeddings, rows["key"]), (captions, [])):
            self._refuse_not_finite(found, of)
        if shard.identity(identity) != identity:
            raise ValueError(f"{shard.name} was changed while it was read: embed it again")
        if not still_mine():
            return None
        table = columns_of(rows, self.options.stored, embeddings, captions)
        facts = {"source": identity, "width": embeddings.shape[1], "segments": self.encoder.segments}
        write_embeddings(self.path(shard), table, self.depends | facts | how_made(self.batch_size), unreadable)
        return len(embeddings), len(unreadable)

    def path(self, shard: Shard) -> Path:
        """The file of a shard."""
        return self.out / f"{shard.name}.parquet"

    def is_whole(self, shard: Shard) -> bool:
        """Whether the file of a shard is there, whole, and of the shard as it is now. Says what is wrong with one that is not.

        Raises:
            ValueError: it is of another model, of other options or of something else.
        """
        path = self.path(shard)
        try:
            note = read_note(path, whole=self.verify)
        except FileNotFoundError:
            return False
        except Damaged as error:
            warnings.warn(f"{error}: it is made anew", stacklevel=2)
            return False
        refuse_other(path, note, self.depends)
        if shard.identity({} if self.verify else note["source"])["xxh3"] != note["source"]["xxh3"]:
            warnings.warn(f"{shard.name} is not as it was when {path} was made: it is embedded again", stacklevel=2)
            return False
        return True

    def _one(self, shard: Shard, done: Done) -> None:
        """Embed a shard unless it is done or in other hands, and count it."""
        lock = ShardLock(self.path(shard), self.stale)
        try:
            if self.is_whole(shard):
                done.whole += 1
                return
            if not lock.take():
                done.busy += 1
                logger.info("%s is in the hands of %s", shard.name, lock.holder() or "another worker")
                return
            try:
                if self.is_whole(shard):  # another worker has just finished it
                    done.whole += 1
                    return
                started = time.monotonic()
                embedded = self.embed(shard, lock.held)
            finally:
                lock.release()
        except OtherEmbeddings:
            raise
        except (OSError, ValueError) as error:
            done.failed[shard.name] = str(error)
            logger.warning("%s was not embedded: %s", shard.name, error)
            return
        if embedded is None:
            done.busy += 1
            logger.warning("%s was taken over by another worker, because this one had given no sign for long", shard.name)
            return
        rows, unreadable = embedded
        done.embedded, done.rows, done.unreadable = done.embedded + 1, done.rows + rows, done.unreadable + unreadable
        speed = (rows + unreadable) / max(time.monotonic() - started, 1e-9)
        logger.info("%s: %d rows, %d unreadable, %.1f pictures per second", shard.name, rows, unreadable, speed)

    def _nothing(self) -> np.ndarray:
        """(0, D): the embeddings of a shard without a picture that can be read."""
        return self.encoder.images([PIL.Image.new("RGB", (32, 32))], quiet=True).numpy()[:0]

    def _refuse_not_finite(self, embeddings: np.ndarray | None, keys: list[str]) -> None:
        if embeddings is None or np.isfinite(embeddings).all():
            return
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        named = ", ".join(keys[i] for i in bad[:20]) if keys else f"{len(bad)} captions"
        raise ValueError(f"{self.encoder.name} gives embeddings that are not finite, of {named}")


def depends_on(encoder: Encoder, options: EmbedOptions) -> dict:
    """What embeddings depend on, for the note of a file."""
    model = os.path.abspath(encoder.name) if os.path.isdir(encoder.name) else encoder.name
    weights = getattr(encoder.model, "dtype", None)
    found = {"model": model, "fingerprint": encoder.fingerprint(), "dtype": str(weights).removeprefix("torch.")}
    if options.captions:
        found["preparation"] = hashlib.sha256(encoder.preparation().encode()).hexdigest()
    return found | asdict(options)


def precision_of_output(asked: str, out: str | Path, device: str | None = None) -> str:
    """The dtype to embed in; as `mpclip.hardware.choose_precision`.

    Args:
        asked: "auto" for that of the files in `out`, or the fastest where there is none; or the name of a dtype.
        out: folder of the embeddings.
        device: torch device that will compute.
    """
    if asked == "auto":
        for path in sorted(Path(out).glob("*.parquet")):
            try:
                asked = read_note(path)["dtype"]
                break
            except (Damaged, FileNotFoundError):
                continue
    return choose_precision(asked, device)


def how_made(batch_size: int) -> dict:
    """How a file came about; nothing that it is refused for."""
    return {
        "batch_size": batch_size,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
    }


def _decode(sample: Sample) -> tuple[bytes, PIL.Image.Image]:
    """SHA-256 of a picture's file, and the picture. For threads."""
    if sample.fault is not None:
        raise ValueError(sample.fault)
    return hashlib.sha256(sample.content).digest(), open_rgb(io.BytesIO(sample.content))
