"""A checkpoint as a sentence-transformers model: equal to MPCLIPModel, our own arguments, training, saving again."""

import json
import textwrap
from pathlib import Path

import fresh_process
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import arguments
from sentence_helpers import IMAGES, MAX_LENGTH, PAIRS, TEXTS, contents, load, save_checkpoint, train
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss, MultipleNegativesRankingLoss
from transformers import AutoModel, AutoTokenizer

import train_hf
from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from modeling_mpclip.segments import excluding
from modeling_mpclip.sentence_mpclip import MPCLIPSentenceModule

K, SEGMENT = 3, 4  # of the tiny checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("sentence") / "checkpoint")


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(checkpoint)


def directly(folder: Path, texts=None, images=None, **kwargs):
    """What MPCLIPModel itself gives, an input at a time."""
    model, processor = MPCLIPModel.from_pretrained(folder), MPCLIPProcessor.from_pretrained(folder)
    with torch.no_grad():
        if texts is not None:
            return torch.cat([model(**processor(text=["dog", x], truncation=True), **kwargs).text_embeds[1:] for x in texts])
        return torch.cat([model(**processor(images=[x])).image_embeds for x in images])


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_texts_equal_the_model(tmp_path, padding_side, batch_size):
    folder = save_checkpoint(tmp_path / "checkpoint", padding_side)
    model = load(folder)
    assert model.tokenizer.padding_side == padding_side
    embeds = model.encode(TEXTS, batch_size=batch_size, convert_to_tensor=True)
    torch.testing.assert_close(embeds, directly(folder, TEXTS), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(TEXTS)))
    torch.testing.assert_close(torch.from_numpy(model.encode("")), embeds[1], atol=1e-5, rtol=1e-5)


def test_too_long_texts_are_cut(checkpoint):
    model = load(checkpoint)
    assert model.preprocess(["x" * 300])["input_ids"].shape == (1, MAX_LENGTH)
    model.max_seq_length = 5
    assert model.preprocess(["x" * 300])["input_ids"].shape == (1, 5)
    assert model.preprocess(["x" * 300], max_length=4)["input_ids"].shape == (1, 4)
    shorter = {"text": {"max_length": 3}}
    assert model.preprocess(["x" * 300], processing_kwargs=shorter)["input_ids"].shape == (1, 3)


def test_images_equal_the_model(checkpoint, model, tmp_path):
    IMAGES[0].save(tmp_path / "red.png")
    images = [str(tmp_path / "red.png"), {"image": IMAGES[1]}, IMAGES[2].convert("RGBA"), np.array(IMAGES[3])]
    embeds = model.encode(images, convert_to_tensor=True)
    torch.testing.assert_close(embeds, directly(checkpoint, images=IMAGES), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"Encode each modality separately"):
        model.encode([IMAGES[0], "a text"])


def test_what_sentence_transformers_asks_a_model(model):
    assert model.get_embedding_dimension() == K * SEGMENT
    assert model.max_seq_length == MAX_LENGTH
    assert model.modalities == ["text", "image"] and model.supports("image") and not model.supports("message")
    assert set(model.get_model_kwargs()) == {"num_prompts", "aspect_weights", "exclude"}
    assert model.dtype == torch.float32 and model.similarity_fn_name == "cosine" and model.prompts["query"] == ""
    texts, images = model.encode_query(TEXTS[:2]), model.encode_document(IMAGES)
    np.testing.assert_allclose(model.similarity(texts, images), texts @ images.T, atol=1e-6)
    with pytest.raises(ValueError, match="does not use"):
        model.encode(["a"], no_such_argument=1)
    with pytest.raises(ValueError, match="Expected texts"):
        model.encode([("a", "pair")])


def test_prompts_stand_before_texts_excluded_ones_included(checkpoint):
    prompted = load(checkpoint, prompts={"query": "find: "})
    np.testing.assert_allclose(prompted.encode_query(["dog"]), prompted.encode(["find: dog"]), atol=1e-6)
    np.testing.assert_allclose(
        prompted.encode_query(["dog"], exclude="cat"), prompted.encode(["find: dog"], exclude="find: cat"), atol=1e-6
    )
    np.testing.assert_allclose(prompted.encode(["dog"], prompt="see "), prompted.encode(["see dog"]), atol=1e-6)


