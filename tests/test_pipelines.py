"""transformers' pipelines and the stock sentence-transformers module on a checkpoint folder: the model's own numbers."""

import json
import textwrap

import fresh_process
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, pipeline

from modeling_mpclip import MPCLIPModel
from modeling_mpclip.configuration_mpclip import PIPELINES
from modeling_mpclip.pipelines_mpclip import MPCLIPZeroShotImageClassificationPipeline
from mpclip.export.text import export_text

LABELS = ["cat", "red boat"]
TEXT = "The cat sits."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with model and processor, and both of them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = make_tokenizer()
    model, processor = make_model(tokenizer=tokenizer), make_processor(tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


def picture() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB")


@torch.no_grad()
def direct(model, processor, image=None) -> dict[str, list]:
    """What the pipelines have to return."""
    text, image = processor(text=[TEXT]), processor(images=[image or picture()])
    prompts = processor(text=[f"This is a photo of {label}." for label in LABELS])
    logits = model(**prompts, **image).logits_per_image[0]
    scores = (logits.sigmoid() if model.config.loss == "sigmoid" else logits.softmax(dim=-1)).tolist()
    return {
        "zero-shot-image-classification": scores,
        "feature-extraction": model(**text).text_embeds.tolist(),
        "image-feature-extraction": model(**image).image_embeds.tolist(),
    }


def clear_picture() -> Image.Image:
    """Half of what its colours show is transparent."""
    image = picture()
    image.putalpha(Image.linear_gradient("L").rotate(90))
    return image


def by_label(result: list[dict]) -> list[float]:
    scores = {entry["label"]: entry["score"] for entry in result}
    return [scores[label] for label in LABELS]


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for task, expected in theirs.items():
        torch.testing.assert_close(torch.tensor(ours[task]), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_pipelines_give_the_models_numbers(checkpoint):
    folder, model, processor = checkpoint
    run = lambda task, *inputs, **kwargs: pipeline(task, model=str(folder))(*inputs, **kwargs)  # noqa: E731
    results = {
        "zero-shot-image-classification": by_label(run("zero-shot-image-classification", picture(), candidate_labels=LABELS)),
        "feature-extraction": run("feature-extraction", TEXT),
        "image-feature-extraction": run("image-feature-extraction", picture()),
    }
    assert_equal(results, direct(model, processor))
    several = run("feature-extraction", [TEXT, "A small boat of any people", ""], batch_size=3)
    torch.testing.assert_close(torch.tensor(several[0]), torch.tensor(results["feature-extraction"]), atol=1e-5, rtol=1e-4)
    assert [torch.tensor(embedding).shape for embedding in several] == [(1, 12)] * 3


def test_features_of_a_text_only_checkpoint(checkpoint, tmp_path):
    folder, model, processor = checkpoint
    export_text(str(folder), tmp_path / "text")
    result = pipeline("feature-extraction", model=str(tmp_path / "text"), trust_remote_code=True)(TEXT)
    torch.testing.assert_close(torch.tensor(result), torch.tensor(direct(model, processor)["feature-extraction"]))


def test_pipelines_of_a_model_in_memory(checkpoint):
    _, model, processor = checkpoint
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    result = pipeline("zero-shot-image-classification", model=model, **parts)(picture(), candidate_labels=LABELS)
    torch.testing.assert_close(by_label(result), direct(model, processor)["zero-shot-image-classification"])


@pytest.fixture(scope="module")
def sigmoid(tmp_path_factory):
    """As `checkpoint`, of a model of the sigmoid loss."""
    folder = tmp_path_factory.mktemp("sigmoid")
    tokenizer = make_tokenizer()
    # logits near 0, so that the scores of softmax would be others
    model = make_model(tokenizer=tokenizer, loss="sigmoid", logit_bias_init_value=0.5, logit_scale_init_value=0.1)
    processor = make_processor(tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.mark.filterwarnings("error")
def test_a_sigmoid_model_scores_each_label_by_itself(sigmoid):
    _, model, processor = sigmoid
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor, "device": "cpu"}
    classify = MPCLIPZeroShotImageClassificationPipeline(model=model, **parts)
    result = classify(clear_picture(), candidate_labels=LABELS)
    expected = direct(model, processor, clear_picture())["zero-shot-image-classification"]
    torch.testing.assert_close(by_label(result), expected)
    assert abs(sum(expected) - 1) > 0.1 and result[0]["score"] >= result[1]["score"]
    batched = classify([picture(), clear_picture()], candidate_labels=LABELS, batch_size=2)
    torch.testing.assert_close(by_label(batched[1]), expected)


def test_no_softmax_scores_for_a_sigmoid_model(sigmoid):
    """With the installed package's classes no trust is needed, but for this pipeline: its class comes from the checkpoint."""
    folder, model, processor = sigmoid
    with pytest.raises(ValueError, match=r"Loading this pipeline requires .* `trust_remote_code=True`"):
        pipeline("zero-shot-image-classification", model=str(folder))
    classify = pipeline("zero-shot-image-classification", model=str(folder), trust_remote_code=True)
    assert type(classify.model) is MPCLIPModel and classify.model.config.custom_pipelines
    expected = direct(model, processor, clear_picture())["zero-shot-image-classification"]
    torch.testing.assert_close(by_label(classify(clear_picture(), candidate_labels=LABELS)), expected)
    classify.model.save_pretrained(folder)  # `pipeline` has put classes into its config
    assert json.loads((folder / "config.json").read_text())["custom_pipelines"] == PIPELINES
    pipeline("feature-extraction", model=str(folder))


def test_pipelines_from_the_code_of_a_checkpoint_that_was_saved_again(sigmoid, tmp_path):
    """In a fresh process, without this repository and without torchvision: by our classes, which the checkpoint brings."""
    folder, model, processor = sigmoid
    clear_picture().save(tmp_path / "clear.png")
    script = textwrap.dedent(f"""
        import json, sys
        sys.modules["torchvision"] = None
        from transformers import AutoModelForZeroShotImageClassification, AutoProcessor, pipeline
        for auto_class in (AutoModelForZeroShotImageClassification, AutoProcessor):
            auto_class.from_pretrained({str(folder)!r}, trust_remote_code=True).save_pretrained("again")
        run = lambda task, *inputs, **kw: pipeline(task, model="again", trust_remote_code=True)(*inputs, **kw)
        picture = "clear.png"
        print(json.dumps([
            run("zero-shot-image-classification", picture, candidate_labels={LABELS!r}),
            run("feature-extraction", {TEXT!r}),
            run("image-feature-extraction", picture),
        ]))
        assert "modeling_mpclip" not in sys.modules
    """)
    run = fresh_process.run(script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "is not supported for" not in run.stderr and "softmax" not in run.stderr
    classes, text, image = json.loads(run.stdout.splitlines()[-1])
    results = {
        "zero-shot-image-classification": by_label(classes),
        "feature-extraction": text,
        "image-feature-extraction": image,
    }
    assert_equal(results, direct(model, processor, clear_picture()))


def test_a_checkpoint_names_its_class_for_both_auto_classes(checkpoint, tmp_path):
    folder, _, _ = checkpoint
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder)
    assert type(model) is MPCLIPModel
    model.config.auto_map["AutoModel"] = "someone/model--modeling_mpclip.MPCLIPModel"  # as loaded from the Hub
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_mpclip.MPCLIPConfig",
        "AutoModel": "modeling_mpclip.MPCLIPModel",
        "AutoModelForZeroShotImageClassification": "modeling_mpclip.MPCLIPModel",
    }


def test_the_stock_sentence_transformers_module_finds_both_sides(checkpoint):
    """By the return annotations of `get_text_features` and `get_image_features`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    folder, model, processor = checkpoint
    encoder = SentenceTransformer(modules=[Transformer(str(folder))])
    with torch.no_grad():
        text = model.get_text_features(**processor(text=[TEXT])).pooler_output
        image = model.get_image_features(**processor(images=[picture()])).pooler_output
    torch.testing.assert_close(torch.tensor(encoder.encode([TEXT])), text)
    torch.testing.assert_close(torch.tensor(encoder.encode([picture()])), image)
