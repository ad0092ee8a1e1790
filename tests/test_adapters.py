"""LoRA adapters: what they touch, and that they come back whole, by peft and by transformers, alone and from a repository."""

import json
import re

import pytest
import torch
import transformers
from conftest import TEXT_CONFIGS, VISION_CONFIGS, arguments, make_model, make_processor, make_tokenizer
from packaging.version import Version
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import train_hf
from modeling_mpclip import MPCLIPModel
from mpclip.training.options import ModelArguments
from mpclip.training.tuning import boundary_layer, prepare_tuning

TEXTS = ["The cat sits on the mat", "a dog", ""]
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


# transformers 5.17 does not find the weights of modules_to_save, which is refused there.
whole_adapters = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="transformers 5.17 loads adapters in part"
)


def logits(model) -> torch.Tensor:
    batch = make_processor(make_tokenizer())(text=TEXTS)
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(**batch, pixel_values=pixels).logits_per_image


def adapted(model: MPCLIPModel) -> PeftModel:
    """With LoRA, every trained value moved away from where it began."""
    peft = prepare_tuning(model, ModelArguments(text_tuning="lora", lora_rank=4))
    torch.manual_seed(7)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return peft


@pytest.mark.parametrize("vision", VISION_CONFIGS)
@pytest.mark.parametrize("text", TEXT_CONFIGS)
def test_adapters_are_in_every_layer_of_the_text_tower_and_nowhere_else(text, vision):
    peft = adapted(make_model(text, vision))
    found = {name.removesuffix(".lora_A.default") for name, _ in peft.named_modules() if name.endswith("lora_A.default")}
    parts = [name.removeprefix("base_model.model.text_model.layers.").split(".") for name in found]
    assert {(int(layer), name) for layer, _, name in parts} == {(layer, name) for layer in range(3) for name in LINEAR}
    trained = {name for name, parameter in peft.named_parameters() if parameter.requires_grad}
    assert trained and not [name for name in trained if "vision_model" in name]


def test_adapters_of_the_last_layers_leave_the_rest_to_the_cache():
    arguments = ModelArguments(text_tuning="lora", lora_layers=2)
    assert boundary_layer(3, arguments) == 1
    peft = prepare_tuning(make_model(adaptive_tokens="boundary", boundary_layer=1), arguments)
    names = [name for name, _ in peft.named_modules() if name.endswith("lora_A.default")]
    assert names and {name.split("layers.")[1][0] for name in names} == {"1", "2"}
    with pytest.raises(ValueError, match=r"lora_layers=4 is outside 1\.\.3"):
        boundary_layer(3, ModelArguments(text_tuning="lora", lora_layers=4))


@pytest.mark.parametrize(
    "options, embedding",
    [({}, "adaptive_embedding"), ({"adaptive_tokens": "boundary", "boundary_layer": 0}, "boundary_embedding")],
)
def test_what_is_new_is_saved_and_restored_with_the_adapter(tmp_path, options, embedding):
    make_model(loss="sigmoid", **options).save_pretrained(tmp_path / "base")
    peft = adapted(MPCLIPModel.from_pretrained(tmp_path / "base"))
    saved = {name.split(".")[-1] for name, module in peft.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    assert saved == {"image_pooling", "image_projection", "text_projection", "logit_scale", embedding}
    peft.save_pretrained(tmp_path / "adapter")
    base = MPCLIPModel.from_pretrained(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    expected = peft.merge_and_unload().state_dict()
    assert merged.keys() == before.keys()
    changed = {name for name in merged if not torch.equal(merged[name], before[name])}
    parts = ("image_pooling.", "image_projection.", "text_projection.", "logit_scale.", f"text_model.{embedding}.")
    for part in parts:
        names = {name for name in merged if name.startswith(part)}
        assert names and names <= changed, part
    assert not [name for name in changed if not name.startswith((*parts, "text_model.layers."))]
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-6)


@whole_adapters
@pytest.mark.parametrize("text, vision", [("llama", "clip"), ("gemma2", "siglip"), ("gemma3", "dinov2"), ("qwen3", "vit")])
def test_peft_transformers_and_the_merged_model_give_equal_numbers(tmp_path, text, vision):
    make_model(text, vision).save_pretrained(tmp_path / "base")
    peft = adapted(MPCLIPModel.from_pretrained(tmp_path / "base", attn_implementation="eager"))
    expected = logits(peft)
    assert (expected - logits(MPCLIPModel.from_pretrained(tmp_path / "base"))).abs().max() > 0.1
    peft.save_pretrained(tmp_path / "adapter")
    base = MPCLIPModel.from_pretrained(tmp_path / "base")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), expected, atol=1e-4, rtol=1e-4)
    by_transformers = AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    torch.testing.assert_close(logits(by_transformers), expected, atol=1e-4, rtol=1e-4)
    by_class = MPCLIPModel.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(by_class), expected, atol=1e-4, rtol=1e-4)
    later = MPCLIPModel.from_pretrained(tmp_path / "base")
    later.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(logits(later), expected, atol=1e-4, rtol=1e-4)
    peft.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(MPCLIPModel.from_pretrained(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)


@whole_adapters
@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w: w.pop(next(name for name in w if "lora_A" in name)), "lacks .*lora_A"),
        (lambda w: next(iter(w.values())).fill_(float("nan")), "NaN or infinite values in"),
    ],
)
def test_a_faulty_adapter_is_refused(tmp_path, edit, message):
    make_model().save_pretrained(tmp_path / "base")
    adapted(MPCLIPModel.from_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)


