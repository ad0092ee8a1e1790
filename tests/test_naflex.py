"""SigLIP 2 NaFlex: pictures as patches in their own proportions, padded and with a mask."""

import datasets
import pytest
import torch
from conftest import make_tokenizer
from tiny_vision import PICTURES, model_on
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from modeling_mpclip import MPCLIPProcessor
from modeling_mpclip.pipelines_mpclip import MPCLIPImageFeatureExtractionPipeline
from modeling_mpclip.sentence_mpclip import MPCLIPSentenceModule
from mpclip.encoding import load_encoder
from mpclip.maps.seen import see
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.state_cache import cache_image_states


def naflex_processor(patches: int = 20) -> MPCLIPProcessor:
    return MPCLIPProcessor(Siglip2ImageProcessorPil(patch_size=8, max_num_patches=patches), make_tokenizer())


@pytest.mark.parametrize("pooling", ["attention_per_prompt", "mean"])
def test_padding_of_naflex_is_not_seen(pooling):
    model, processor = model_on("siglip2_vision_model", image_pooling=pooling), naflex_processor()
    together = processor(images=PICTURES)
    assert set(together) <= set(processor.model_input_names)
    assert together["pixel_attention_mask"].sum(dim=1).tolist() == together["spatial_shapes"].prod(dim=1).tolist()
    together["pixel_values"][~together["pixel_attention_mask"].bool()] = 7.0
    with torch.no_grad():
        expected = model(**together).image_embeds
        for i, n in enumerate(together["spatial_shapes"].prod(dim=1)):
            alone = {
                name: x[i : i + 1, :n] if x.dim() > 1 and name != "spatial_shapes" else x[i : i + 1]
                for name, x in together.items()
            }
            torch.testing.assert_close(model(**alone).image_embeds[0], expected[i], atol=1e-5, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-4


def test_naflex_trains_from_pictures_and_from_cached_tokens(tmp_path):
    model, processor = model_on("siglip2_vision_model"), naflex_processor()
    rows = datasets.Dataset.from_dict({"image": PICTURES}, features=datasets.Features({"image": datasets.Image()}))
    examples = [{"captions": ["a cat"], "image": picture, "index": i} for i, picture in enumerate(PICTURES)]
    loss = model(**MPCLIPCollator(processor)(examples), return_loss=True).loss
    loss.backward()
    assert model.vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0
    model.vision_model.requires_grad_(False)
    states = cache_image_states(model, processor.image_processor, rows, tmp_path, format="float32")
    batch = MPCLIPCollator(processor, image_states=states)(examples)
    assert "pixel_values" not in batch and batch["pixel_attention_mask"].shape == batch["vision_hidden_states"].shape[:2]
    torch.testing.assert_close(model(**batch, return_loss=True).loss, loss, atol=1e-5, rtol=1e-5)


def test_every_way_to_embed_gives_naflex_its_mask(tmp_path):
    model, processor = model_on("siglip2_vision_model"), naflex_processor()
    with torch.no_grad():
        expected = model(**processor(images=PICTURES)).image_embeds
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MPCLIPProcessor.from_pretrained(tmp_path)
    module = MPCLIPSentenceModule(model, loaded)
    extract = MPCLIPImageFeatureExtractionPipeline(model=model, image_processor=loaded.image_processor)
    with torch.no_grad():
        ways = [
            load_encoder(str(tmp_path), device="cpu").images(PICTURES),
            module(module.preprocess(PICTURES))["sentence_embedding"],
            torch.tensor([extract(picture)[0] for picture in PICTURES]),
        ]
    for embeds in ways:
        torch.testing.assert_close(embeds.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)


def test_what_naflex_cannot_do_is_refused():
    model, processor = model_on("siglip2_vision_model"), naflex_processor()
    inputs = processor(images=PICTURES)
    with pytest.raises(ValueError, match="need pixel_attention_mask and spatial_shapes"):
        model.get_image_features(inputs["pixel_values"])
    with pytest.raises(ValueError, match="1 for every patch"):
        model.get_image_features(**{**inputs, "pixel_attention_mask": inputs["pixel_attention_mask"][:, 1:]})
    for embed_videos in (lambda: processor(videos=[PICTURES]), lambda: model.get_video_features(torch.randn(1, 2, 3, 32, 32))):
        with pytest.raises(ValueError, match="google/siglip2-base-patch16-256"):
            embed_videos()
    with pytest.raises(ValueError, match="Maps of SigLIP 2 NaFlex are not drawn"):
        see(model, processor, images=PICTURES)


def test_a_graph_of_patches_is_refused(tmp_path):
    onnx = pytest.importorskip(
        "mpclip.export.onnx", exc_type=ImportError, reason="exports: pip install onnx onnxscript onnxruntime"
    )
    model_on("siglip2_vision_model").save_pretrained(tmp_path / "model")
    naflex_processor().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'siglip2_vision_model' has no ONNX graph.*siglip2-base-patch16-256"):
        onnx.export(str(tmp_path / "model"), tmp_path / "image.onnx", "image")
