"""Indexes of pictures in tests: a tiny model, a folder of photos, and what is counted. Loaded by `pytest_plugins`.

PYTEST_DONT_REWRITE: the test files also import from it, before pytest loads it.
"""

import time

import numpy as np
import PIL.Image
import pytest
from conftest import make_model, make_processor, make_tokenizer

from mpclip.search.queries import QueryEncoder
from mpclip.search.stores import STORES

K = 3
PICTURES = 11
WEIGHTS = [0.2, 1.0, 3.0]


def counts(embedded: int, removed: int = 0) -> dict:
    """What a build of all the photos returns."""
    return {"pictures": PICTURES, "names": PICTURES, "embedded": embedded, "removed": removed, "unreadable": {}}


def add_picture(path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).resize((60, 48), PIL.Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny checkpoint whose embeddings of different pictures differ."""
    folder = tmp_path_factory.mktemp("index") / "model"
    tokenizer = make_tokenizer()
    make_model(num_prompts=K, tokenizer=tokenizer).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def encoder(model):
    return QueryEncoder(model)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i in range(PICTURES):
        add_picture(folder / ("a/b" if i % 2 else "") / f"{i:02}.{('png', 'jpg', 'webp', 'JPEG')[i % 4]}", i)
    return folder


@pytest.fixture
def embedded(monkeypatch):
    """How many pictures each call embedded."""
    calls = []
    original = QueryEncoder.embed_pictures

    def counted(self, pictures):
        calls.append(len(pictures))
        return original(self, pictures)

    monkeypatch.setattr(QueryEncoder, "embed_pictures", counted)
    return calls


@pytest.fixture(params=STORES)
def store(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def settled(monkeypatch):
    """As if this program had started only now: the checkpoints of the tests are then older."""
    monkeypatch.setattr("mpclip.encoding.fingerprint.STARTED", time.time_ns())
