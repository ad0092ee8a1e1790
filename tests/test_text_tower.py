"""One masked pass over text and prompt tree equals K separate passes of the untouched LLM: values and gradients."""

import warnings

import pytest
import torch
from conftest import TEXT_CONFIGS, enable_checkpointing, make_model, make_tokenizer
from separate_passes import assert_same_gradients, gradients, path, plain_llm, separate_passes

TEXTS = ["The cat sits on the red mat, and the dog too.", "A small boat", ""]
IMPLEMENTATIONS = ("eager", "sdpa")


def encode(tokenizer, side: str, extra: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of different length with more padding than they need, on either side."""
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    N = max(map(len, rows)) + extra
    ids, mask = torch.zeros(len(rows), N, dtype=torch.long), torch.zeros(len(rows), N, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(N - len(row), N)
        ids[i, where], mask[i, where] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_one_pass_equals_separate_passes(family, implementation, side):
    if family == "gemma2" and implementation == "sdpa":
        pytest.skip("transformers refuses sdpa for Gemma 2, whose scores are soft-capped")
    tokenizer = make_tokenizer(bos="gemma" in family)
    model = make_model(family, tokenizer=tokenizer, attn_implementation=implementation)
    ids, mask = encode(tokenizer, side)
    ours = model.get_text_features(ids, mask, negated=True).last_hidden_state
    theirs = separate_passes(model, plain_llm(model), tokenizer, TEXTS, negated=True)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert_same_gradients(gradients(model, ours), gradients(model, theirs))


def test_flex_attention_is_refused_on_a_cpu():
    """Its compiled kernels gave wrong numbers on CPUs with AMX."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer=tokenizer, attn_implementation="flex_attention")
    with pytest.raises(ValueError, match="'flex_attention' is for GPUs"):
        model.get_text_features(*encode(tokenizer, "right"))


@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_hidden_states_and_attentions_are_those_of_separate_passes(family):
    """Of each text with each prompt, at the text's columns and the prompt's own. States before the norm are large."""
    tokenizer = make_tokenizer(bos="gemma" in family)
    model = make_model(family, tokenizer=tokenizer, attn_implementation="eager")
    llm = plain_llm(model)
    llm.set_attn_implementation("eager")
    ids, mask = encode(tokenizer, "left")
    asked = {"output_hidden_states": True, "output_attentions": True}
    tree, N = model.prompt_tree(), ids.shape[1]
    with torch.no_grad():
        ours = model.get_text_features(ids, mask, **asked)
    assert [len(ours.hidden_states), len(ours.attentions)] == [4, 3]
    torch.testing.assert_close(ours.hidden_states[-1], ours.last_hidden_state)
    for i, text in enumerate(TEXTS):
        for k, node in enumerate(tree.readouts):
            own = [n for n in range(len(tree)) if tree.lineage[node][n]]
            columns = [*mask[i].nonzero().flatten().tolist(), *(N + n for n in own)]
            embeds = model.text_model.embed(torch.tensor([tokenizer(text)["input_ids"] + path(tree, node)]))
            with torch.no_grad():
                theirs = llm(inputs_embeds=embeds, use_cache=False, **asked)
            for layer in range(3):
                states = ours.hidden_states[layer][i, columns]
                torch.testing.assert_close(states, theirs.hidden_states[layer][0], atol=3e-4, rtol=1e-3)
                rows = columns if layer < 2 else [k]
                weights = ours.attentions[layer][i, :, rows][..., columns]  # (heads, n or 1, n)
                expected = theirs.attentions[layer][0][:, -len(rows) :]
                torch.testing.assert_close(weights, expected, atol=3e-4, rtol=1e-3)
                torch.testing.assert_close(weights.sum(-1), torch.ones(4, len(rows)))  # nothing elsewhere
            torch.testing.assert_close(ours.hidden_states[3][i, k], theirs.hidden_states[3][0, -1], atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_nothing_that_transformers_takes_away_is_used(family):
    model = make_model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model.get_text_features(torch.ones(1, 3, dtype=torch.long)).pooler_output.sum().backward()


def test_nothing_is_captured_unasked_and_only_what_runs_when_asked(tokenizer):
    model = make_model(tokenizer=tokenizer, adaptive_tokens="boundary", boundary_layer=1, attn_implementation="eager")
    ids, mask = encode(tokenizer, "right")
    plain = model.get_text_features(ids, mask)
    assert plain.hidden_states is None and plain.attentions is None
    assert not any(module._forward_hooks for module in model.text_model.modules())
    states = model.lower_text(ids, mask)
    upper = model.get_text_features(
        attention_mask=mask, text_hidden_states=states, output_hidden_states=True, output_attentions=True
    )
    B, columns, R = *states.shape[:2], 3
    assert [h.shape[1] for h in upper.hidden_states] == [columns, columns, R]
    assert [a.shape for a in upper.attentions] == [(B, 4, columns, columns), (B, 4, R, columns)]
    torch.testing.assert_close(upper.last_hidden_state, plain.last_hidden_state)


@pytest.mark.parametrize(
    "implementation, lora, checkpointing",
    [("eager", False, False), ("sdpa", False, False), ("eager", True, False), ("sdpa", True, True)],
)
@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_readout_only_layer_equals_full_layer(family, implementation, lora, checkpointing):
    if family == "gemma2" and implementation == "sdpa":
        pytest.skip("transformers refuses sdpa for Gemma 2, whose scores are soft-capped")
    tokenizer = make_tokenizer()
    model = make_model(family, tokenizer=tokenizer, attn_implementation=implementation)
    if lora:
        with_adapters(model)
    if checkpointing:
        enable_checkpointing(model.train())
    ids, mask = encode(tokenizer, "right")
    tree = model.prompt_tree()
    readouts = model._readouts(mask, tree)
    short = model.text_model(ids, mask, tree=tree, readouts=readouts).last_hidden_state
    full = model.text_model(ids, mask, tree=tree).last_hidden_state[:, ids.shape[1] + torch.tensor(tree.readouts)]
    torch.testing.assert_close(short, full, atol=1e-6, rtol=1e-5)
    ours = gradients(model, short)
    assert_same_gradients(ours, gradients(model, full))
    assert lora == any("layers.2.self_attn.k_proj.lora_A" in name for name in ours)


def with_adapters(model) -> None:
    """Random LoRA adapters in place, on every projection of every layer."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(3)
    pattern = r"text_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    inject_adapter_in_model(LoraConfig(r=2, target_modules=pattern, init_lora_weights=False), model)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gradient_checkpointing_changes_nothing(family):
    tokenizer = make_tokenizer()
    model = make_model(family, tokenizer=tokenizer).train()
    ids, mask = encode(tokenizer, "right")
    plain = gradients(model, model.get_text_features(ids, mask).last_hidden_state)
    enable_checkpointing(model)
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in model.text_model.layers)
    assert_same_gradients(gradients(model, model.get_text_features(ids, mask).last_hidden_state), plain)


def test_prompts_do_not_see_one_another(tokenizer):
    model = make_model(tokenizer=tokenizer)
    ids, mask = encode(tokenizer, "right")
    before = model.get_text_features(ids, mask).prompt_embeds
    with torch.no_grad():
        model.text_model.adaptive_embedding.weight[1] += 1.0
    after = model.get_text_features(ids, mask).prompt_embeds
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]], atol=0, rtol=0)
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-2


def test_positive_prompts_do_not_depend_on_negated_ones(tokenizer):
    model = make_model(tokenizer=tokenizer)
    ids, mask = encode(tokenizer, "right")
    alone = model.get_text_features(ids, mask).prompt_embeds
    together = model.get_text_features(ids, mask, negated=True)
    torch.testing.assert_close(together.prompt_embeds, alone, atol=1e-6, rtol=1e-5)
    assert (together.negated_prompt_embeds - alone).abs().max() > 1e-2


def test_only_adaptive_tokens_of_a_frozen_llm_train(tokenizer):
    model = make_model(tokenizer=tokenizer)
    for name, parameter in model.text_model.named_parameters():
        parameter.requires_grad_(name == "adaptive_embedding.weight")
    ids, mask = encode(tokenizer, "right")
    grads = gradients(model, model.get_text_features(ids, mask).last_hidden_state)
    assert list(grads) == ["adaptive_embedding.weight"]
    assert (grads["adaptive_embedding.weight"].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3"])
@pytest.mark.parametrize("boundary", [0, 1, 2, 3])
def test_upper_part_from_stored_states_equals_the_whole_pass(family, boundary):
    tokenizer = make_tokenizer()
    model = make_model(family, tokenizer=tokenizer, adaptive_tokens="boundary", boundary_layer=boundary)
    torch.nn.init.normal_(model.text_model.boundary_embedding.weight, std=0.5)
    ids, mask = encode(tokenizer, "left")
    states = model.lower_text(ids, mask, negated=True).detach()
    whole = model.get_text_features(ids, mask, negated=True)
    cached = model.get_text_features(attention_mask=mask, text_hidden_states=states, negated=True)
    torch.testing.assert_close(cached.prompt_embeds, whole.prompt_embeds, atol=0, rtol=0)
    torch.testing.assert_close(cached.negated_prompt_embeds, whole.negated_prompt_embeds, atol=0, rtol=0)
    assert not model.text_model.adaptive_embedding.weight.requires_grad
    whole.prompt_embeds.square().sum().backward()
    assert (model.text_model.boundary_embedding.weight.grad.abs().sum(dim=1) > 0).all()


def test_boundary_vectors_at_zero_change_nothing(tokenizer):
    inside, boundary = (make_model(tokenizer=make_tokenizer(), adaptive_tokens=m) for m in ("input", "boundary"))
    boundary.load_state_dict(inside.state_dict(), strict=False)
    assert (boundary.text_model.boundary_embedding.weight == 0).all()
    ids, mask = encode(tokenizer, "right")
    expected = inside.get_text_features(ids, mask).pooler_output
    torch.testing.assert_close(boundary.get_text_features(ids, mask).pooler_output, expected)


def test_states_of_learned_inputs_are_refused(tokenizer):
    with pytest.raises(ValueError, match="adaptive_tokens='boundary'"):
        make_model(tokenizer=tokenizer).lower_text(torch.ones(1, 3, dtype=torch.long))


def test_an_id_without_embedding_is_refused(tokenizer):
    with pytest.raises(ValueError, match="range from 5 to 5000"):
        make_model(tokenizer=tokenizer).get_text_features(torch.tensor([[5, 5000]]))


def test_flash_attention_is_refused(tokenizer):
    model = make_model(tokenizer=tokenizer)
    model.text_model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="prompt-wise attention"):
        model.get_text_features(torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_baseline_poolings_equal_the_plain_llm(pooling):
    tokenizer = make_tokenizer()
    model = make_model(tokenizer=tokenizer, text_pooling=pooling, num_prompts=1)
    llm = plain_llm(model)
    for side in ("left", "right"):
        ids, mask = encode(tokenizer, side)
        ours = model.get_text_features(ids, mask).pooler_output
        for i, text in enumerate(TEXTS[:2]):
            hidden = llm(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
            pooled = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
            torch.testing.assert_close(ours[i], pooled @ model.text_projection.weight[0], atol=1e-5, rtol=1e-4)
        assert ours.isfinite().all()
