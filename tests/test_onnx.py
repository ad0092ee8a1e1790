"""onnxruntime gives torch's embeddings, whatever the family, the batch, the length and the padding."""

import json

import numpy as np
import pytest
import torch
from conftest import make_model, make_processor, make_tokenizer, pretrained
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel, AutoTokenizer

from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from mpclip.export import onnx as export_onnx
from mpclip.export.__main__ import main as export_main
from mpclip.export.text import export_text

onnxruntime = pytest.importorskip("onnxruntime", reason="the graphs are run by it: pip install onnx onnxscript onnxruntime")
pytest.importorskip("onnxscript", reason="torch exports by it: pip install onnx onnxscript onnxruntime")

# Everything that a graph may hold: soft caps (Gemma 2); windows, two rotary bases, norms of queries and keys, texts that are
# read both ways (Gemma 3); biases (Qwen2); scaled embeddings (Gemma); and every way to read a text.
MODELS = {
    "llama": dict(loss="sigmoid", negated_templates=[]),
    "gemma": dict(text_pooling="last_token", num_prompts=1, layers=1),
    "gemma2": dict(),
    "gemma3": dict(adaptive_tokens="boundary", boundary_layer=0, text_attention="bidirectional"),
    "qwen2": dict(text_pooling="mean", num_prompts=1, layers=1),
    "mistral": dict(text_pooling="attention", num_prompts=1, pooling_queries=3, words=True, layers=1),
}