@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "base/model.safetensors"])
def test_a_damaged_file_of_an_adapter_or_its_base_is_named(tmp_path, file):
    make_model().save_pretrained(tmp_path / "base")
    adapted(MPCLIPModel.from_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-100])
    for load in (MPCLIPModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match=re.escape(f"{tmp_path / file} is cut short or damaged")):
            load(tmp_path / "adapter")


def test_what_is_wrong_elsewhere_is_not_hidden_by_the_search_for_damaged_files(tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    adapted(MPCLIPModel.from_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(TypeError, match="no_such_argument"):
        MPCLIPModel.from_pretrained(tmp_path / "adapter", no_such_argument=1)


@whole_adapters
@pytest.mark.parametrize("vision", ["vit", "clip", "siglip", "efficientnet"])
def test_a_vision_tower_that_is_trained_beside_lora_comes_back(tmp_path, vision):
    make_model(vision=vision).save_pretrained(tmp_path / "base")
    options = {"text_tuning": "lora", "vision_tuning": "full"}
    peft = prepare_tuning(MPCLIPModel.from_pretrained(tmp_path / "base"), ModelArguments(**options))
    trained = [parameter for name, parameter in peft.named_parameters() if "vision_model" in name and parameter.requires_grad]
    assert trained
    for parameter in trained:
        parameter.data += 0.1
    peft.save_pretrained(tmp_path / "adapter")
    loaded = AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    torch.testing.assert_close(logits(loaded), logits(peft), atol=1e-4, rtol=1e-4)
    assert (logits(loaded) - logits(MPCLIPModel.from_pretrained(tmp_path / "base"))).abs().max() > 1e-3


@whole_adapters
@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w, name: w.pop(name), "lacks {}"),
        (lambda w, name: w.update({name: w[name][:-1].contiguous()}), "has another shape in {}"),
        (lambda w, name: w.update({name + "s": w.pop(name)}), "lacks {0}, and holds {0}s"),
    ],
)
def test_a_faulty_base_of_an_adapter_is_refused(tmp_path, edit, message):
    name = "text_model.layers.1.input_layernorm.weight"
    make_model().save_pretrained(tmp_path / "base")
    adapted(MPCLIPModel.from_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    edit(weights, name)
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    for load in (MPCLIPModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=message.format(name)):
            load(tmp_path / "adapter")


# By train_hf.py ---------------------------------------------------------------------------------------------------

LORA = ("--text_tuning", "lora", "--learning_rate", "0.01", "--adaptive_learning_rate", "0.01", "--text_learning_rate", "0.01")


def go_on(folder, checkpoint, out, *extra: str) -> list[str]:
    """The command line of a run with LoRA from a checkpoint."""
    argv = ["--checkpoint", str(checkpoint), "--dataset", str(folder / "data"), "--output_dir", str(out), "--use_cpu", "true"]
    return [*argv, "--per_device_train_batch_size", "4", "--num_train_epochs", "2", *LORA, *extra]


@whole_adapters
def test_a_run_from_a_checkpoint_leaves_its_adapter_and_one_from_towers_none(folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path / "first", "--adaptive_tokens", "input", *LORA))
    assert not (tmp_path / "first" / "adapter").exists()  # its base, two towers and random parts, is nowhere
    train_hf.main(go_on(folder, tmp_path / "first", tmp_path / "second"))
    expected = logits(MPCLIPModel.from_pretrained(tmp_path / "second"))
    assert (expected - logits(MPCLIPModel.from_pretrained(tmp_path / "first"))).abs().max() > 1e-2
    adapter = tmp_path / "second" / "adapter"
    torch.testing.assert_close(logits(AutoModel.from_pretrained(adapter)), expected, atol=1e-4, rtol=1e-4)


def test_a_pushed_adapter_goes_onto_its_base_at_the_hub(hub, folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path / "base", "--adaptive_tokens", "input"))
    MPCLIPModel.from_pretrained(tmp_path / "base").push_to_hub("me/base")
    push = ("--push_to_hub", "true", "--hub_model_id", "me/model", "--hub_strategy", "end")
    processor = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")
    from huggingface_hub import HfApi

    for file in processor:
        HfApi().upload_file(path_or_fileobj=tmp_path / "base" / file, path_in_repo=file, repo_id="me/base")
    train_hf.main(go_on(folder, "me/base", tmp_path / "out", *push))
    files = hub.repos["me/model"].files()
    assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == "me/base"
    expected = logits(MPCLIPModel.from_pretrained("me/model"))
    base = AutoModel.from_pretrained("me/base", trust_remote_code=True)
    found = PeftModel.from_pretrained(base, "me/model", subfolder="adapter")
    torch.testing.assert_close(logits(found), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_on_a_folder_of_this_machine_is_not_pushed(hub, folder, tmp_path):
    train_hf.main(arguments(folder, tmp_path / "base", "--adaptive_tokens", "input"))
    push = ("--push_to_hub", "true", "--hub_model_id", "me/model", "--hub_strategy", "end")
    train_hf.main(go_on(folder, tmp_path / "base", tmp_path / "out", *push))
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    files = hub.repos["me/model"].files()
    assert "model.safetensors" in files and not [name for name in files if name.startswith("adapter")]
