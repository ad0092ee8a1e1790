"""What a segment of a text is made of: one prompt or all of them (joint_projection), and the words of the text (words)."""

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model, make_processor, make_tokenizer

from modeling_mpclip import MPCLIPModel
from modeling_mpclip.sentence_mpclip import MPCLIPSentenceModule
from mpclip.encoding import ModelEncoder
from mpclip.maps.prompt_maps import prompt_names
from mpclip.training.collator import MPCLIPCollator
from mpclip.training.gradient_cache import without_padding
from mpclip.training.state_cache import cache_text_states

TEXTS = ["The cat sits.", "A small boat", ""]
FORMS = {
    "words": {"words": True},
    "joint": {"joint_projection": True},
    "both": {"words": True, "joint_projection": True},
    "shared": {"words": True, "shared_projection": True},
    "single": {"words": True, "num_prompts": 1},
    "mean": {"words": True, "num_prompts": 1, "text_pooling": "mean"},
}


def inputs_of(tokenizer, texts=TEXTS, **options):
    encoded = tokenizer(texts, padding=True, return_tensors="pt", **options)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def by_hand(model, tokenizer, text):
    """(K, D / K): the segments of one text without padding, from the states and the embedding matrix, one after the other."""
    config, ids = model.config, inputs_of(tokenizer, [text])
    states = model.get_text_features(**ids).last_hidden_state[0]  # (K, H); (N, H) for the mean
    if config.text_pooling == "mean":
        states = states.mean(dim=0, keepdim=True)
    words = model.get_input_embeddings().weight[ids["input_ids"][0]].mean(dim=0)  # (H,)
    words = words / words.square().mean().sqrt()
    segments = []
    for k in range(config.num_prompts):
        read = [*states] if config.joint_projection else [states[k]]
        read += [words] if config.words else []
        weight = model.text_projection.weight[0 if config.shared_projection else k]  # (C, D / K)
        segments.append(torch.cat(read) @ weight)
    return torch.stack(segments)


@pytest.mark.parametrize("form", FORMS)
def test_segments_are_what_their_definition_says(form, tokenizer):
    model = make_model(tokenizer=tokenizer, **FORMS[form]).eval()
    for padding_side in ("left", "right"):
        found = model.get_text_features(**inputs_of(tokenizer, padding_side=padding_side)).prompt_embeds  # (3, K, D/K)
        for i, text in enumerate(TEXTS[:2]):
            torch.testing.assert_close(found[i], by_hand(model, tokenizer, text), atol=1e-5, rtol=1e-4)
    assert found.isfinite().all()  # of the empty text too


@pytest.mark.parametrize("form", FORMS)
def test_everything_is_trained_saved_and_negated(form, tokenizer, tmp_path):
    negation = {} if form == "mean" else {"negation_weight": 0.5}
    model = make_model(tokenizer=tokenizer, **FORMS[form], **negation)
    batch = inputs_of(tokenizer) | {"pixel_values": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    output = model(**batch, return_loss=True)
    output.loss.backward()
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(MPCLIPModel.from_pretrained(tmp_path)(**batch).text_embeds, output.text_embeds)


@pytest.mark.parametrize("form", ["words", "both", "mean"])
def test_cached_states_give_the_same_values_and_gradients(form, tokenizer, tmp_path):
    processor = make_processor(tokenizer)
    model = make_model(tokenizer=tokenizer, adaptive_tokens="boundary", boundary_layer=1, **FORMS[form])
    model.text_model.requires_grad_(False)
    model.text_model.layers[-1].requires_grad_(True)
    states = cache_text_states(model, tokenizer, TEXTS, tmp_path, format="float32")
    collators = [MPCLIPCollator(processor), MPCLIPCollator(processor, states, words=True)]
    gradients = []
    for collator in collators:
        inputs = collator.text_inputs(TEXTS)
        model.zero_grad()
        embeds = model.get_text_features(**inputs).prompt_embeds
        embeds.square().sum().backward()
        gradients.append([embeds, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    for plain, cached in zip(*gradients, strict=True):
        torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-4)
    assert "text_hidden_states" in inputs and "input_ids" in inputs
    for name, value in without_padding(inputs).items():  # the columns of the states are not those of the ids
        assert torch.equal(value, inputs[name])


def test_words_are_missed_by_name(tokenizer):
    model = make_model(tokenizer=tokenizer, words=True, adaptive_tokens="boundary")
    inputs = inputs_of(tokenizer)
    states = model.lower_text(**inputs)
    with pytest.raises(ValueError, match=r"reads the words of a text \(words=True\), so it needs input_ids"):
        model.get_text_features(text_hidden_states=states, attention_mask=inputs["attention_mask"])
    with pytest.raises(ValueError, match="attention_mask"):
        model.get_text_features(inputs["input_ids"][:, :-1], inputs["attention_mask"], states)
    plain = make_model(tokenizer=tokenizer, adaptive_tokens="boundary")
    with pytest.raises(ValueError, match="exactly one of input_ids and text_hidden_states"):
        plain.get_text_features(**inputs, text_hidden_states=states)


def test_the_first_prompts_stay_usable_with_words_and_are_refused_by_a_joint_projection(tokenizer):
    inputs = inputs_of(tokenizer)
    model = make_model(tokenizer=tokenizer, words=True).eval()
    whole = model.get_text_features(**inputs).prompt_embeds
    torch.testing.assert_close(model.get_text_features(**inputs, num_prompts=2).prompt_embeds, whole[:, :2])
    joint = make_model(tokenizer=tokenizer, joint_projection=True)
    sentence = MPCLIPSentenceModule(joint, make_processor(tokenizer))
    joint.get_text_features(**inputs, num_prompts=3)
    assert ModelEncoder(joint, make_processor(tokenizer)).segments == 1 != ModelEncoder(model, None).segments
    assert prompt_names(joint.config) == ["segment 1", "segment 2", "segment 3"]
    told = r"num_prompts=2: every segment of this model reads all 3 prompts \(joint_projection=True\)"
    with pytest.raises(ValueError, match=told):
        joint.get_text_features(**inputs, num_prompts=2)
    with pytest.raises(ValueError, match=told):
        sentence.forward({"pixel_values": torch.randn(1, 3, 32, 32)}, num_prompts=2)


@pytest.mark.parametrize(
    "options", [{"shared_projection": True}, {"elastic_prompts": True}, {"diversity_weight": 0.3}, {"num_prompts": 1}]
)
def test_what_needs_a_segment_per_prompt_is_refused_with_a_joint_projection(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*joint_projection=True|joint_projection=True.*num_prompts=1"):
        make_model(tokenizer=make_tokenizer(), joint_projection=True, **options)


def test_words_do_not_depend_on_the_length_of_their_sum(tokenizer):
    """The mean embedding of a text is scaled to one size, whatever the scale of the matrix."""
    model = make_model(tokenizer=tokenizer, words=True)
    inputs = inputs_of(tokenizer, TEXTS[:2])
    words = model._words(**inputs)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(7)
    torch.testing.assert_close(model._words(**inputs), words)
    torch.testing.assert_close(F.rms_norm(words, words.shape[-1:]), words, atol=1e-4, rtol=1e-4)
