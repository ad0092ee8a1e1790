"""From a checkpoint to vectors: every door gives the same embeddings, peers are opened too, long work goes on after a kill."""

import json

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import arguments, make_model, make_processor, make_tokenizer
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    SiglipTextConfig,
    SiglipVisionConfig,
)

import eval.__main__
from mpclip.data.image_text import load_image_text
from mpclip.encoding import ModelEncoder, PeerEncoder, SentenceEncoder, encode_dataset, load_encoder
from mpclip.encoding.batches import by_length, in_batches
from mpclip.encoding.cache import Parts
from mpclip.search.build import build_index
from mpclip.search.chunks import Chunks
from mpclip.training.command_line import parse_options
from mpclip.training.run import build_trainer, train

COLOURS = ["red", "green", "blue", "white", "black"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoding") / "ours"
    tokenizer = make_tokenizer()
    make_model(tokenizer=tokenizer).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def rows():
    """Five pictures with one to three captions; one caption recurs."""
    captions = [[f"a {colour} square", f"{colour} all over", "a square"][: 1 + i % 3] for i, colour in enumerate(COLOURS)]
    pictures = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    return datasets.Dataset.from_dict({"image": pictures, "captions": captions})


def one_by_one(checkpoint: str, rows) -> dict[str, torch.Tensor]:
    """The slow, plain path: every text and picture alone."""
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
    processor = make_processor(make_tokenizer())
    with torch.no_grad():
        texts = [model(**dict(processor(text=[text]))).text_embeds for row in rows["captions"][:] for text in row]
        images = [model(**dict(processor(images=[image]))).image_embeds for image in rows["image"][:]]
    return {"text_embeds": torch.cat(texts), "image_embeds": torch.cat(images)}


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_data_set_in_batches_equals_one_by_one(checkpoint, rows, batch_size):
    embeds = encode_dataset(load_encoder(checkpoint), rows, batch_size)
    assert embeds["caption_image"].tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4]
    for name, expected in one_by_one(checkpoint, rows).items():
        assert embeds[name].dtype == torch.float32
        torch.testing.assert_close(embeds[name], expected, atol=1e-5, rtol=1e-4)


def test_texts_are_embedded_once_and_longest_first():
    seen = []

    class Counting(ModelEncoder):
        def embed_texts(self, texts):
            seen.append(list(texts))
            return torch.tensor([[float(len(text)), 1.0] for text in texts])

    tokenizer = make_tokenizer()
    encoder = Counting(make_model(tokenizer=tokenizer), make_processor(tokenizer))
    assert encoder.texts(["aa", "b", "aa", "cccc"], 2)[:, 0].tolist() == [2, 1, 2, 4]
    assert seen == [["cccc", "aa"], ["b"]]
    assert by_length(["a", "bb", "a"]) == ["bb", "a"]


