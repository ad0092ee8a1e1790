"""mteb takes a checkpoint for texts and pictures: what the files say, its metadata, and scores equal to ours."""

import json

import datasets
import numpy as np
import pytest
from conftest import COLORS
from hub_standin import Repo
from PIL import Image
from scipy.stats import spearmanr
from sentence_helpers import MAX_LENGTH, load, save_checkpoint

from eval.metrics import retrieval_metrics
from eval.mteb_model import mteb_model
from mpclip.export.text import export_text

CARD = """---
license: apache-2.0
language: [en, de]
base_model: [owner/text, owner/vision]
tags: [sentence-transformers]
---
"""
PICTURES = [Image.new("RGB", (40, 40), color) for color in COLORS]
CAPTIONS = [f"{opening} {color} {closing}" for color in COLORS for opening, closing in (("a", "square"), ("the color", "."))]
OWNER = np.arange(len(COLORS)).repeat(2)  # (T,) the picture of each caption
PAIRS = [
    ("a red cat", "the cat is red"),
    ("a blue boat", "a dog"),
    ("the dog", "one dog"),
    ("no people", "a crowd"),
    ("x", "y"),
]
RATINGS = [5.0, 1.0, 4.0, 0.5, 2.0]


@pytest.fixture(scope="module")
def mteb():
    return pytest.importorskip("mteb", reason="mteb is not installed: pip install 'mteb>=2.26'")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("mteb") / "tiny")
    (folder / "README.md").write_text(CARD)
    return folder


def input_kinds(folder) -> dict:
    return json.loads((folder / "sentence_bert_config.json").read_text())


def retrieval_task(query: str, document: str):
    """Captions to pictures, or pictures to captions, offline."""
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    tables = {
        "image": datasets.Dataset.from_dict({"id": [f"image{i}" for i in range(len(PICTURES))], "image": PICTURES}),
        "text": datasets.Dataset.from_dict({"id": [f"text{i}" for i in range(len(CAPTIONS))], "text": CAPTIONS}),
    }
    right: dict[str, dict[str, int]] = {}
    for text, image in enumerate(OWNER):
        names = {"text": f"text{text}", "image": f"image{image}"}
        right.setdefault(names[query], {})[names[document]] = 1
    short = {"text": "t", "image": "i"}

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local{query}{document}",
            description="Coloured squares.",
            dataset={"path": "local", "revision": "1"},
            type="Any2AnyRetrieval",
            category=f"{short[query]}2{short[document]}",
            modalities=["text", "image"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
        )

        def load_data(self, num_proc=None, **kwargs):
            split = dict(queries=tables[query], corpus=tables[document], relevant_docs=right, top_ranked=None)
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return Local()