@pytest.mark.parametrize("inputs", [TEXTS, IMAGES], ids=["texts", "images"])
def test_truncation_cuts_the_vector_and_normalises_only_when_asked(model, inputs):
    whole = model.encode(inputs, convert_to_tensor=True)
    for width in (1, 6, SEGMENT, 2 * SEGMENT, K * SEGMENT):
        cut = model.encode(inputs, truncate_dim=width, convert_to_tensor=True)
        torch.testing.assert_close(cut, whole[:, :width], atol=1e-6, rtol=1e-6)
        unit = model.encode(inputs, truncate_dim=width, normalize_embeddings=True, convert_to_tensor=True)
        torch.testing.assert_close(unit, F.normalize(whole[:, :width], dim=-1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("inputs", [TEXTS, IMAGES], ids=["texts", "images"])
def test_the_first_prompts_alone_equal_the_first_dimensions_normalised(model, inputs):
    for m in range(1, K + 1):
        cut = model.encode(inputs, truncate_dim=m * SEGMENT, normalize_embeddings=True, convert_to_tensor=True)
        computed = model.encode(inputs, num_prompts=m, convert_to_tensor=True)
        torch.testing.assert_close(computed, cut, atol=1e-5, rtol=1e-5)
    for wrong in (0, K + 1):
        with pytest.raises(ValueError, match=f"num_prompts={wrong}; this model has 3"):
            model.encode(inputs, num_prompts=wrong)


def test_fewer_prompts_are_fewer_tokens(model):
    seen = []
    tower = model[0].model.text_model
    handle = tower.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    model.encode(["dog"])
    model.encode(["dog"], num_prompts=1)
    handle.remove()
    whole, first = (model[0].model.prompt_tree(num_prompts=m) for m in (None, 1))
    assert len(first) < len(whole) and seen[0] - seen[1] == len(whole) - len(first)


def test_aspect_weights_on_queries_weigh_every_segment(checkpoint, model):
    weights = [1.25, 0.5, 0.0]
    queries = model.encode_query(TEXTS, aspect_weights=weights, convert_to_tensor=True)
    torch.testing.assert_close(queries, directly(checkpoint, TEXTS, aspect_weights=weights), atol=1e-5, rtol=1e-5)
    plain, images = (model.encode(x, convert_to_tensor=True).unflatten(1, (K, SEGMENT)) for x in (TEXTS, IMAGES))
    both_sides = [x * torch.tensor(weights).sqrt()[:, None] for x in (plain, images)]
    by_hand = both_sides[0].flatten(1) @ both_sides[1].flatten(1).T
    torch.testing.assert_close(queries @ images.flatten(1).T, by_hand, atol=1e-5, rtol=1e-5)
    expected = F.normalize(plain[:, :2].flatten(1), dim=-1) * torch.tensor(weights[:2]).repeat_interleave(SEGMENT)
    fewer = model.encode(TEXTS, aspect_weights=weights, convert_to_tensor=True, num_prompts=2)
    torch.testing.assert_close(fewer, expected, atol=1e-5, rtol=1e-5)
    cut = model.encode(TEXTS, aspect_weights=weights, convert_to_tensor=True, truncate_dim=8)
    torch.testing.assert_close(cut, queries[:, :8], atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="one number for each of the 3 prompts"):
        model.encode(TEXTS, aspect_weights=[1.0, 2.0])
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"aspect_weights holds \[1.0, .*; expected finite numbers"):
            model.encode(TEXTS, aspect_weights=[1.0, 2.0, wrong])


def test_exclusion_subtracts_what_is_excluded(model):
    query, cars, people = model.encode(["a street", "cars", "people"], convert_to_tensor=True)
    without = model.encode("a street", exclude="cars", convert_to_tensor=True)
    torch.testing.assert_close(without, excluding(query[None], cars[None])[0], atol=1e-5, rtol=1e-5)
    without = model.encode(["a street"] * 3, exclude=["cars", "people"], batch_size=1, convert_to_tensor=True)
    expected = excluding(query[None], torch.stack([cars, people]))
    torch.testing.assert_close(without, expected.expand(3, -1), atol=1e-5, rtol=1e-5)
    image = model.encode(IMAGES[0], exclude="cars", convert_to_tensor=True)
    expected = excluding(model.encode(IMAGES[:1], convert_to_tensor=True), cars[None])[0]
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)
    for nothing in ([], ""):
        with pytest.raises(ValueError, match="names nothing"):
            model.encode("a street", exclude=nothing)
    for excluded in ("cars", " cars ", ["people", "cars"]):
        with pytest.raises(ValueError, match=r"query 'cars' is also among the excluded texts \["):
            model.encode(["a street", "cars"], exclude=excluded)
    cut_alike = ["x" * 300, "x" * 301]  # equal after `max_seq_length` tokens
    with pytest.raises(ValueError, match="same embedding, so nothing is left"):
        model.encode(cut_alike[0], exclude=cut_alike[1])
    with pytest.raises(ValueError, match="Expected texts"):
        model.encode("a street", exclude=[IMAGES[0]])