def save(folder, text: str = "llama", vision: str = "vit", **kwargs) -> MPCLIPModel:
    tokenizer = make_tokenizer(bos=text.startswith("gemma"))
    model = make_model(text, vision, tokenizer, **{"layers": 2, **kwargs})  # a lower layer and a last one are all kinds
    model.save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A model, its folder and the session of its exported text tower."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save(folder, request.param, **MODELS[request.param])
    export_main(["onnx", str(folder), str(folder / "text.onnx")])
    return model, folder, onnxruntime.InferenceSession(folder / "text.onnx")


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_embeddings_are_those_of_torch(exported, side):
    model, _, session = exported
    rng = torch.Generator().manual_seed(1)
    for B in (1, 3):
        for N in (1, 5, 17):
            ids = torch.randint(3, 300, (B, N), generator=rng)
            mask = (torch.arange(N) < torch.tensor([N, N // 2, 0])[:B, None]).long()  # (B, N), the third text is empty
            mask = mask if side == "right" else mask.flip(1)
            (ours,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            torch.testing.assert_close(torch.from_numpy(ours), model(ids, mask).text_embeds, atol=1e-4, rtol=0)
            read = mask.numpy().any(axis=1) | (model.config.text_pooling == "prompts")  # a pooling of no token is zero
            assert np.allclose(np.linalg.norm(ours, axis=1)[read], 1, atol=1e-5)


@torch.no_grad()
def test_a_tokenizer_is_all_that_a_text_needs(exported):
    """As the manual on top of mpclip/export/onnx.py says."""
    model, folder, session = exported
    texts = ["a small cat left of a big dog", "a red car"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    batch = tokenizer.encode_batch(texts)
    inputs = {"input_ids": [text.ids for text in batch], "attention_mask": [text.attention_mask for text in batch]}
    (ours,) = session.run(None, {name: np.array(rows, dtype=np.int64) for name, rows in inputs.items()})
    processor = MPCLIPProcessor.from_pretrained(folder)
    torch.testing.assert_close(torch.from_numpy(ours), model(**processor(text=texts)).text_embeds, atol=1e-4, rtol=0)


def test_the_graph_says_what_it_is(exported):
    model, folder, session = exported
    said = session.get_modelmeta().custom_metadata_map
    assert said["checkpoint"] == folder.name
    assert (said["num_prompts"], said["projection_dim"]) == (str(model.config.num_prompts), "12")
    assert json.loads(said["templates"]) == model.config.templates
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("input_ids", ["batch", "length"]),
        ("attention_mask", ["batch", "length"]),
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("text_embeds", ["batch", 12])]


@pytest.mark.parametrize("vision", ["vit", "efficientnet"])
def test_the_image_tower_keeps_its_weights_beside_a_large_graph(vision, tmp_path, monkeypatch, capsys):
    model = save(tmp_path, "llama", vision)
    monkeypatch.setattr(export_onnx, "ONE_FILE_BYTES", 1000)
    export_main(["onnx", str(tmp_path), str(tmp_path / "image.onnx"), "--tower", "image"])
    graph, weights = tmp_path / "image.onnx", tmp_path / "image.onnx.data"
    assert weights.stat().st_size > 10_000 and not (tmp_path / "image.onnx.part").exists()
    assert "largest difference" in capsys.readouterr().out
    pixels = torch.randn(3, 3, 32, 32)
    (ours,) = onnxruntime.InferenceSession(graph).run(None, {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(ours), model(pixel_values=pixels).image_embeds, atol=1e-4, rtol=0)


class Unfaithful(nn.Module):
    """A tower that is another one while it is exported."""

    axes, output = {"x": {0: "batch"}}, "y"

    def __init__(self, model, checkpoint):
        super().__init__()

    def forward(self, x):
        return x + 1e-3 if torch.compiler.is_compiling() else x

    def examples(self):
        return [(torch.ones(2, 4),)]


def test_a_graph_that_differs_from_torch_is_refused_and_replaces_nothing(tmp_path, monkeypatch):
    save(tmp_path)
    (tmp_path / "text.onnx").write_text("the former one")
    monkeypatch.setitem(export_onnx.TOWERS, "text", Unfaithful)
    with pytest.raises(RuntimeError, match=r"differ by 1\.0e-03 .* left in .*text\.onnx\.part"):
        export_onnx.export(str(tmp_path), tmp_path / "text.onnx")
    assert (tmp_path / "text.onnx").read_text() == "the former one"
    assert (tmp_path / "text.onnx.part" / "text.onnx").exists()


def test_a_quantised_checkpoint_is_refused(tmp_path):
    pytest.importorskip("torchao", reason="int8 weights need torchao")
    from mpclip.export.int8 import quantize

    save(tmp_path / "plain")
    quantize(str(tmp_path / "plain"), tmp_path / "int8")
    with pytest.raises(ValueError, match="holds quantised weights"):
        export_onnx.export(str(tmp_path / "int8"), tmp_path / "text.onnx")


def test_a_text_only_checkpoint_has_a_text_tower_alone(tmp_path, capsys):
    save(tmp_path / "whole", text_pooling="mean", num_prompts=1, layers=1)
    export_text(str(tmp_path / "whole"), tmp_path / "text")
    assert export_onnx.export(str(tmp_path / "text"), tmp_path / "text.onnx") < 1e-4
    for folder, message in (("text", "is a text-only checkpoint"), ("nowhere", "nowhere")):
        with pytest.raises(SystemExit):
            export_main(["onnx", str(tmp_path / folder), str(tmp_path / "image.onnx"), "--tower", "image"])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "image.onnx").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_smollm2_in_onnxruntime(tmp_path, monkeypatch):
    """Real weights beside the graph, and in int8. The first two layers are exported in seconds, all thirty in minutes."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    whole, vision = (str(pretrained(name)) for name in ("smollm2-135m", "efficientnet-lite0"))
    AutoModel.from_pretrained(whole, num_hidden_layers=2).save_pretrained(tmp_path / "two")
    AutoTokenizer.from_pretrained(whole).save_pretrained(tmp_path / "two")
    towers = [str(tmp_path / "two"), vision]
    model = MPCLIPModel.from_pretrained_towers(*towers, num_prompts=6, projection_dim=768).eval()
    processor = MPCLIPProcessor.from_pretrained_towers(*towers, model.config.templates + model.config.negated_templates)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(export_onnx, "ONE_FILE_BYTES", 2**20)
    assert export_onnx.export(str(tmp_path), tmp_path / "text.onnx") < 1e-4
    assert (tmp_path / "text.onnx").stat().st_size < 2**20 < 1e8 < (tmp_path / "text.onnx.data").stat().st_size
    batch = processor(text=["A dog runs across a green field with a stick in its mouth.", "Two boats", ""])
    inputs = {name: tensor.numpy() for name, tensor in batch.items()}
    (ours,) = onnxruntime.InferenceSession(tmp_path / "text.onnx").run(None, inputs)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(ours), model(**batch).text_embeds, atol=1e-4, rtol=0)

    # As the manual on top of mpclip/export/onnx.py says.
    graph = MatMulNBitsQuantizer(str(tmp_path / "text.onnx"), bits=8, block_size=64, is_symmetric=True, accuracy_level=4)
    graph.process()
    graph.model.save_model_to_file(str(tmp_path / "text_int8.onnx"), use_external_data_format=False)
    (int8,) = onnxruntime.InferenceSession(tmp_path / "text_int8.onnx").run(None, inputs)
    cosine = (ours * int8).sum(axis=1)
    assert cosine.min() > 0.999 and not np.array_equal(ours, int8), cosine