def pair_task():
    """Rated pairs of sentences, offline."""
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class LocalPairs(AbsTaskSTS):
        metadata = TaskMetadata(
            name="LocalPairs",
            description="Rated pairs.",
            dataset={"path": "local", "revision": "1"},
            type="STS",
            category="t2t",
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        min_score, max_score = 0, 5

        def load_data(self, num_proc=None, **kwargs):
            first, second = zip(*PAIRS, strict=True)
            rows = datasets.Dataset.from_dict({"sentence1": first, "sentence2": second, "score": RATINGS})
            self.dataset, self.data_loaded = datasets.DatasetDict(test=rows), True

    return LocalPairs()


def scores(mteb, model, *tasks, cache=None) -> list[dict]:
    """The scores of each task."""
    results = mteb.evaluate(model, tasks, cache=cache, encode_kwargs={"batch_size": 8}, show_progress_bar=False)
    return [result.scores["test"][0] for result in results.task_results]


def test_the_files_say_which_inputs_and_how_long(checkpoint, tmp_path):
    settings = input_kinds(checkpoint)
    assert set(settings["modality_config"]) == {"text", "image"} and settings["max_seq_length"] == MAX_LENGTH
    model = load(checkpoint)
    model.max_seq_length = 7
    model.save_pretrained(str(tmp_path / "again"))
    assert input_kinds(tmp_path / "again") == settings | {"max_seq_length": 7}
    export_text(str(checkpoint), tmp_path / "text")
    assert set(input_kinds(tmp_path / "text")["modality_config"]) == {"text"}
    for entry in settings["modality_config"].values():  # the methods are there
        assert callable(getattr(model[0].model, entry["method"]))


def test_an_earlier_checkpoint_without_the_file_loads(checkpoint, tmp_path):
    model = load(checkpoint)
    folder = save_checkpoint(tmp_path / "earlier")
    (folder / "sentence_bert_config.json").unlink()
    assert load(folder).modalities == model.modalities


def test_scores_equal_ours(mteb, checkpoint):
    model = load(checkpoint)
    tasks = retrieval_task("text", "image"), retrieval_task("image", "text"), pair_task()
    found = scores(mteb, mteb_model(checkpoint, device="cpu"), *tasks)
    ours = retrieval_metrics(model.encode(PICTURES), model.encode(CAPTIONS), OWNER)
    for direction, theirs in zip(("text_to_image", "image_to_text"), found, strict=False):
        assert 0 < ours[direction]["R@5"] < 100  # else any two models were equal
        for k in (1, 5, 10):
            assert 100 * theirs[f"hit_rate_at_{k}"] == pytest.approx(ours[direction][f"R@{k}"], abs=1e-3)
    first, second = (model.encode(side) for side in zip(*PAIRS, strict=True))
    assert found[2]["cosine_spearman"] == pytest.approx(spearmanr((first * second).sum(axis=1), RATINGS).statistic, abs=1e-6)


def test_metadata_of_a_folder(mteb, checkpoint, tmp_path):
    model = load(checkpoint)
    for given in (checkpoint, model):
        meta = mteb_model(given).mteb_model_meta
        assert meta.name == "local/tiny" and len(meta.revision) == 64
        assert set(meta.modalities) == {"text", "image"} and meta.languages == ["deu-Latn", "eng-Latn"]
        assert (meta.license, meta.adapted_from, meta.open_weights) == ("apache-2.0", "owner/text", True)
        assert (meta.embed_dim, meta.max_tokens, meta.similarity_fn_name.value) == (12, MAX_LENGTH, "cosine")
        assert meta.n_parameters == sum(weight.numel() for weight in model.parameters())
        assert meta.n_embedding_parameters == model[0].model.get_input_embeddings().weight.numel()
        type(meta).model_validate(meta.model_dump())  # mteb writes it to its results, and reads it again
    changed = load(checkpoint)
    changed[0].model.text_projection.weight.data += 1
    assert mteb_model(changed).mteb_model_meta.revision != meta.revision
    assert mteb_model(load(save_checkpoint(tmp_path / "bare"))).mteb_model_meta.license is None
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        mteb_model(tmp_path / "nowhere")


def test_folders_do_not_share_cached_scores(mteb, tmp_path):
    """Also if the model is given to mteb as it is, which is enough for texts."""
    cache = mteb.ResultCache(tmp_path / "cache")
    found = [
        scores(mteb, load(save_checkpoint(tmp_path / name, **options)), pair_task(), cache=cache)[0]["cosine_pearson"]
        for name, options in {"one": {}, "other": {"text_pooling": "mean", "num_prompts": 1}}.items()
    ]
    assert found[0] != found[1]


def test_a_model_of_the_hub_needs_nothing_of_ours(mteb, hub, checkpoint, monkeypatch):
    """But torchvision: mteb asks for it before it loads any model of pictures, although ours does not use it."""
    monkeypatch.setattr(mteb.models.ModelMeta, "_check_requirements", lambda meta: None)
    hub.repos["me/tiny"] = Repo("me", private=False)
    commit = hub.repos["me/tiny"].commit("main", {file.name: file.read_bytes() for file in checkpoint.iterdir()}, "A model")
    model = mteb.get_model("me/tiny", trust_remote_code=True, device="cpu")
    for meta in (model.mteb_model_meta, mteb_model("me/tiny", device="cpu").mteb_model_meta):
        assert (meta.name, meta.revision, sorted(meta.modalities)) == ("me/tiny", commit, ["image", "text"])
        assert (meta.license, meta.languages, meta.adapted_from) == ("apache-2.0", ["deu-Latn", "eng-Latn"], "owner/text")
        assert meta.max_tokens == MAX_LENGTH and meta.n_parameters
    there, here = (scores(mteb, given, retrieval_task("text", "image"))[0] for given in (model, mteb_model(checkpoint)))
    assert there["ndcg_at_10"] == pytest.approx(here["ndcg_at_10"]) and there["hit_rate_at_5"] == here["hit_rate_at_5"]
