"""Prompted towers are ordinary classes: written ones for the main families, made ones for others; both pickle and read well."""

import pickle
from pathlib import Path

import fresh_process
import pytest
import torch
from conftest import TEXT_CONFIGS
from transformers import BertConfig, LlamaConfig, OlmoConfig

from modeling_mpclip import text_families
from modeling_mpclip.prompt_attention import PromptLayout
from modeling_mpclip.prompt_tree import PromptTree

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_main_families_are_written_classes(family):
    config = TEXT_CONFIGS[family]()
    cls = text_families.text_tower_class(type(config))
    assert cls in text_families.FAMILIES.values() and vars(text_families)[cls.__name__] is cls
    tower = cls(config)
    assert repr(tower).startswith(f"{cls.__name__}(\n  (embed_tokens)")
    again = pickle.loads(pickle.dumps(tower))
    assert type(again) is cls
    assert all(a.equal(b) for a, b in zip(tower.state_dict().values(), again.state_dict().values(), strict=True))


def test_llama_by_name():
    assert text_families.text_tower_class(LlamaConfig) is text_families.PromptedLlamaModel


def small_olmo():
    torch.manual_seed(0)
    config = OlmoConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    return text_families.text_tower_class(OlmoConfig)(config).eval()


def test_other_families_get_a_class_that_another_process_finds(tmp_path):
    tower = small_olmo()
    cls = type(tower)
    assert cls is text_families.PromptedOlmoModel is text_families.make_prompted_class(cls.__bases__[1])
    assert cls not in text_families.FAMILIES.values()
    (tmp_path / "tower.pkl").write_bytes(pickle.dumps(tower))
    script = "import pickle, sys; sys.path.insert(0, '.'); print(type(pickle.load(open(sys.argv[1], 'rb'))).__name__)"
    run = fresh_process.start(script, ROOT, arguments=(str(tmp_path / "tower.pkl"),)).wait()
    assert run.stdout == "PromptedOlmoModel\n", run.stderr[-2000:]


def test_what_is_no_decoder_has_no_class():
    with pytest.raises(AttributeError, match="no attribute 'PromptedNothing'"):
        text_families.PromptedNothing  # noqa: B018
    with pytest.raises(ValueError, match="not a decoder of a supported family"):
        text_families.text_tower_class(BertConfig)(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))


def test_a_made_class_runs():
    tower, mask = small_olmo(), torch.ones(1, 3, dtype=torch.long)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        hidden = tower.lower(ids, PromptLayout(mask, PromptTree()), 2)
        assert tower(ids, mask, tree=PromptTree()).last_hidden_state.equal(tower.norm(hidden))
