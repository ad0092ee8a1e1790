"""Whatever is put in the place of a module, or around it, works: adapters, hooks, offloading, quantised weights."""

import copy

import accelerate
import pytest
import torch
from conftest import make_model
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model
from plain_pooling import multi_head_attention
from torch import nn
from torch.nn.utils import parametrize
from transformers import BitsAndBytesConfig

from modeling_mpclip import MPCLIPModel
from modeling_mpclip.image_tower import AttentionPooling, is_plain


def batch(size: int = 32) -> dict[str, torch.Tensor]:
    """Four texts, one of them padded, and four pictures."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (4, 7), generator=generator)
    mask = (torch.arange(7) < torch.tensor([7, 4, 7, 7])[:, None]).long()
    pixels = torch.randn(4, 3, size, size, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def trained_model(text: str = "llama", vision: str = "vit", **kwargs) -> MPCLIPModel:
    """A model whose pooling is as training leaves it: a new norm has a bias of zero, which hides faults.

    Its LLM is tamer than those of conftest.py, so that rounding stays small.
    """
    model = make_model(text, vision, **kwargs)
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.text_model.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(0.3)
        for name, parameter in model.image_pooling.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    return model


@torch.no_grad()
def logits(model: nn.Module, **inputs) -> torch.Tensor:
    return model(**(inputs or batch())).logits_per_image


# The pooling ------------------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def a_hook(linear: nn.Linear) -> None:
    linear.register_forward_hook(lambda module, args, output: 2 * output)


def a_parametrization(linear: nn.Linear) -> None:
    parametrize.register_parametrization(linear, "weight", Doubled())


def another_forward(linear: nn.Linear) -> None:
    linear.forward = lambda x, forward=linear.forward: 2 * forward(x)


@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("wrap", [a_hook, a_parametrization, another_forward])
def test_what_is_put_around_a_linear_layer_of_the_pooling_counts(wrap, name):
    pooling = trained_model().image_pooling
    with torch.no_grad():
        pooling.value.bias.zero_()
    tokens, doubled = torch.randn(2, 5, 32), copy.deepcopy(pooling)
    doubled.get_submodule(name).weight.data *= 2
    expected, plain = doubled(tokens)[0], pooling(tokens)[0]
    wrap(pooling.get_submodule(name))
    torch.testing.assert_close(pooling(tokens)[0], expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 0.05


@pytest.mark.parametrize("masked", [False, True])
def test_the_folded_pooling_equals_the_one_that_calls_its_modules(masked, monkeypatch):
    pooling = trained_model(image_pooling="attention_per_prompt").image_pooling
    tokens = torch.randn(3, 5, 32, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False, True, True, True, True]]) if masked else None
    assert is_plain(pooling.norm, pooling.key, pooling.value)
    given = [*pooling.parameters(), tokens]

    def run():
        pooled, weights = pooling(tokens, mask)
        weighed = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(7))
        return pooled, weights, *torch.autograd.grad((pooled * weighed).sum(), given)

    folded = run()
    monkeypatch.setattr(AttentionPooling, "_attend_folded", None)
    with pytest.raises(TypeError):
        run()  # it was the folded one
    monkeypatch.setattr("modeling_mpclip.image_tower.is_plain", lambda *modules: False)
    for ours, theirs in zip(folded, run(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


# Adapters ---------------------------------------------------------------------------------------------------------

KEYS_AND_VALUES = ["k_proj", "v_proj", "key", "value"]
ADAPTERS = {
    "lora on all linear layers": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    "lora on the pooling": LoraConfig(r=4, lora_alpha=8, target_modules=["key", "value", "output"]),
    "dora on keys and values": LoraConfig(
        r=4, lora_alpha=8, use_dora=True, target_modules=["key", "value", "k_proj", "v_proj"]
    ),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj", "key", "value"], feedforward_modules=["down_proj"]),
    "norms": LNTuningConfig(target_modules=["norm", "mlp_norm", "input_layernorm", "post_attention_layernorm"]),
    "lora on embeddings": LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "q_proj"]),
    "some tokens": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [7, 9]}),
    "saved modules": LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens", "text_projection", "logit_scale"]
    ),
}


def adapted(config, **kwargs):
    """With an adapter, every trained value moved away from where it began."""
    peft = get_peft_model(trained_model(**kwargs), config)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return peft


def assert_merged_equals_unmerged(peft) -> None:
    inputs = batch()
    inputs["input_ids"][:, :2] = torch.tensor([7, 9])  # of "some tokens"
    peft(**inputs, return_loss=True).loss.backward()
    trained = {name: parameter for name, parameter in peft.named_parameters() if parameter.requires_grad}
    assert trained and not [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()]
    unmerged = logits(peft, **inputs)
    plain = logits(trained_model(), **inputs)
    merged = logits(peft.merge_and_unload(), **inputs)
    torch.testing.assert_close(merged, unmerged, atol=2e-5, rtol=1e-5)
    assert (merged - plain).abs().max() > 1e-2


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_merged_equals_unmerged_and_all_is_trained(adapter):
    assert_merged_equals_unmerged(adapted(copy.deepcopy(ADAPTERS[adapter])))


@pytest.mark.parametrize("text", ["gemma2", "gemma3", "qwen3"])
def test_lora_on_all_linear_layers_of_other_families(text):
    peft = adapted(LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), text=text)
    unmerged = logits(peft)
    torch.testing.assert_close(logits(peft.merge_and_unload()), unmerged, atol=5e-5, rtol=1e-4)


# Weights that are elsewhere ---------------------------------------------------------------------------------------


def test_weights_that_accelerate_keeps_elsewhere(tmp_path):
    expected = logits(trained_model())
    torch.testing.assert_close(logits(accelerate.cpu_offload(trained_model())), expected)
    on_disk = accelerate.disk_offload(trained_model(), tmp_path)
    assert all(parameter.is_meta for parameter in on_disk.parameters())
    torch.testing.assert_close(logits(on_disk), expected)


@pytest.mark.parametrize("kilobytes, adaptive_tokens", [(40, "boundary"), (90, "input"), (150, "boundary")])
def test_less_memory_than_the_model_needs(tmp_path, kilobytes, adaptive_tokens):
    model = trained_model(adaptive_tokens=adaptive_tokens)
    model.save_pretrained(tmp_path / "model")
    loaded = MPCLIPModel.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": f"{kilobytes}KB"}, offload_folder=tmp_path / "offload"
    )
    assert any(parameter.is_meta for parameter in loaded.parameters())
    whole = ("image_pooling.", "text_model.layers.0.", "vision_model.layers.1.")
    assert not [name for name in loaded.hf_device_map if name.startswith(whole)]
    torch.testing.assert_close(logits(loaded), logits(model))


# Quantised weights ------------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_twin(quantised: nn.Module) -> MPCLIPModel:
    """The plain model with the weights that the quantised one computes with: no other difference is left to find."""
    plain = trained_model()
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            asked = quantised.get_submodule(name)
            bias = asked(torch.zeros(1, module.in_features))
            module.weight.copy_((asked(torch.eye(module.in_features)) - bias).T)
    return plain


def assert_computes_as(quantised: nn.Module, plain: MPCLIPModel, inputs_are_rounded: bool) -> None:
    """Compare the logits; where a layer rounds its inputs to 8 bits as well, the embeddings only roughly."""
    assert not is_plain(quantised.image_pooling.key)
    tokens = torch.randn(2, 5, 32)
    with torch.no_grad():
        ours, theirs = (model(**batch()) for model in (quantised, plain))
        pooled = quantised.image_pooling(tokens)[0]
        torch.testing.assert_close(pooled, multi_head_attention(quantised.image_pooling, tokens), atol=1e-5, rtol=1e-4)
        assert (pooled - trained_model().image_pooling(tokens)[0]).abs().max() > 1e-4  # quantised it is
    for name in ("text_embeds", "image_embeds"):
        assert (ours[name] * theirs[name]).sum(dim=1).min() > 0.97
    if not inputs_are_rounded:
        torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_dynamically_quantised_linear_layers():
    quantised = torch.ao.quantization.quantize_dynamic(trained_model(), {nn.Linear}, dtype=torch.qint8)
    assert_computes_as(quantised, plain_twin(quantised), inputs_are_rounded=True)


def test_torchao_weights_of_all_linear_layers():
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install 'torchao>=0.18'")
    quantised = trained_model()
    torchao.quantize_(quantised, torchao.Int8WeightOnlyConfig())
    assert_computes_as(quantised, plain_twin(quantised), inputs_are_rounded=False)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_weights_of_all_linear_layers(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install bitsandbytes")
    trained_model().save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, llm_int8_skip_modules=["none"])
    quantised = MPCLIPModel.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    assert_computes_as(quantised, plain_twin(quantised), inputs_are_rounded=bits == 8)
