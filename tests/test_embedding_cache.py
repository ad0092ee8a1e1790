"""The cache of embeddings: what it is keyed by, and that damaged, foreign and unwritable caches do no harm."""

import os
import shutil

import datasets
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image
from tokenizers import normalizers

from mpclip.data.identity import identity_of_images
from mpclip.encoding import Encoder, ModelEncoder, encode_images, encode_texts
from mpclip.encoding.batches import in_batches
from mpclip.encoding.cache import Parts, kept_parts, tokenizer_hash


class Counting(ModelEncoder):
    """Counts the texts and pictures that the model is asked for."""

    computed = 0

    def embed_texts(self, texts):
        self.computed += len(texts)
        return super().embed_texts(texts)

    def embed_images(self, images):
        self.computed += len(images)
        return super().embed_images(images)


def make_encoder(tmp_path, seed: int = 0, processor=None) -> Counting:
    folder = tmp_path / f"model{seed}"
    tokenizer = make_tokenizer()
    model = make_model(tokenizer=tokenizer)
    with torch.no_grad():
        model.text_projection.weight += seed
    model.save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return Counting(model, processor or make_processor(tokenizer), str(folder))


def pictures_in(folder, colours=("red", "green", "blue")) -> datasets.Dataset:
    """A table that refers to bitmaps, whose sizes do not depend on their colours."""
    folder.mkdir(exist_ok=True)
    for i, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(folder / f"{i}.bmp")
    paths = [str(folder / f"{i}.bmp") for i in range(len(colours))]
    return datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())


def embed(items):
    return torch.tensor([[float(item)] for item in items])


def encoded(cache, key=()) -> torch.Tensor:
    return in_batches(embed, range(10), 2, "test", resume=Parts(cache, dict(key)))


def test_texts_in_another_order_are_found_and_other_texts_are_not(tmp_path):
    encoder, texts = make_encoder(tmp_path), ["a cat", "the red boat", "a dog", "a cat"]
    first = encode_texts(encoder, texts, cache=tmp_path / "cache")
    assert encoder.computed == 3
    again = encode_texts(encoder, texts[::-1], cache=tmp_path / "cache")
    assert encoder.computed == 3 and again.equal(first.flip(0))
    encode_texts(encoder, ["a cat", "a car"], cache=tmp_path / "cache")
    assert encoder.computed == 5
    assert encode_texts(encoder, texts, batch_size=2, cache=tmp_path / "cache").shape == first.shape
    assert encoder.computed == 8
    assert encode_texts(encoder, texts).equal(first) and encoder.computed == 11  # without a folder nothing is kept


def test_a_picture_that_was_changed_in_place_is_embedded_again(tmp_path):
    encoder, cache = make_encoder(tmp_path), tmp_path / "cache"
    rows = pictures_in(tmp_path / "photos")
    first = encode_images(encoder, rows, cache=cache)
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    assert encode_images(encoder, pictures_in(tmp_path / "copy"), cache=cache).equal(first) and encoder.computed == 3

    changed = tmp_path / "photos" / "1.bmp"
    before = changed.stat()
    Image.new("RGB", (8, 8), "yellow").save(changed)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = encode_images(encoder, rows, cache=cache)
    assert encoder.computed == 6 and again[0].equal(first[0]) and not again[1].allclose(first[1])


def test_pictures_in_a_table_and_in_files_have_one_identity(tmp_path):
    rows = pictures_in(tmp_path / "photos")
    held = [{"path": None, "bytes": (tmp_path / "photos" / f"{i}.bmp").read_bytes()} for i in range(3)]
    table = datasets.Dataset.from_dict({"image": held}, features=rows.features)
    assert identity_of_images(table) == identity_of_images(rows)
    assert identity_of_images(table.select([1, 0, 2])) != identity_of_images(rows)


def test_another_model_tokenizer_or_code_has_another_cache(tmp_path, monkeypatch):
    encoder = make_encoder(tmp_path)

    def key(of: Encoder) -> str:
        return kept_parts(of, tmp_path, 64, texts=["a"]).key

    def copy(**changed) -> Counting:
        return Counting(**{"model": encoder.model, "processor": encoder.processor, "name": encoder.name} | changed)

    assert key(copy()) == key(encoder)
    assert key(make_encoder(tmp_path, seed=1)) != key(encoder)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert key(copy(processor=make_processor(tokenizer))) != key(encoder)
    shorter = make_tokenizer()
    shorter.model_max_length = 7
    assert key(copy(processor=make_processor(shorter))) != key(encoder)
    monkeypatch.setattr("mpclip.encoding.cache.code_hash", lambda _: "other code")
    assert key(copy()) != key(encoder)


def test_a_tokenizer_is_the_same_after_it_was_used():
    tokenizer = make_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["a cat"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(tokenizer) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_part_is_named_and_computed_again(tmp_path, caplog, damage):
    whole = encoded(tmp_path)
    (part,) = tmp_path.rglob("*.safetensors")
    content = bytearray(part.read_bytes())
    content[-2] ^= 1
    part.write_bytes({"cut": content[:-3], "flipped": content, "empty": b""}[damage])
    assert encoded(tmp_path).equal(whole)
    assert f"{part} is damaged" in caplog.text
    caplog.clear()
    assert encoded(tmp_path).equal(whole) and not caplog.text


def test_a_part_of_another_cache_is_not_used(tmp_path, caplog):
    whole = encoded(tmp_path / "mine")
    other = in_batches(lambda items: embed(items) + 1, range(10), 2, "test", resume=Parts(tmp_path / "other", {"model": "m"}))
    (mine,), (foreign,) = (list((tmp_path / name).rglob("*.safetensors")) for name in ("mine", "other"))
    shutil.copy(foreign, mine)
    assert encoded(tmp_path / "mine").equal(whole) and not whole.equal(other)
    assert "it is of another model, other data or an older version" in caplog.text


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    whole = in_batches(embed, range(100), 2, "test", resume=Parts(tmp_path / "file", {}))  # four parts
    assert whole[:, 0].tolist() == list(range(100))
    assert caplog.text.count("Embeddings cannot be kept in") == 1


def test_an_encoder_without_a_model_is_not_kept(tmp_path):
    class Lengths(Encoder):
        def embed_texts(self, texts):
            return torch.tensor([[float(len(text))] for text in texts])

        embed_images = embed_texts

    assert encode_texts(Lengths(), ["a", "bb"], cache=tmp_path)[:, 0].tolist() == [1, 2]
    assert not list(tmp_path.iterdir())
