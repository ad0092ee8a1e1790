"""Queries -> the pictures whose embeddings have the highest inner product with them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from modeling_mpclip.picture_files import open_rgb
from mpclip.search.chunks import ROW_BITS, Chunks, checksum
from mpclip.search.integrity import Integrity
from mpclip.search.manifest import MEND, read_manifest
from mpclip.search.pictures import thumbnail
from mpclip.search.places import Places
from mpclip.search.queries import QueryEncoder
from mpclip.search.stores import STORES

MORE = 10  # candidates per wanted picture from a store that only comes near; their exact scores then decide


@dataclasses.dataclass
class Hit:
    """A picture found: its name, its caption, the inner product with the query, and what each of the K aspects gives of it.

    `also` are the other names of a picture that is there more than once.
    """

    picture: str
    caption: str
    score: float
    aspects: list[float]
    thumbnail: bytes = dataclasses.field(repr=False)
    also: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Answer:
    """A query and what it found, best first. `text` is None where pictures alone were asked for.

    `aspect_names` are those of `weights` and of the hits' `aspects`.
    """

    text: str | None
    pictures: list[str]
    exclude: list[str]
    weights: list[float] | None
    hits: list[Hit]
    thumbnails: list[bytes] = dataclasses.field(repr=False)
    aspect_names: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict:
        """Everything but thumbnails."""
        answer = dataclasses.asdict(self)
        del answer["thumbnails"]
        for hit in answer["hits"]:
            del hit["thumbnail"]
        return answer


class PictureIndex:
    """A finished index, opened with the model that built it.

    Opening trusts files that have the size and the date of the last check, and hashes the others (integrity.py).

    Args:
        folder: of the index.
        encoder: the model.
        verify: hash the weights, the store and every chunk, whatever their dates.

    Raises:
        FileNotFoundError: no index there.
        ValueError: its build has not finished, a file of it is damaged, or the model is another.
    """

    def __init__(self, folder: str | Path, encoder: QueryEncoder, verify: bool = False):
        self.settings, self.encoder = read_settings(folder), encoder
        self._integrity = Integrity(Path(folder), self.settings, verify)
        if (given := self._integrity.fingerprint(encoder)) != self.settings["fingerprint"]:
            raise ValueError(
                f"{folder} was built with {self.settings['model']} in {self.settings['dtype']} (fingerprint "
                f"{self.settings['fingerprint'][:12]}), and {encoder.name} in {encoder.dtype} is another model ({given[:12]}): "
                "their embeddings do not compare. Query with that model, or build an index with this one"
            )
        vectors = Path(folder, self.settings["vectors"])
        if damaged := self._integrity.damaged({vectors / name: digest for name, digest in self.settings["checksums"].items()}):
            raise ValueError(f"{damaged[0]} is missing or damaged: {MEND}")
        self._chunks = Chunks(Path(folder, "chunks"), self._integrity)
        self._places = self._open_places(Path(folder))
        if verify:
            self._chunks.check(np.unique(np.load(vectors / "ids.npy") >> ROW_BITS).tolist())
        self._store = STORES[self.settings["store"]](vectors)
        self._integrity.remember()

    def search(self, queries: Tensor, top: int = 10) -> list[list[Hit]]:
        """Finds the pictures of highest inner product.

        Args:
            queries: (Q, D), as from `QueryEncoder.embed_queries`; with aspect weights in them or not.
            top: pictures per query, or all there are.

        Returns:
            for each query its hits, best first. Scores are exact whatever the store, and pictures of the same score stand in
            the order in which they were embedded.

        Raises:
            ValueError: `top` is below 1, or a chunk with a hit in it is missing or damaged.
        """
        if top < 1:
            raise ValueError(f"top={top}: expected at least 1")
        vectors = np.ascontiguousarray(queries.numpy(), dtype=np.float32)  # (Q, D)
        candidates = top if self.settings["kind"] == "flat" else MORE * top
        found = self._store.search(vectors, min(candidates, self.settings["pictures"]))  # (Q, candidates)
        hits = [self._hits(query, np.sort(ids[ids >= 0]), top) for query, ids in zip(vectors, found, strict=True)]
        self._integrity.remember()  # chunks that were hashed now
        return hits

    def _hits(self, query: np.ndarray, ids: np.ndarray, top: int) -> list[Hit]:
        aspects = (self._chunks.embeddings(ids) * query).reshape(len(ids), self.settings["aspects"], -1).sum(axis=2)  # (n, K)
        scores = aspects.sum(axis=1)
        order = np.argsort(-scores, kind="stable")[:top]
        hits = []
        for i, row in zip(order, self._chunks.rows(ids[order]), strict=True):
            # An index of the first format has names and captions beside the embeddings.
            places = self._places.of(ids[i]) if self._places else [(row["key"], row["caption"])]
            (name, _), *others = places
            caption = next((caption for _, caption in places if caption), "")
            also = [name for name, _ in others]
            hits.append(Hit(name, caption, float(scores[i]), aspects[i].tolist(), row["thumbnail"], also))
        return hits

    def _open_places(self, folder: Path) -> Places | None:
        """The places of the pictures; None for an index of the first format."""
        if "places" not in self.settings:
            return None
        file = folder / self.settings["places"]
        if self._integrity.damaged({file: checksum(file)}):
            raise ValueError(f"{file} is missing or damaged: {MEND}")
        return Places(file)


def read_settings(folder: str | Path) -> dict:
    """What index.json says of a finished index: `model`, `fingerprint`, `dtype`, `data`, `kind`, `pictures`, ..."""
    settings = read_manifest(Path(folder))
    if settings["vectors"] is None:
        raise ValueError(f"the build of {folder} has not finished: run it again, and it goes on where it was")
    return settings


def query_index(
    index: PictureIndex,
    texts: Sequence[str] = (),
    pictures: Sequence[str | Path] = (),
    *,
    exclude: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    top: int = 10,
) -> list[Answer]:
    """Answers to queries; the arguments are those of `QueryEncoder.embed_queries`, with pictures as files."""
    opened = [open_rgb(file) for file in pictures]
    queries = index.encoder.embed_queries(texts, opened, exclude, weights)  # (Q, D)
    names, small = [str(file) for file in pictures], [thumbnail(picture, 128) for picture in opened]
    asked = [(text, names, small) for text in texts] or [(None, [n], [s]) for n, s in zip(names, small, strict=True)]
    given = list(exclude), None if weights is None else list(weights)
    return [
        Answer(text, names, *given, hits, small, index.encoder.names)
        for (text, names, small), hits in zip(asked, index.search(queries, top), strict=True)
    ]


def weights_in_words(answer: Answer) -> str:
    """The weights of an answer with the names of their aspects: "color 1.5, action 1"."""
    names = answer.aspect_names or [str(k) for k in range(1, len(answer.weights) + 1)]
    return ", ".join(f"{name} {weight:g}" for name, weight in zip(names, answer.weights, strict=True))
