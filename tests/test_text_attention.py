"""`text_attention="bidirectional"`: from the boundary layer on, the tokens of a text attend to all of the text.

The reference is the untouched decoder. Each text runs with each prompt alone, and the layers from the boundary on are given
4-D masks that are written here token by token.
"""

import functools

import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer
from tiny_llms import FOUND, plain_decoder, tiny_config
from tower_equality import assert_equals_separate_passes
from transformers import AutoModel, PreTrainedModel

from modeling_mpclip.family_table import FAMILIES
from modeling_mpclip.prompt_attention import PromptLayout, prompt_attention_mask
from modeling_mpclip.prompt_tree import PromptTree
from modeling_mpclip.text_families import text_tower_class
from mpclip.export.text import export_text
from mpclip.training.state_cache import text_key

TREES = [name for name in FOUND if FAMILIES[name].path == "tree"]
FIRST_TEXT_ID = 12  # the texts of tiny_llms have ids from 12 on, its prompts have smaller ones
IDS, MASK = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 10, 11, 12]]), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def bidirectional(decoder: PreTrainedModel, boundary: int, window_of) -> PreTrainedModel:
    """The decoder with handmade masks in its layers from `boundary` on; `window_of(i)` is the sliding window of layer i."""
    ids = []
    decoder.register_forward_pre_hook(lambda _, args, kwargs: ids.append(kwargs["input_ids"][0].tolist()), with_kwargs=True)

    def with_mask(window, _, args, kwargs):
        assert "attention_mask" in kwargs
        is_text, rows = [token >= FIRST_TEXT_ID for token in ids[-1]], range(len(ids[-1]))
        seen = [
            [(k <= q or (is_text[q] and is_text[k])) and (window is None or abs(q - k) < window) for k in rows] for q in rows
        ]
        added = torch.zeros(len(rows), len(rows)).masked_fill(~torch.tensor(seen), torch.finfo(torch.float32).min)
        return args, kwargs | {"attention_mask": added[None, None]}

    for i, layer in enumerate(decoder.layers):
        if i >= boundary:
            layer.register_forward_pre_hook(functools.partial(with_mask, window_of(i)), with_kwargs=True)
    return decoder


@pytest.mark.parametrize("family, boundary", [(name, 0) for name in TREES] + [("llama", 1), ("gemma3_text", 1), ("mistral", 1)])
def test_one_pass_equals_separate_passes_under_handmade_masks(family, boundary):
    """Values and gradients, padding on either side, sliding windows, an empty text; a last layer at the readouts alone."""
    decoder = plain_decoder(tiny_config(family))
    tower = text_tower_class(type(decoder.config))(decoder.config, (), boundary, "bidirectional").eval()
    tower.load_state_dict(decoder.state_dict(), strict=False)
    reference = bidirectional(decoder, boundary, lambda i: tower._window(tower._kind(i)))
    assert_equals_separate_passes(reference, tower)


