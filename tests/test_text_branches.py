"""Decoders that masks cannot express: prompts that continue from the cache of the text, or run as rows of their own."""

import pytest
import torch
from conftest import VISION_CONFIGS, make_tokenizer
from tiny_llms import FOUND, TREE, batch, plain_decoder, separate_passes, tiny_config
from tower_equality import assert_equal, assert_equals_separate_passes, tower_of

from modeling_mpclip import MPCLIPConfig, MPCLIPModel, text_branches
from modeling_mpclip.family_table import FAMILIES
from modeling_mpclip.prompt_tree import PromptTree
from mpclip.training.state_cache import cache_text_states

CONTINUED = [name for name in FOUND if FAMILIES[name].path == "branches"]


def calls(tower) -> list[int]:
    """Rows of each call of the decoder, filled while it runs."""
    rows = []
    tower.layers[0].register_forward_pre_hook(lambda layer, inputs: rows.append(inputs[0].shape[-3]))
    return rows


def test_a_text_runs_once_and_texts_of_equal_length_together():
    tower = tower_of(plain_decoder(tiny_config("lfm2")))
    rows = calls(tower)
    tower(*batch(), tree=TREE)
    assert rows == [3, 1, 3, 2, 6]  # the empty text's branches; a text of 3 tokens and its branches; two texts of 7 tokens


@pytest.mark.parametrize("family", ["falcon_h1", "gemma3n_text", "gemma4_text", "llama4_text", "qwen3_5_text"])
def test_gradient_checkpointing_changes_nothing(family):
    """Checkpointed layers drop a cache without an error, so none is used."""
    decoder = plain_decoder(tiny_config(family))
    tower = tower_of(decoder).train()
    getattr(tower, "activation_checkpointing_enable", tower.gradient_checkpointing_enable)()
    rows = calls(tower)
    assert_equals_separate_passes(decoder, tower, full=False)
    assert set(rows) == {12}  # 4 texts with 3 branches each, also while the backward pass runs the layer again


@pytest.mark.parametrize("family", ["gemma4_text", "lfm2"])
def test_processes_that_may_share_weights_call_the_layers_equally_often(family, monkeypatch):
    monkeypatch.setattr(text_branches, "_several_processes", lambda: True)
    decoder = plain_decoder(tiny_config(family))
    tower = tower_of(decoder)
    rows = calls(tower)
    assert_equals_separate_passes(decoder, tower)
    assert rows == [12, 12]


@pytest.mark.parametrize("family", CONTINUED)
def test_texts_and_prompts_of_one_token(family):
    """Decoders have another code for a single token that continues a state; some of it overwrites the state."""
    decoder = plain_decoder(tiny_config(family))
    texts = torch.tensor([[0, 20], [30, 40]]), torch.tensor([[0, 1], [1, 1]])
    assert_equals_separate_passes(decoder, tower_of(decoder), texts, PromptTree((5,), (-1,), (0,)))


