"""Int8 weights of the LLM: which they are, how near the embeddings stay, and that they come back from disk as they were."""

import json

import pytest
import torch
from conftest import TEXT_CONFIGS, make_model, make_processor, make_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_helpers import load as load_sentences
from transformers import AutoModel

import eval.__main__
from mpclip.export.__main__ import main
from mpclip.export.int8 import LEFT_ALONE, int8_config, quantize
from mpclip.export.text import export_text

pytest.importorskip("torchao", reason="int8 weights need torchao: pip install 'torchao>=0.18'")


def save(folder, text: str = "llama", **kwargs):
    """A tiny checkpoint whose LLM is about as tame as a trained one; the towers of conftest.py are sharp on purpose."""
    model = make_model(text, **kwargs)
    with torch.no_grad():
        for layer in model.text_model.layers.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(0.3)
    model.save_pretrained(folder)
    make_processor(make_tokenizer()).save_pretrained(folder)
    return model


def batch() -> dict[str, torch.Tensor]:
    """(3, 9) texts, one of them empty."""
    ids = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([9, 6, 0])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("text", TEXT_CONFIGS)
def test_the_llm_is_int8_on_disk_and_comes_back_as_it_was(text, tmp_path):
    plain = save(tmp_path / "plain", text)
    direct = AutoModel.from_pretrained(tmp_path / "plain", trust_remote_code=True, quantization_config=int8_config())
    quantize(str(tmp_path / "plain"), tmp_path / "int8")
    loaded = AutoModel.from_pretrained(tmp_path / "int8", trust_remote_code=True)

    quantised = {name for name, weight in loaded.named_parameters() if type(weight.data) is not torch.Tensor}
    assert quantised == {
        f"{name}.weight"
        for name, module in plain.named_modules()
        if name.startswith("text_model.layers.") and isinstance(module, torch.nn.Linear)
    }
    saved = load_file(tmp_path / "int8" / "model.safetensors")  # plain tensors: an int8 weight is three
    assert all(saved[name.replace(".weight", "._weight_qdata")].dtype == torch.int8 for name in quantised)
    assert not [file for file in (tmp_path / "int8").rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    before, after = (sum(t.nbytes for t in load_file(tmp_path / f / "model.safetensors").values()) for f in ("plain", "int8"))
    numbers = sum(parameter.numel() for name, parameter in plain.named_parameters() if name in quantised)
    assert before - after > 2.8 * numbers  # of 4 bytes one stays, and 5 for each row

    expected, ours, again = (model(**batch()).text_embeds for model in (plain, direct, loaded))
    assert (expected * ours).sum(dim=1).min() > 0.99 and not torch.equal(expected, ours)
    assert torch.equal(ours, again)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(pixel_values=pixels).image_embeds, loaded(pixel_values=pixels).image_embeds)


@torch.no_grad()
def test_readout_layer_runs_on_int8_weights_as_the_whole_layer_does(tmp_path):
    save(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True, quantization_config=int8_config())
    tree, inputs = model.prompt_tree(), batch()
    readouts = model._readouts(inputs["attention_mask"], tree)
    whole = model.text_model(**inputs, tree=tree).last_hidden_state  # (B, N + T, H)
    ours = model.text_model(**inputs, tree=tree, readouts=readouts).last_hidden_state
    torch.testing.assert_close(ours, whole.gather(1, readouts[..., None].expand(-1, -1, whole.shape[-1])), atol=1e-5, rtol=1e-5)


def test_the_command_writes_a_whole_checkpoint_and_overwrites_none(tmp_path, capsys):
    save(tmp_path / "plain")
    main(["int8", str(tmp_path / "plain"), str(tmp_path / "int8")])
    assert f"written: {tmp_path / 'int8'}" in capsys.readouterr().out
    assert {"tokenizer.json", "processor_config.json", "modeling_mpclip.py"} <= {f.name for f in (tmp_path / "int8").iterdir()}
    for source, out, message in (
        ("plain", "int8", "does not exist yet"),
        ("int8", "twice", "holds quantised weights already"),
        ("nowhere", "new", "nowhere"),
    ):
        with pytest.raises(SystemExit):
            main(["int8", str(tmp_path / source), str(tmp_path / out)])
        assert message in capsys.readouterr().err