@pytest.mark.parametrize("text_pooling", ["mean", "last_token", "attention"])
def test_poolings_without_prompts(tmp_path, text_pooling):
    folder = save_checkpoint(tmp_path / "checkpoint", text_pooling=text_pooling, num_prompts=1)
    embeds = load(folder).encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(embeds, directly(folder, TEXTS), atol=1e-5, rtol=1e-5)


def test_precision_and_dtype(checkpoint):
    model = load(checkpoint)
    whole = model.encode(TEXTS)
    assert model.encode(TEXTS, precision="binary").dtype == np.int8
    np.testing.assert_array_equal(model.encode(TEXTS, precision="ubinary"), np.packbits(whole > 0, axis=1))
    small = model.encode(TEXTS, precision="int8").astype(int)
    assert (small.argmax(axis=0) == whole.argmax(axis=0)).all()
    for cast, dtype in ((model.half, torch.float16), (model.bfloat16, torch.bfloat16)):
        cast()
        assert model.dtype == dtype
        embeds = model.encode(TEXTS)
        assert embeds.dtype == np.float32 and ((embeds * whole).sum(axis=1) > 0.97).all()
    loaded = load(checkpoint, model_kwargs={"dtype": "bfloat16", "attn_implementation": "eager"})
    assert loaded.dtype == torch.bfloat16 and loaded[0].model.text_model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="backend='torch'"):
        load(checkpoint, backend="onnx")


def test_several_processes(model, prepared_processes):
    options = dict(num_prompts=2, exclude="cat", aspect_weights=[1, 2, 3])
    shared_out = model.encode(TEXTS, device=["cpu", "cpu"], chunk_size=2, **options)
    np.testing.assert_allclose(shared_out, model.encode(TEXTS, **options), atol=1e-5)


def test_saved_again_it_is_the_same_folder(checkpoint, tmp_path):
    load(checkpoint, prompts={"query": "find: "}).save_pretrained(str(tmp_path / "first"))
    load(tmp_path / "first").save_pretrained(str(tmp_path / "second"))
    original, first, second = (contents(folder) for folder in (checkpoint, tmp_path / "first", tmp_path / "second"))
    assert first == second
    settings = json.loads(first.pop("config_sentence_transformers.json"))
    ours = json.loads(original.pop("config_sentence_transformers.json"))
    assert settings["prompts"] == {"query": "find: ", "document": ""}
    assert settings["requirements"] == ours["requirements"]
    assert original.keys() == first.keys()
    different = {name for name in original if original[name] != first[name]}
    # Weights, processor, code and modules.json are the same bytes; loading notes the dtype of the towers' configs, and whether
    # the tokenizer came from a folder.
    assert different <= {"config.json", "tokenizer_config.json"}
    embeds = torch.from_numpy(load(tmp_path / "second").encode(TEXTS))
    torch.testing.assert_close(embeds, directly(tmp_path / "second", TEXTS), atol=1e-5, rtol=1e-5)
    # the model alone, saved into the folder, keeps the settings that stand there
    MPCLIPModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "second")
    assert load(tmp_path / "second").prompts["query"] == "find: "


def test_settings_and_pictures_of_the_card_are_saved_again(checkpoint, tmp_path):
    settings = dict(prompts={"find": "find: "}, default_prompt_name="find", similarity_fn_name="dot", truncate_dim=8)
    model = load(checkpoint, **settings)
    model.max_seq_length = 7
    expected = model.encode(TEXTS)
    assert expected.shape == (len(TEXTS), 8) and model.get_embedding_dimension() == 8
    plain = load(checkpoint)
    plain.max_seq_length = 7
    by_hand = plain.encode([f"find: {text}" for text in TEXTS], truncate_dim=8)
    np.testing.assert_allclose(expected, by_hand, atol=1e-6)
    model.save_pretrained(str(tmp_path / "first"))
    (tmp_path / "first" / "assets").mkdir()
    IMAGES[0].save(tmp_path / "first" / "assets" / "attention.png")
    (tmp_path / "first" / "README.md").write_text("# Ours\n\n![Attention](assets/attention.png)\n")
    for before, after in (("first", "second"), ("second", "third"), ("third", "third")):
        load(tmp_path / before, truncate_dim=8).save_pretrained(str(tmp_path / after))
    again = load(tmp_path / "third", truncate_dim=8)
    assert (again.default_prompt_name, again.similarity_fn_name, again.max_seq_length) == ("find", "dot", 7)
    np.testing.assert_array_equal(again.encode(TEXTS), expected)
    for file in ("README.md", "assets/attention.png"):
        assert (tmp_path / "third" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()


def test_what_train_hf_leaves_is_a_sentence_transformers_model(folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path / "run", "--num_train_epochs", "1", "--eval_split", "none"))
    for saved in (tmp_path / "run", *(tmp_path / "run").glob("checkpoint-*")):
        model = load(saved)
        torch.testing.assert_close(
            model.encode(["a red square"], convert_to_tensor=True), directly(saved, ["a red square"]), atol=1e-5, rtol=1e-5
        )