@pytest.mark.parametrize("whole_rows", [False, True])
@pytest.mark.parametrize("family", ["falcon_h1", "gemma3n_text", "gemma4_text", "nanochat"])
def test_adaptive_tokens_are_learned_at_the_input(family, whole_rows, monkeypatch):
    """Two adaptive tokens whose embeddings are those of the tokens 6 and 8 do what 6 and 8 do; gradients reach their rows."""
    monkeypatch.setattr(text_branches, "_several_processes", lambda: whole_rows)
    decoder = plain_decoder(tiny_config(family))
    with torch.no_grad():
        if getattr(decoder, "hidden_size_per_layer_input", None):  # adaptive tokens have the inputs per layer of token 0
            decoder.embed_tokens_per_layer.weight[[6, 8]] = decoder.embed_tokens_per_layer.weight[0].clone()
        rows = decoder.embed_tokens(torch.tensor([6, 8]))
    tower = tower_of(decoder, adaptive_token_ids=(200, 201))
    tower.initialize_adaptive(rows)
    swapped = PromptTree(tuple({6: 200, 8: 201}.get(i, i) for i in TREE.token_ids), TREE.parents, TREE.readouts)
    ids, mask = batch()
    ours = tower(ids, mask, tree=swapped).last_hidden_state[:, ids.shape[1] + torch.tensor(TREE.readouts)]
    assert_equal(ours, separate_passes(decoder, ids, mask, TREE))
    (ours * torch.randn(ours.shape)).sum().backward()
    assert (tower.adaptive_embedding.weight.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("whole_rows", [False, True])
@pytest.mark.parametrize("family", ["lfm2", "gemma3n_text"])
def test_texts_without_prompts(family, whole_rows, monkeypatch):
    """For text_pooling="mean" and "last_token": the states of the text at its own columns, 0 at padding."""
    monkeypatch.setattr(text_branches, "_several_processes", lambda: whole_rows)
    decoder = plain_decoder(tiny_config(family))
    ids, mask = batch()
    with torch.no_grad():
        ours = tower_of(decoder)(ids, mask, tree=PromptTree()).last_hidden_state
        assert not ours[mask == 0].any()
        for row, kept, hidden in zip(ids, mask.bool(), ours, strict=True):
            if kept.any():
                assert_equal(hidden[kept], decoder(input_ids=row[kept][None], use_cache=False).last_hidden_state[0])


def model_of(family: str, **options) -> MPCLIPModel:
    config = MPCLIPConfig(
        tiny_config(family), VISION_CONFIGS["vit"](), **{"num_prompts": 3, "projection_dim": 12, "pooling_width": 16, **options}
    )
    config.text_config.vocab_size = config.text_config.vocab_size_per_layer_input = 400
    config.compile_prompts(make_tokenizer())
    return MPCLIPModel(config).eval()


def test_the_default_is_refused_and_the_way_out_is_named():
    with pytest.raises(ValueError, match=r"'lfm2'.*Set adaptive_tokens='input'.*docs/towers.md"):
        model_of("lfm2")


@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_without_prompts_the_default_passes(pooling):
    model = model_of("lfm2", num_prompts=1, text_pooling=pooling)
    assert model.get_text_features(torch.ones(1, 3, dtype=torch.long)).pooler_output.isfinite().all()


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_states_of_single_layers_are_refused(asked):
    with pytest.raises(ValueError, match="'lfm2' cannot serve"):
        model_of("lfm2", adaptive_tokens="input").get_text_features(torch.ones(1, 3, dtype=torch.long), **{asked: True})


def test_stored_states_are_refused():
    model = model_of("lfm2", adaptive_tokens="input")
    tree = model.prompt_tree()
    with pytest.raises(ValueError, match="'lfm2' cannot serve"):
        model.get_text_features(
            attention_mask=torch.ones(1, 3, dtype=torch.long), text_hidden_states=torch.zeros(1, 3 + len(tree), 32)
        )
    for part in (model.text_model.lower, model.text_model.upper):
        with pytest.raises(ValueError, match="'lfm2' cannot serve"):
            part()


@pytest.mark.parametrize("options", [{"adaptive_tokens": "input"}, {"num_prompts": 1, "text_pooling": "mean"}])
def test_advice_for_a_cache_of_states_is_not_what_the_tower_refuses(options, tmp_path):
    """Neither "boundary", which such a tower refuses, nor anything but to store no states of texts."""
    model, tokenizer = model_of("lfm2", **options), make_tokenizer()
    with pytest.raises(ValueError, match=r"'lfm2' .*Set cache_text_states=false") as caught:
        cache_text_states(model, tokenizer, ["a cat"], tmp_path)
    with pytest.raises(ValueError, match="'lfm2' cannot serve") as refused:
        model.lower_text(torch.ones(1, 3, dtype=torch.long))
    assert not any("boundary" in str(error.value) for error in (caught, refused))
    assert not list(tmp_path.iterdir())


def test_a_graph_is_refused(tmp_path):
    onnx = pytest.importorskip(
        "mpclip.export.onnx", exc_type=ImportError, reason="exports: pip install onnx onnxscript onnxruntime"
    )
    model = model_of("lfm2", adaptive_tokens="input")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="type 'lfm2' has no ONNX graph"):
        onnx.export(str(tmp_path / "model"), tmp_path / "text.onnx")
    assert not (tmp_path / "text.onnx").exists()


def test_a_traced_tower_is_refused():
    class Text(torch.nn.Module):
        def forward(self, ids, mask):
            return tower(ids, mask, tree=TREE).last_hidden_state

    tower = tower_of(plain_decoder(tiny_config("lfm2")))
    with pytest.raises(Exception, match="'lfm2' cannot serve the export of a graph"):  # torch wraps the error
        torch.export.export(Text(), batch())


def test_a_config_that_asks_for_tuples_changes_nothing():
    model, ids = model_of("lfm2", adaptive_tokens="input"), torch.ones(1, 3, dtype=torch.long)
    expected = model.get_text_features(ids).pooler_output
    model.text_model.config.return_dict = False
    assert model.get_text_features(ids).pooler_output.equal(expected)


def test_the_first_prompts_and_the_negated_ones():
    model, ids = model_of("qwen3_next", adaptive_tokens="input"), torch.tensor([[20, 30, 40]])
    with torch.no_grad():
        whole = model.get_text_features(ids, negated=True)
        assert_equal(model.get_text_features(ids).prompt_embeds, whole.prompt_embeds)
        assert_equal(model.get_text_features(ids, num_prompts=2).prompt_embeds, whole.prompt_embeds[:, :2])
        assert (whole.negated_prompt_embeds - whole.prompt_embeds).abs().max() > 1e-4
