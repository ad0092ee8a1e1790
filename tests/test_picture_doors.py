"""A picture file has one embedding, whichever door it comes in by."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from sentence_transformers import SentenceTransformer
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, pipeline

from modeling_mpclip import pictures
from modeling_mpclip.picture_files import open_rgb
from modeling_mpclip.pictures import to_rgb
from modeling_mpclip.pipelines_mpclip import MPCLIPImageFeatureExtractionPipeline
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.encoding import ModelEncoder, PeerEncoder, encode_dataset
from mpclip.search.build import build_index
from mpclip.search.chunks import Chunks
from mpclip.search.places import Places
from mpclip.training.collator import MPCLIPCollator

PHOTO = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((16, 12))


def files(folder: Path) -> list[Path]:
    """Picture files of which a door might show something else."""
    exif = PIL.Image.Exif()
    exif[pictures.ORIENTATION] = 6
    grey, clear, clear_grey = PHOTO.convert("L"), PHOTO.copy(), PHOTO.convert("L")
    clear.putalpha(60)
    clear_grey.putalpha(60)
    PHOTO.save(folder / "0.png")
    clear.save(folder / "1.png")
    PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "2.png")
    clear_grey.save(folder / "3.png")
    PHOTO.save(folder / "4.png", exif=exif)
    PHOTO.convert("CMYK").save(folder / "5.jpg")
    PHOTO.convert("P").save(folder / "6.png", transparency=0)
    PHOTO.resize((3000, 2)).save(folder / "7.png")
    with open(folder / "metadata.jsonl", "w") as table:
        for i, path in enumerate(sorted(folder.glob("?.*"))):
            table.write(json.dumps({"file_name": path.name, "captions": [f"picture {i}"]}) + "\n")
    return sorted(folder.glob("?.*"))


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A checkpoint, picture files, and the pixels (8, 3, 32, 32) and embeddings (8, D) that every door has to give."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "photos").mkdir()
    tokenizer = make_tokenizer()
    model, processor = make_model(tokenizer=tokenizer), make_processor(tokenizer)
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    paths = files(folder / "photos")
    shown = [to_rgb(PIL.Image.open(path)) for path in paths]
    pixels = processor.image_processor(shown, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeds = model(pixel_values=pixels).image_embeds
    assert (torch.cdist(embeds, embeds) + torch.eye(8)).min() > 1e-3  # that they differ is what the test rests on
    return folder, model, processor, paths, pixels, embeds


def by_processor(folder, model, processor, paths):
    return processor(images=[PIL.Image.open(path) for path in paths])["pixel_values"]


def by_paths(folder, model, processor, paths):
    return processor(images=[str(path) for path in paths])["pixel_values"]


def by_arrays(folder, model, processor, paths):
    return processor(images=[torch.tensor(np.asarray(open_rgb(path))).permute(2, 0, 1) / 255 for path in paths])["pixel_values"]


def by_video(folder, model, processor, paths):
    return processor(videos=[[PIL.Image.open(path) for path in paths]])["pixel_values_videos"][0]


def by_training(folder, model, processor, paths):
    examples = ImageTextDataset(load_image_text(folder / "photos", "train"))
    return MPCLIPCollator(processor)([examples[i] for i in range(len(examples))])["pixel_values"]


def by_sentence_transformers(folder, model, processor, paths):
    sentences = SentenceTransformer(str(folder / "checkpoint"), trust_remote_code=True, device="cpu")
    embeds = sentences.encode([str(path) for path in paths], convert_to_tensor=True)
    torch.testing.assert_close(sentences.encode([PIL.Image.open(path) for path in paths], convert_to_tensor=True), embeds)
    return embeds


def by_pipeline(folder, model, processor, paths):
    parts = {
        "image_processor": processor.image_processor,
        "pipeline_class": MPCLIPImageFeatureExtractionPipeline,
        "device": "cpu",
    }
    extract = pipeline("image-feature-extraction", model=model, **parts)
    opened = extract([PIL.Image.open(path) for path in paths])
    assert opened == extract([str(path) for path in paths])
    return torch.tensor(opened)[:, 0]


def by_evaluation(folder, model, processor, paths):
    rows = load_image_text(folder / "photos", "train")
    return encode_dataset(ModelEncoder(model, processor), rows)["image_embeds"]


def by_encoder(folder, model, processor, paths):
    return ModelEncoder(model, processor).images([PIL.Image.open(path) for path in paths])


def by_index(folder, model, processor, paths):
    build_index(str(folder / "checkpoint"), str(folder / "photos"), folder / "index")
    ids = {place.name: place.id for place in Places(next((folder / "index/places").iterdir())).all()}
    return torch.tensor(Chunks(folder / "index/chunks").embeddings([ids[path.name] for path in paths]))


DOORS = [by_processor, by_paths, by_arrays, by_video, by_training, by_sentence_transformers]
DOORS += [by_pipeline, by_evaluation, by_encoder, by_index]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_file_has_one_embedding_by_every_door(house, door):
    *given, pixels, embeds = house
    found = door(*given)
    expected = pixels if found.ndim == 4 else embeds
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_peers_get_the_same_pictures(house):
    tokenizer = make_tokenizer()
    towers = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(
        text_config=dict(towers, vocab_size=len(tokenizer), eos_token_id=2),
        vision_config=dict(towers, image_size=32, patch_size=16),
        projection_dim=8,
    )
    processor = CLIPProcessor(CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False), tokenizer)
    encoder = PeerEncoder(CLIPModel(config).eval(), processor)
    paths = house[3]
    shown = encoder.images([PIL.Image.fromarray(np.asarray(open_rgb(path))) for path in paths])
    torch.testing.assert_close(encoder.images([PIL.Image.open(path) for path in paths]), shown)
