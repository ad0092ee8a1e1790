"""`text_pooling="attention"`: learned pooling queries over the states of a text equal plain attention over the plain LLM."""

import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from plain_pooling import multi_head_attention
from separate_passes import plain_llm

from mpclip.export.text import export_text
from mpclip.training import ModelArguments, prepare_tuning
from mpclip.training.closed_form import refuse_closed_form

IDS = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 10, 11, 12], [0, 0, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
FORMS = {
    "three": {"pooling_queries": 3},
    "one": {"image_pooling": "mean"},
    "words": {"pooling_queries": 2, "words": True},
    "shared": {"pooling_queries": 2, "shared_projection": True},
    "cut": {"pooling_queries": 3, "text_layers": 2, "adaptive_tokens": "boundary", "boundary_layer": 1},
}


def model_of(form: str, **options):
    return make_model(text_pooling="attention", num_prompts=1, **FORMS[form], **options)


def gradients(model, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss that weighs every number differently."""
    model.zero_grad()
    (embeds * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(7))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flip", [False, True])
def test_it_is_plain_attention_over_the_plain_llm(form, flip):
    """Values and gradients, text by text without padding; an empty text is zero, with or without words."""
    model = model_of(form)
    llm, Q = plain_llm(model), model.config.num_pooling_queries
    ids, mask = (x.flip(1) if flip else x for x in (IDS, MASK))
    ours = model.get_text_features(ids, mask).prompt_embeds  # (3, 1, D)
    assert ours.shape == (3, 1, 12)
    rows = []
    for row, kept in zip(ids[:2], mask.bool(), strict=False):
        pooled = multi_head_attention(model.text_pooling, llm(row[kept][None]).last_hidden_state)[0]  # (Q, W)
        if model.config.words:
            mean = model.get_input_embeddings()(row[kept]).mean(dim=0)
            pooled = torch.cat([pooled, (mean / mean.square().mean().sqrt()).expand(Q, -1)], dim=1)
        weight = model.text_projection.weight.expand(Q, -1, -1)
        rows.append(torch.stack([vector @ weight[q] for q, vector in enumerate(pooled)]).flatten())
    theirs = torch.stack(rows)
    torch.testing.assert_close(ours[:2, 0], theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours[2, 0], torch.zeros(12))
    own, expected = gradients(model, ours[:2, 0]), gradients(model, theirs)
    for name, gradient in expected.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-4 * float(gradient.abs().max().clamp(min=1)), rtol=1e-3)


def test_stored_states_give_the_whole_pass():
    model = model_of("cut")
    whole = model.get_text_features(IDS, MASK).prompt_embeds
    stored = model.get_text_features(attention_mask=MASK, text_hidden_states=model.lower_text(IDS, MASK)).prompt_embeds
    assert torch.equal(stored, whole)


def test_it_is_read_both_ways_too():
    causal, both = (
        model_of("three", adaptive_tokens="boundary", text_attention=name).get_text_features(IDS, MASK).pooler_output
        for name in ("causal", "bidirectional")
    )
    assert (causal - both)[:2].abs().max() > 1e-3


@pytest.mark.parametrize("tuning", ["last", "lora"])
def test_all_of_it_is_trained(tuning):
    model = model_of("three", adaptive_tokens="boundary")
    tuned = prepare_tuning(model, ModelArguments(text_tuning=tuning, lora_layers=1)).train()
    batch = {"input_ids": IDS[:2], "attention_mask": MASK[:2], "pixel_values": torch.randn(2, 3, 32, 32)}
    tuned(**batch, return_loss=True).loss.backward()
    trained = {name: weight.grad for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert not [name for name, gradient in trained.items() if gradient is None]
    assert sum("text_pooling" in name for name in trained) == len(list(model_of("three").text_pooling.parameters()))


def test_a_checkpoint_and_its_text_side_keep_it(tmp_path):
    from transformers import AutoModel

    tokenizer = make_tokenizer()
    model = model_of("words", tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "whole")
    make_processor(tokenizer).save_pretrained(tmp_path / "whole")
    export_text(str(tmp_path / "whole"), tmp_path / "text")
    text = AutoModel.from_pretrained(tmp_path / "text", trust_remote_code=True)
    torch.testing.assert_close(
        text.get_text_features(IDS, MASK).pooler_output, model.get_text_features(IDS, MASK).pooler_output
    )


def test_a_start_in_closed_form_is_refused():
    with pytest.raises(ValueError, match="text_pooling='attention' puts pooling queries that are still to be learned"):
        refuse_closed_form(model_of("three").config)


def test_its_heads_divide_its_width():
    with pytest.raises(ValueError, match="pooling_width=15 is not a multiple of pooling_heads=2"):
        model_of("one", pooling_width=15)
