"""The text tower of every family of the table equals separate passes of the untouched decoder; other decoders are refused."""

import pickle
from pathlib import Path

import fresh_process
import pytest
import torch
from conftest import TEXT_CONFIGS
from tiny_llms import FOUND, WINDOW, plain_decoder, tiny_config
from tower_equality import assert_equals_separate_passes, tower_of
from transformers import BertConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, OlmoConfig

from modeling_mpclip import text_families
from modeling_mpclip.family_table import FAMILIES
from modeling_mpclip.prompt_attention import PromptLayout
from modeling_mpclip.prompt_tree import PromptTree

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("family", FOUND)
def test_one_pass_equals_separate_passes(family):
    config = tiny_config(family)
    if FAMILIES[family].windows == "none" and not hasattr(config, "sliding_window"):
        config.sliding_window = WINDOW  # a stray field, which the decoder does not read
    decoder = plain_decoder(config)
    assert_equals_separate_passes(decoder, tower_of(decoder))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "deepseek_v3", "granite", "gpt_oss"])
def test_the_other_path_can_be_forced(family):
    decoder = plain_decoder(tiny_config(family))
    tower = tower_of(decoder, "branches")
    assert type(tower).__name__.startswith("Branched")
    assert_equals_separate_passes(decoder, tower)


@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_main_families_are_written_classes(family):
    config = TEXT_CONFIGS[family]()
    cls = text_families.text_tower_class(type(config))
    assert cls in text_families.WRITTEN.values() and vars(text_families)[cls.__name__] is cls
    tower = cls(config)
    assert repr(tower).startswith(f"{cls.__name__}(\n  (embed_tokens)")
    again = pickle.loads(pickle.dumps(tower))
    assert type(again) is cls
    assert all(a.equal(b) for a, b in zip(tower.state_dict().values(), again.state_dict().values(), strict=True))


def test_llama_by_name():
    assert text_families.text_tower_class(LlamaConfig) is text_families.PromptedLlamaModel


def small_olmo(path: str):
    torch.manual_seed(0)
    config = OlmoConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    return text_families.text_tower_class(OlmoConfig, path)(config).eval()


def test_other_families_get_a_class_that_another_process_finds(tmp_path):
    towers = [small_olmo("tree"), small_olmo("branches")]
    decoder = type(towers[0]).__bases__[1]
    assert type(towers[0]) is text_families.PromptedOlmoModel is text_families.make_class("Prompted", decoder)
    assert type(towers[1]) is text_families.BranchedOlmoModel is text_families.make_class("Branched", decoder)
    assert type(towers[0]) not in text_families.WRITTEN.values()
    (tmp_path / "towers.pkl").write_bytes(pickle.dumps(towers))
    script = (
        "import pickle, sys; sys.path.insert(0, '.'); print(*(type(t).__name__ for t in pickle.load(open(sys.argv[1], 'rb'))))"
    )
    run = fresh_process.start(script, ROOT, arguments=(str(tmp_path / "towers.pkl"),)).wait()
    assert run.stdout == "PromptedOlmoModel BranchedOlmoModel\n", run.stderr[-2000:]


@pytest.mark.parametrize("name", ["PromptedNothing", "BranchedNothing", "Nothing"])
def test_what_is_no_decoder_has_no_class(name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(text_families, name)


@pytest.mark.parametrize("config_class", [BertConfig, GPT2Config])
def test_a_model_of_no_family_is_refused_and_the_families_are_named(config_class):
    message = f"type '{config_class.model_type}' is not a decoder of a supported family.*llama4_text.*qwen3_5_text"
    with pytest.raises(ValueError, match=message):
        text_families.text_tower_class(config_class)


def test_a_text_model_that_looks_ahead_is_refused():
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8, use_bidirectional_attention=True
    )
    with pytest.raises(ValueError, match="use_bidirectional_attention=True"):
        text_families.text_tower_class(Gemma3TextConfig)(config)


def test_a_made_class_runs():
    tower, mask = small_olmo("tree"), torch.ones(1, 3, dtype=torch.long)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        hidden = tower.lower(ids, PromptLayout(mask, PromptTree()), 2)
        assert tower(ids, mask, tree=PromptTree()).last_hidden_state.equal(tower.norm(hidden))