@torch.no_grad()
def test_an_int8_checkpoint_is_saved_again_also_by_sentence_transformers(tmp_path):
    save(tmp_path / "plain", vision="clip")
    load_sentences(tmp_path / "plain", prompts={"query": "find: "}).save_pretrained(str(tmp_path / "plain"))
    quantize(str(tmp_path / "plain"), tmp_path / "int8")
    first = AutoModel.from_pretrained(tmp_path / "int8", trust_remote_code=True)
    first.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    inputs = {**batch(), "pixel_values": torch.randn(2, 3, 32, 32)}
    assert torch.equal(first(**inputs).logits_per_image, again(**inputs).logits_per_image)

    sentences = load_sentences(tmp_path / "int8")
    assert sentences.prompts["query"] == "find: "
    embeds = sentences.encode(["a dog", ""])
    assert ((embeds * load_sentences(tmp_path / "plain").encode(["a dog", ""])).sum(axis=1) > 0.99).all()
    sentences.save_pretrained(str(tmp_path / "third"))
    assert (load_sentences(tmp_path / "third").encode(["a dog", ""]) == embeds).all()


@torch.no_grad()
def test_text_alone_is_exported_before_and_not_after(tmp_path):
    save(tmp_path / "plain")
    export_text(str(tmp_path / "plain"), tmp_path / "text")
    quantize(str(tmp_path / "text"), tmp_path / "text_int8")
    quantize(str(tmp_path / "plain"), tmp_path / "int8")
    whole, text = (AutoModel.from_pretrained(tmp_path / f, trust_remote_code=True) for f in ("int8", "text_int8"))
    assert torch.equal(whole(**batch()).text_embeds, text(**batch()).text_embeds)
    assert load_sentences(tmp_path / "text_int8").encode(["a dog"]).shape == (1, 12)
    with pytest.raises(ValueError, match=r"quantise the result: mpclip export int8"):
        export_text(str(tmp_path / "int8"), tmp_path / "int8_text")


def test_a_scale_that_is_not_finite_is_refused(tmp_path):
    save(tmp_path / "plain")
    quantize(str(tmp_path / "plain"), tmp_path / "int8")
    file, name = tmp_path / "int8" / "model.safetensors", "text_model.layers.1.mlp.up_proj"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    weights[f"{name}._weight_scale"][3] = float("nan")
    save_file(weights, file, metadata=metadata)
    with pytest.raises(ValueError, match=rf"NaN or infinite values in {name}\.weight"):
        AutoModel.from_pretrained(tmp_path / "int8", trust_remote_code=True)


def test_recall_of_int8_weights_is_measured_by_the_same_command(folder, tmp_path, monkeypatch, capsys):
    save(tmp_path / "plain")
    loads, load = [], AutoModel.from_pretrained
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *args, **kwargs: loads.append(kwargs) or load(*args, **kwargs))
    options = ["--model", str(tmp_path / "plain"), "--data", str(folder / "data"), "--split", "validation"]
    eval.__main__.main(["retrieval", *options, "--quantize", "int8", "--json", str(tmp_path / "int8.json")])
    result = json.loads((tmp_path / "int8.json").read_text())
    assert result["quantize"] == "int8" and result["images"] == 4 and "--quantize int8" in result["command"]
    assert loads[0]["quantization_config"].modules_to_not_convert == LEFT_ALONE
    eval.__main__.main(["retrieval", *options, "--json", str(tmp_path / "plain.json")])
    assert json.loads((tmp_path / "plain.json").read_text())["quantize"] is None and "quantization_config" not in loads[1]