def test_every_door_gives_equal_embeddings_and_recall(folder, tmp_path):
    """The Trainer's evaluation, `python -m eval`, an index, sentence-transformers and a bare encoder, on one trained model."""
    options = parse_options(arguments(folder, tmp_path / "run", "--num_train_epochs", "1"))
    trainer = build_trainer(options)
    metrics = train(trainer, options=options)
    images, texts, _ = map(torch.from_numpy, trainer.predict(trainer.eval_dataset).predictions)
    saved, data = str(tmp_path / "run"), str(folder / "data")
    rows = load_image_text(data, "validation")
    embeds = encode_dataset(load_encoder(saved), rows)
    torch.testing.assert_close(images, embeds["image_embeds"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(texts, embeds["text_embeds"], atol=1e-6, rtol=1e-5)

    command = ["retrieval", "--model", saved, "--data", data, "--split", "validation", "--json", str(tmp_path / "eval.json")]
    eval.__main__.main([*command, "--precision", "float32"])
    measured = json.loads((tmp_path / "eval.json").read_text())["metrics"]
    evaluated = {name.removeprefix("eval_"): value for name, value in metrics.items() if "R@" in name or "recall" in name}
    assert len(evaluated) == 7 and measured | evaluated == measured

    build_index(saved, data, tmp_path / "index", "validation")
    chunks = Chunks(tmp_path / "index" / "chunks")
    ids = list(chunks.keys().values())
    torch.testing.assert_close(torch.from_numpy(chunks.embeddings(ids).copy()), embeds["image_embeds"], atol=1e-6, rtol=1e-5)

    sentences = SentenceTransformer(saved, trust_remote_code=True)
    captions = [caption for row in rows["captions"][:] for caption in row]
    encoded = torch.from_numpy(np.asarray(sentences.encode(captions)))
    torch.testing.assert_close(encoded, embeds["text_embeds"], atol=1e-6, rtol=1e-5)


# Long work --------------------------------------------------------------------------------------------------------


def test_a_killed_encoding_goes_on(tmp_path):
    calls = []

    def embed(items):
        calls.append(list(items))
        if len(calls) == 40:
            raise KeyboardInterrupt
        return torch.tensor([[float(item)] for item in items])

    items, key = list(range(100)), {"model": "m"}
    with pytest.raises(KeyboardInterrupt):
        in_batches(embed, items, 2, "test", resume=Parts(tmp_path, key))
    assert len(calls) == 40
    whole = in_batches(embed, items, 2, "test", resume=Parts(tmp_path, key))
    assert whole[:, 0].tolist() == items and len(calls) == 40 + 50 - 32  # two parts of sixteen batches were kept
    again = in_batches(lambda _: pytest.fail("all is there"), items, 2, "test", resume=Parts(tmp_path, key))
    assert again.equal(whole)
    with pytest.raises(pytest.fail.Exception, match="computed"):  # another key has nothing
        in_batches(lambda _: pytest.fail("computed"), items, 2, "test", resume=Parts(tmp_path, {"model": "n"}))


def test_slow_batches_are_kept_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("mpclip.encoding.batches.PART_SECONDS", -1.0)

    def embed(items):
        if items[0] >= 6:
            raise KeyboardInterrupt
        return torch.tensor([[float(item)] for item in items])

    with pytest.raises(KeyboardInterrupt):
        in_batches(embed, list(range(10)), 2, "test", resume=Parts(tmp_path, {}))
    assert sorted(Parts(tmp_path, {}).load()) == [0, 2, 4]


def test_the_cache_of_a_data_set_knows_model_and_data(checkpoint, rows, tmp_path):
    encoder = load_encoder(checkpoint)
    first = encode_dataset(encoder, rows, cache=tmp_path)
    encoder.model.forward = lambda **_: pytest.fail("computed again")
    second = encode_dataset(encoder, rows, cache=tmp_path)
    assert all(first[name].equal(second[name]) for name in first)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        encode_dataset(encoder, rows.select(range(3)), cache=tmp_path)


# Peers ------------------------------------------------------------------------------------------------------------

TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


def peer_tokenizer(length: int) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(bos=True)
    tokenizer.model_max_length = length
    return tokenizer


def save_clip(folder) -> None:
    text = CLIPTextConfig(**TOWER, vocab_size=384, max_position_embeddings=16, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    CLIPProcessor(images, peer_tokenizer(16)).save_pretrained(folder)


def save_siglip(folder) -> None:
    text = SiglipTextConfig(**TOWER, vocab_size=384, max_position_embeddings=16, projection_size=32)
    torch.manual_seed(0)
    vision = SiglipVisionConfig(**TOWER, image_size=32, patch_size=8)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessorPil(size={"height": 32, "width": 32}), peer_tokenizer(16)).save_pretrained(folder)


@pytest.mark.parametrize("save, padding", [(save_clip, True), (save_siglip, "max_length")], ids=["clip", "siglip"])
def test_dual_encoders_of_transformers(save, padding, rows, tmp_path):
    """Against their own logits, one text and one picture at a time; SigLIP with texts padded to its own length."""
    save(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert type(encoder) is PeerEncoder and encoder.segments == 1
    texts, images = ["a red square", "a very long green square over there", "blue"], rows["image"][:]
    ours = encoder.images(images) @ encoder.texts(texts, 2).T  # (5, 3)
    model, processor = encoder.model, encoder.processor
    for i, image in enumerate(images):
        for t, text in enumerate(texts):
            batch = processor(text=[text], images=[image], padding=padding, truncation=True, return_tensors="pt")
            with torch.no_grad():
                output = model(**batch)
            cosine = F.cosine_similarity(output.image_embeds, output.text_embeds)
            torch.testing.assert_close(ours[i, t], cosine[0], atol=1e-5, rtol=1e-4)
    clip = encoder.clips([images[:2], images[2:3]])
    torch.testing.assert_close(clip[1], encoder.images(images[2:3])[0])
    torch.testing.assert_close(clip[0], F.normalize(encoder.images(images[:2]).mean(dim=0), dim=0))


def test_a_sentence_transformers_model(tmp_path):
    tokenizer = make_tokenizer().backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)]).save(str(tmp_path))
    encoder = load_encoder(str(tmp_path))
    assert type(encoder) is SentenceEncoder
    texts = ["a red square", "the sea"]
    expected = torch.from_numpy(SentenceTransformer(str(tmp_path)).encode(texts, normalize_embeddings=True))
    torch.testing.assert_close(encoder.texts(texts), expected)
    assert len(encoder.fingerprint()) == 64


def test_what_embeds_no_pictures_is_refused_by_name(tmp_path):
    from conftest import TEXT_CONFIGS

    AutoModel.from_config(TEXT_CONFIGS["llama"]()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a LlamaModel, which does not embed both texts and pictures"):
        load_encoder(str(tmp_path))


def test_clips_have_the_models_own_pooling(checkpoint, rows):
    encoder, images = load_encoder(checkpoint), rows["image"][:]
    batch = encoder.processor(videos=[images[:3], images[3:4]])
    with torch.no_grad():
        expected = encoder.model(**batch).image_embeds
    torch.testing.assert_close(encoder.clips([images[:3], images[3:4]]), expected)


def test_a_text_only_checkpoint_embeds_texts(checkpoint, tmp_path):
    from mpclip.export.text import export_text

    export_text(checkpoint, tmp_path / "text")
    texts = ["a red square", ""]
    torch.testing.assert_close(load_encoder(str(tmp_path / "text")).texts(texts), load_encoder(checkpoint).texts(texts))