@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_poolings_without_prompts(pooling):
    options = dict(adaptive_tokens="boundary", boundary_layer=1, text_attention="bidirectional")
    model = make_model(text_pooling=pooling, num_prompts=1, **options)
    own = model.text_model
    plain = AutoModel.from_config(model.config.text_config).eval()
    plain.load_state_dict(own.state_dict(), strict=False)
    reference = bidirectional(plain, model.config.boundary_layer, lambda i: None)
    ids = IDS + FIRST_TEXT_ID
    ours = model.get_text_features(ids, MASK).pooler_output
    for row, kept, text in zip(ids, MASK.bool(), ours, strict=True):
        states = reference(input_ids=row[kept][None]).last_hidden_state[0]  # (n, H)
        vector = states.mean(dim=0) if pooling == "mean" else states[-1]
        torch.testing.assert_close(text, vector @ model.text_projection.weight[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mask_token_by_token(side):
    """A window reaches as far to either side; prompts attend to the text and to their own past; the text to no prompt."""
    tree = PromptTree(token_ids=(5, 6, 7), parents=(-1, 0, -1), readouts=(1, 2))
    text = torch.tensor([[1, 1, 1, 0]] if side == "right" else [[0, 1, 1, 1]])
    where = text[0].nonzero().flatten().tolist() + [4, 5, 6]
    seen = prompt_attention_mask(text, tree, 2, True)[0, 0][where][:, where].int().tolist()
    assert seen == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("family, boundary", [("llama", 0), ("llama", 1), ("gemma3", 0)])
def test_states_below_the_boundary_are_those_of_the_causal_model(family, boundary):
    """So the states of one cache serve both, and the upper part from them is the whole pass."""
    options = dict(adaptive_tokens="boundary", boundary_layer=boundary, negated_templates=[])
    causal, both = (make_model(family, text_attention=name, **options) for name in ("causal", "bidirectional"))
    for model in (causal, both):
        model.text_model.requires_grad_(False)
    states = causal.lower_text(IDS, MASK)
    assert torch.equal(both.lower_text(IDS, MASK), states)
    assert text_key(both) == text_key(causal)
    whole = both.get_text_features(IDS, MASK).prompt_embeds
    stored = both.get_text_features(attention_mask=MASK, text_hidden_states=states).prompt_embeds
    assert torch.equal(stored, whole)
    assert (whole - causal.get_text_features(IDS, MASK).prompt_embeds).abs().max() > 1e-3


def test_implementations_agree_and_prompts_do_not_touch_the_text():
    options = dict(adaptive_tokens="boundary", boundary_layer=1, text_attention="bidirectional")
    eager, sdpa = (make_model("gemma3", attn_implementation=name, **options) for name in ("eager", "sdpa"))
    ours = sdpa.get_text_features(IDS, MASK, negated=True)
    theirs = eager.get_text_features(IDS, MASK, negated=True)
    torch.testing.assert_close(ours.prompt_embeds, theirs.prompt_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sdpa.get_text_features(IDS, MASK, num_prompts=2).prompt_embeds, ours.prompt_embeds[:, :2])
    alone, beside = (sdpa.text_model(IDS, MASK, tree=tree).last_hidden_state for tree in (PromptTree(), sdpa.prompt_tree()))
    torch.testing.assert_close(beside[:, :5][MASK.bool()], alone[MASK.bool()], atol=1e-5, rtol=1e-4)


def test_the_last_layer_alone_would_change_the_mean_and_nothing_else():
    """Which is why the config refuses it for prompts."""
    tower = {}
    for name in ("causal", "bidirectional"):
        torch.manual_seed(0)
        config = tiny_config("llama")
        tower[name] = text_tower_class(type(config))(config, (), 1, name).eval()
    tree = PromptTree(token_ids=(5, 6), parents=(-1, 0), readouts=(1,))
    one, other = (tower[name](IDS, MASK, tree=tree).last_hidden_state for name in tower)
    torch.testing.assert_close(one[:, 4:], other[:, 4:])  # the last token of the text, and the prompt
    assert (one[0, :4] - other[0, :4]).abs().amax(dim=1).min() > 1e-4


def test_states_above_the_boundary_are_refused():
    model = make_model(adaptive_tokens="boundary", boundary_layer=1, text_attention="bidirectional")
    with pytest.raises(ValueError, match=r"stop=2; with text_attention='bidirectional' .* end at the boundary layer, 1"):
        model.text_model.lower(IDS, PromptLayout(MASK, PromptTree()), 2)


@pytest.mark.parametrize("family", [name for name in ("lfm2", "qwen3_next") if name in FOUND])
def test_decoders_that_mix_tokens_by_more_than_masks_are_refused(family):
    config = tiny_config(family)
    with pytest.raises(ValueError, match=r"text_attention='bidirectional' and a text model of type .*='causal'"):
        text_tower_class(type(config))(config, (), 1, "bidirectional")


def test_a_checkpoint_and_its_text_side_keep_it(tmp_path):
    tokenizer = make_tokenizer()
    options = dict(adaptive_tokens="boundary", boundary_layer=1, text_attention="bidirectional")
    model = make_model(tokenizer=tokenizer, **options)
    model.save_pretrained(tmp_path / "whole")
    make_processor(tokenizer).save_pretrained(tmp_path / "whole")
    export_text(str(tmp_path / "whole"), tmp_path / "text")
    text = AutoModel.from_pretrained(tmp_path / "text", trust_remote_code=True).eval()
    assert text.config.text_attention == text.text_model.text_attention == "bidirectional"
    expected = model.get_text_features(IDS, MASK).pooler_output
    torch.testing.assert_close(text.get_text_features(IDS, MASK).pooler_output, expected)
