"""The exactness claims on real pretrained weights: SmolLM2-135M always, Gemma 3 270M where its package is installed."""

import copy

import pytest
import torch
from conftest import VISION_CONFIGS, pretrained
from separate_passes import assert_same_gradients, gradients, plain_llm, separate_passes
from transformers import AutoModel, AutoTokenizer

from modeling_mpclip import MPCLIPConfig, MPCLIPModel
from modeling_mpclip.pretrained_towers import adaptive_rows, tower_arguments
from modeling_mpclip.text_families import text_tower_class
from mpclip.data.backbones import BACKBONES

pytestmark = pytest.mark.slow
TEXTS = ["A dog runs across a green field with a stick in its mouth.", "Two boats", ""]


@pytest.fixture(scope="module", params=[name for name, backbone in BACKBONES.items() if backbone.kind == "text"])
def real(request):
    folder = pretrained(request.param)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text_config = AutoModel.from_pretrained(folder).config
    sizes = dict(num_prompts=3, projection_dim=96)
    config = MPCLIPConfig(text_config, VISION_CONFIGS["vit"](), adaptive_tokens="input", **sizes)
    config.compile_prompts(tokenizer)
    text = text_tower_class(type(text_config)).from_pretrained(folder, **tower_arguments(config), dtype=torch.float32)
    text.initialize_adaptive(adaptive_rows(text, tokenizer, ["subject", "place", "color"]))
    return MPCLIPModel(config, text).eval(), tokenizer


def test_one_pass_equals_separate_passes(real):
    model, tokenizer = real
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    llm = plain_llm(model)
    ours = model.get_text_features(batch["input_ids"], batch["attention_mask"], negated=True).last_hidden_state
    theirs = separate_passes(model, llm, tokenizer, TEXTS, negated=True)
    # Hidden states reach 24 (SmolLM2) and 43 (Gemma 3): 1e-3 is a few units in the last place of fp32 over 30 layers.
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_gradients_equal_those_of_separate_passes(real):
    """In float64: over 30 layers the rounding of float32 depends on the CPU, and reaches the limit on some with AVX2 alone."""
    model, tokenizer = real
    model = copy.deepcopy(model).double()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    ours = model.get_text_features(batch["input_ids"], batch["attention_mask"], negated=True).last_hidden_state
    theirs = separate_passes(model, plain_llm(model), tokenizer, TEXTS, negated=True)
    assert_same_gradients(gradients(model, ours), gradients(model, theirs))


def test_prompts_read_differently_from_the_start(real):
    """The trap of look-alike adaptive tokens: their prompts would give one and the same embedding."""
    model, tokenizer = real
    batch = tokenizer(TEXTS[:1], return_tensors="pt")
    states = model.get_text_features(batch["input_ids"], batch["attention_mask"]).last_hidden_state[0]
    cosine = torch.nn.functional.cosine_similarity(states[:, None], states[None], dim=-1)
    assert cosine[~torch.eye(3, dtype=torch.bool)].max() < 0.995


def test_bfloat16_stays_close(real):
    model, tokenizer = real
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).text_embeds
        ours = copy.deepcopy(model).to(torch.bfloat16)(**batch).text_embeds
    assert torch.nn.functional.cosine_similarity(ours, expected).min() > 0.99