def test_requirements_guard_the_versions(checkpoint, tmp_path):
    load(checkpoint).save_pretrained(str(tmp_path))
    file = tmp_path / "config_sentence_transformers.json"
    settings = json.loads(file.read_text())
    assert set(settings["requirements"]) == {"sentence-transformers", "transformers", "torch"}
    settings["requirements"]["transformers"] = ">=99"
    file.write_text(json.dumps(settings))
    with pytest.raises(ImportError, match="transformers"):
        load(tmp_path)


def test_code_is_not_run_unasked_and_must_travel(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(checkpoint), device="cpu")
    module = MPCLIPSentenceModule(MPCLIPModel.from_pretrained(checkpoint), MPCLIPProcessor.from_pretrained(checkpoint))
    from_package = SentenceTransformer(modules=[module], device="cpu")
    with pytest.raises(ValueError, match="installed package"):
        from_package.save_pretrained(str(tmp_path))


def test_without_sentence_transformers_everything_else_works(checkpoint, tmp_path):
    """And what is saved there is a sentence-transformers model again."""
    script = textwrap.dedent(f"""
        import sys
        sys.modules["sentence_transformers"] = None  # importing it raises ImportError
        from transformers import AutoModel, AutoProcessor
        model = AutoModel.from_pretrained({str(checkpoint)!r}, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained({str(checkpoint)!r}, trust_remote_code=True)
        model(**processor(text=["dog"])).text_embeds
        model.save_pretrained({str(tmp_path)!r}); processor.save_pretrained({str(tmp_path)!r})
    """)
    run = fresh_process.run(script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    np.testing.assert_array_equal(load(tmp_path).encode(TEXTS), load(checkpoint).encode(TEXTS))


SCORED = {
    "sentence1": ["a red cat", "a blue boat", "the dog", "no people"] * 4,
    "sentence2": ["the cat is red", "a dog", "one dog", "a crowd"] * 4,
    "score": [1.0, 0.1, 0.9, 0.0] * 4,
}
PICTURED = {"caption": ["red", "green", "blue", "yellow"] * 4, "picture": IMAGES * 4}


@pytest.mark.parametrize(
    ("rows", "loss"),
    [
        (PAIRS, MultipleNegativesRankingLoss),
        (PICTURED, MultipleNegativesRankingLoss),
        (SCORED, CoSENTLoss),
        (PAIRS, lambda model: MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [12, 8, 4])),
    ],
    ids=["pairs", "pictures", "scores", "matryoshka"],
)
def test_trains_and_reloads_equal(checkpoint, tmp_path, rows, loss):
    model = load(checkpoint)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = train(model, rows, loss(model), tmp_path / "out")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("0.model.text_projection") for name in changed)
    assert any(name.startswith("0.model.vision_model") for name in changed) == (rows is PICTURED)
    trainer.save_model(str(tmp_path / "trained"))
    np.testing.assert_array_equal(load(tmp_path / "trained").encode(TEXTS), model.encode(TEXTS))
    np.testing.assert_array_equal(load(tmp_path / "trained").encode(IMAGES), model.encode(IMAGES))


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=["bfloat16", "gradient checkpointing"]
)
def test_trains_for_less_memory(checkpoint, tmp_path, options):
    losses = []
    for extra in ({"max_steps": 1}, options):
        model = load(checkpoint)
        loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [12, 8, 4])
        log = train(model, PAIRS, loss, tmp_path / "out", **extra).state.log_history
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    plain, ours = losses
    assert np.mean(ours[-4:]) < 0.8 * np.mean(ours[:4])
    np.testing.assert_allclose(ours[0], plain[0], rtol=0.05 if "bf16" in options else 1e-5)


def test_token_embeddings_are_refused_in_words(model):
    with pytest.raises(ValueError, match="output_value='token_embeddings': MP-CLIP embeds a text as a whole"):
        model.encode(["a street"], output_value="token_embeddings")
    everything = model.encode(["a street"], output_value=None)[0]
    assert everything["prompt_embeds"].shape == (K, SEGMENT) and everything["sentence_embedding"].shape == (K * SEGMENT,)


def test_similarity_is_evaluated(model):
    evaluator = EmbeddingSimilarityEvaluator(SCORED["sentence1"], SCORED["sentence2"], SCORED["score"], name="sts")
    assert -1 <= model.evaluate(evaluator)["sts_spearman_cosine"] <= 1


def test_the_shipped_tokenizer_is_the_processors(checkpoint, model):
    assert model.tokenizer(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(checkpoint)(TEXTS)["input_ids"]
    assert isinstance(AutoModel.from_pretrained(checkpoint), MPCLIPModel)  # in here by the registered class
