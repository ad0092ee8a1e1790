"""The whole model: outputs, losses, aspect weights, towers, and everything a transformers model does on disk."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXT_CONFIGS, VISION_CONFIGS, enable_checkpointing, make_model, make_processor, make_tokenizer
from PIL import Image
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPTextConfig, ViTModel

from modeling_mpclip import MPCLIPModel, MPCLIPProcessor, default_templates
from modeling_mpclip.contrastive_losses import diversity_loss, softmax_contrastive_loss, softmax_negation_loss

TEXTS = ["The cat sits.", "A small boat", ""]


@pytest.fixture
def batch(tokenizer):
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
    }


def test_output_names_every_intermediate(tokenizer, batch):
    model = make_model(tokenizer=tokenizer, diversity_weight=0.3, negation_weight=0.7)
    output = model(**batch, return_loss=True)
    assert all(value is not None for value in (output[name] for name in output.__dataclass_fields__))
    torch.testing.assert_close(output.text_embeds, F.normalize(output.text_prompt_embeds.flatten(1), dim=-1))
    torch.testing.assert_close(output.image_embeds, F.normalize(output.image_prompt_embeds.flatten(1), dim=-1))
    scale = output.logits_per_image / (output.image_embeds @ output.text_embeds.T)
    torch.testing.assert_close(scale, torch.full_like(scale, 1 / 0.07), rtol=1e-3, atol=1e-3)
    negated = scale[0, 0] * (output.image_embeds * output.negated_text_embeds).sum(-1)
    torch.testing.assert_close(output.contrastive_loss, softmax_contrastive_loss(output.logits_per_image))
    torch.testing.assert_close(output.diversity_loss, diversity_loss(output.text_prompt_embeds))
    torch.testing.assert_close(output.negation_loss, softmax_negation_loss(output.logits_per_image, negated))
    total = output.contrastive_loss + 0.3 * output.diversity_loss + 0.7 * output.negation_loss
    torch.testing.assert_close(output.loss, total)
    output.loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("negation_form", ["contrastive", "hinge"])
def test_sigmoid_loss_has_a_learned_bias(tokenizer, batch, negation_form):
    model = make_model(tokenizer=tokenizer, loss="sigmoid", negation_weight=1.0, negation_form=negation_form)
    output = model(**batch, return_loss=True)
    assert model.logit_scale.bias.item() == -10
    expected = 10 * (output.image_embeds @ output.text_embeds.T) - 10
    torch.testing.assert_close(output.logits_per_image, expected, atol=1e-4, rtol=1e-4)
    output.loss.backward()
    assert model.logit_scale.bias.grad.abs() > 0 and model.logit_scale.log_scale.grad.abs() > 0


def test_similarity_is_the_sum_over_weighted_segments(tokenizer, batch):
    model = make_model(tokenizer=tokenizer)
    weights = [1.25, 0.9, 0.5]
    plain, weighted = model(**batch), model(**batch, aspect_weights=weights)
    segments = lambda x: x.unflatten(-1, (3, 4))  # noqa: E731
    by_hand = torch.einsum("k,ikd,tkd->it", torch.tensor(weights), segments(plain.image_embeds), segments(plain.text_embeds))
    torch.testing.assert_close(weighted.logits_per_image, by_hand / 0.07, atol=1e-4, rtol=1e-4)
    # get_text_features also normalises first and weights after
    features = model.get_text_features(batch["input_ids"], batch["attention_mask"], aspect_weights=weights).pooler_output
    torch.testing.assert_close(features, weighted.text_embeds)
    with pytest.raises(ValueError, match="one number for each of the 3 prompts"):
        model(**batch, aspect_weights=[1.0])
    for embed in (model, model.get_text_features):
        with pytest.raises(ValueError, match=r"aspect_weights holds \[1.0, nan, inf\]; expected finite numbers"):
            embed(batch["input_ids"], aspect_weights=torch.tensor([1.0, float("nan"), float("inf")]))


def test_one_side_alone(tokenizer, batch):
    model = make_model(tokenizer=tokenizer)
    both = model(**batch)
    text = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    image = model(pixel_values=batch["pixel_values"])
    torch.testing.assert_close(text.text_embeds, both.text_embeds)
    torch.testing.assert_close(image.image_embeds, both.image_embeds)
    assert text.logits_per_image is None and image.text_embeds is None
    clip = model(input_ids=batch["input_ids"], pixel_values_videos=torch.randn(3, 2, 3, 32, 32), return_loss=True)
    assert clip.loss.isfinite()
    as_tuple = model(**batch, return_loss=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == ()  # the loss comes first, as Trainer expects
    assert text[0] is text.text_embeds and image[0] is image.image_embeds


def test_refusals(tokenizer, batch):
    model = make_model(tokenizer=tokenizer)
    with pytest.raises(ValueError, match="Nothing to embed"):
        model()
    with pytest.raises(ValueError, match="needs texts and images"):
        model(pixel_values=batch["pixel_values"], return_loss=True)
    with pytest.raises(ValueError, match="3 texts and 2 images"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:2]}, return_loss=True)
    with pytest.raises(ValueError, match="not both"):
        model(pixel_values=batch["pixel_values"], pixel_values_videos=torch.randn(1, 1, 3, 32, 32))
    model.config.prompt_tree = None
    with pytest.raises(ValueError, match="prompts are not compiled"):
        model(input_ids=batch["input_ids"])


def test_adaptive_tokens_start_distinct(tmp_path):
    model, processor = towers(tmp_path)
    rows = F.normalize(model.text_model.adaptive_embedding.weight.detach(), dim=-1)
    cosine = rows @ rows.T - torch.eye(len(rows))
    assert cosine.max() < 0.9
    prompts = model.get_text_features(**processor(text=["The cat"])).prompt_embeds
    assert (prompts[0, 0] - prompts[0, 1]).abs().max() > 1e-2


def towers(tmp_path, text="llama", vision="vit", **kwargs):
    """A model from two checkpoints on disk."""
    torch.manual_seed(1)
    AutoModel.from_config(TEXT_CONFIGS[text]()).save_pretrained(tmp_path / "text")
    make_tokenizer().save_pretrained(tmp_path / "text")
    AutoModel.from_config(VISION_CONFIGS[vision]()).save_pretrained(tmp_path / "vision")
    make_processor(make_tokenizer()).image_processor.save_pretrained(tmp_path / "vision")
    kwargs = {"num_prompts": 2, "projection_dim": 8, "pooling_width": 16, "pooling_heads": 2, **kwargs}
    model = MPCLIPModel.from_pretrained_towers(tmp_path / "text", tmp_path / "vision", **kwargs)
    processor = MPCLIPProcessor.from_pretrained_towers(
        tmp_path / "text", tmp_path / "vision", default_templates(2) + default_templates(2, negated=True)
    )
    return model, processor


@pytest.mark.parametrize("text, vision", [("llama", "vit"), ("gemma", "siglip"), ("gemma3", "clip"), ("qwen3", "dinov2")])
def test_towers_keep_their_pretrained_weights(tmp_path, text, vision):
    model, processor = towers(tmp_path, text, vision)
    for tower, folder in ((model.text_model, "text"), (model.vision_model, "vision")):
        plain = AutoModel.from_pretrained(tmp_path / folder).state_dict()
        ours = tower.state_dict()
        for name in ours.keys() & plain.keys():
            torch.testing.assert_close(ours[name], plain[name], atol=0, rtol=0)
        assert ours.keys() - plain.keys() <= {"adaptive_embedding.weight", "boundary_embedding.weight"}
    assert processor.tokenizer.convert_tokens_to_ids(["[APT-1]", "[APT-2]"]) == model.config.adaptive_token_ids
    assert model(**processor(text=["The cat", ""])).text_embeds.isfinite().all()


def test_a_vision_tower_from_inside_a_dual_encoder(tmp_path):
    vision = VISION_CONFIGS["clip"]()
    text = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    clip.save_pretrained(tmp_path / "clip")
    AutoModel.from_config(TEXT_CONFIGS["llama"]()).save_pretrained(tmp_path / "text")
    make_tokenizer().save_pretrained(tmp_path / "text")
    model = MPCLIPModel.from_pretrained_towers(tmp_path / "text", tmp_path / "clip")
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.vision_tokens(pixels), clip.vision_model(pixels).last_hidden_state)


def test_an_incomplete_tower_is_refused(tmp_path):
    towers(tmp_path)
    model = AutoModel.from_pretrained(tmp_path / "text")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path / "text", state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 3 weights of PromptedLlamaModel, layers\.1\.mlp"):
        MPCLIPModel.from_pretrained_towers(tmp_path / "text", tmp_path / "vision")


def test_adaptive_init_by_words(tmp_path):
    model, processor = towers(tmp_path, adaptive_init=["cat", "red mat"])
    ids = processor.tokenizer(" red mat", add_special_tokens=False)["input_ids"]
    expected = model.text_model.embed_tokens(torch.tensor(ids)).mean(dim=0)
    torch.testing.assert_close(model.text_model.adaptive_embedding.weight[1], expected)
    with pytest.raises(ValueError, match="1 words for 2 adaptive tokens"):
        towers(tmp_path, adaptive_init=["cat"])
    assert (
        towers(tmp_path, adaptive_init=["cat", "red mat", "dog"])[0]
        .text_model.adaptive_embedding.weight[1]
        .equal(model.text_model.adaptive_embedding.weight[1])
    )


def test_a_text_model_that_is_no_decoder_is_refused():
    from transformers import BertConfig

    from modeling_mpclip.text_families import text_tower_class

    with pytest.raises(ValueError, match="not a decoder of a supported family"):
        text_tower_class(BertConfig)(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))


def test_a_shared_projection_is_every_prompts_own_when_all_are_equal(tmp_path, tokenizer, batch):
    model = make_model(tokenizer=tokenizer, shared_projection=True, negation_weight=0.5)
    plain = make_model(tokenizer=tokenizer, negation_weight=0.5)
    shared = model.text_projection.weight
    assert shared.shape == (1, *plain.text_projection.weight.shape[1:])
    states = model.state_dict() | {"text_projection.weight": shared.detach().expand(3, -1, -1).clone()}
    plain.load_state_dict(states)
    outputs = [either(**batch, return_loss=True) for either in (model, plain)]
    for name in ("text_embeds", "negated_text_embeds", "loss"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name])
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(shared.grad, plain.text_projection.weight.grad.sum(0, keepdim=True))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(MPCLIPModel.from_pretrained(tmp_path)(**batch).text_embeds, outputs[0].text_embeds)


def test_elastic_prompts_train_the_first_m_alone():
    model = make_model(elastic_prompts=True).train()
    ids, pixels = torch.randint(3, 300, (4, 5)), torch.randn(4, 3, 32, 32)
    losses = set()
    for _ in range(8):
        output = model(ids, pixel_values=pixels, return_loss=True)
        expected = {}
        for m in (1, 2):
            image, text = (
                torch.nn.functional.normalize(embeds[:, :m].flatten(1), dim=-1)
                for embeds in (output.image_prompt_embeds, output.text_prompt_embeds)
            )
            of_first = softmax_contrastive_loss(model.logit_scale(image @ text.T))
            expected[m] = (softmax_contrastive_loss(output.logits_per_image) + of_first) / 2
        drawn = [m for m, loss in expected.items() if torch.isclose(loss, output.loss)]
        assert len(drawn) == 1
        losses.update(drawn)
    assert losses == {1, 2}
    model.eval()
    output = model(ids, pixel_values=pixels, return_loss=True)
    torch.testing.assert_close(output.loss, softmax_contrastive_loss(output.logits_per_image))
    with pytest.raises(ValueError, match="there is one"):
        make_model(num_prompts=1, elastic_prompts=True)


# On disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXT_CONFIGS)
@pytest.mark.parametrize("sharded", [False, True])
def test_save_and_load_gives_equal_numbers(tmp_path, text, sharded):
    tokenizer = make_tokenizer()
    model = make_model(text, "efficientnet" if text == "llama" else "clip", tokenizer, adaptive_tokens="boundary")
    torch.nn.init.normal_(model.text_model.boundary_embedding.weight)
    model.save_pretrained(tmp_path, **({"max_shard_size": "20KB"} if sharded else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    loaded, info = MPCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, atol=0, rtol=0)
    ids = torch.tensor([tokenizer("The cat")["input_ids"]])
    size = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(ids, pixel_values=pixels).logits_per_image, model(ids, pixel_values=pixels).logits_per_image
        )


def test_dtype_device_map_and_attention_per_tower(tmp_path, tokenizer, batch):
    model = make_model(tokenizer=tokenizer)
    model.save_pretrained(tmp_path)
    half = MPCLIPModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.text_model.dtype == half.vision_model.dtype == torch.bfloat16
    assert half.logit_scale.log_scale.dtype == torch.float32  # small steps of the scale would be lost
    similarity = F.cosine_similarity(half(**batch).text_embeds, model(**batch).text_embeds)
    assert similarity.min() > 0.98 and half(**batch).text_embeds.dtype == torch.float32
    mixed = MPCLIPModel.from_pretrained(tmp_path, attn_implementation={"text_config": "eager", "vision_config": "sdpa"})
    assert mixed.text_model.config._attn_implementation == "eager"
    assert mixed.vision_model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(mixed(**batch).logits_per_image, model(**batch).logits_per_image, atol=1e-4, rtol=1e-4)
    mapped = MPCLIPModel.from_pretrained(tmp_path, device_map="auto")
    torch.testing.assert_close(mapped(**batch).logits_per_image, model(**batch).logits_per_image)


def test_weights_offloaded_to_disk(tmp_path, tokenizer, batch):
    model = make_model(tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "model")
    device_map = {name: "cpu" for name, _ in model.named_children() if name != "text_model"}
    device_map |= {f"text_model.{name}": "cpu" for name, _ in model.text_model.named_children() if name != "layers"}
    device_map |= {"text_model.layers.0": "cpu", "text_model.layers.1": "cpu", "text_model.layers.2": "disk"}
    loaded = MPCLIPModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    assert loaded.text_model.layers[2].mlp.up_proj.weight.device.type == "meta"
    torch.testing.assert_close(loaded(**batch).logits_per_image, model(**batch).logits_per_image)


def test_built_on_the_meta_device(tokenizer):
    with torch.device("meta"):
        model = MPCLIPModel(make_model(tokenizer=tokenizer).config)
    assert all(p.device.type == "meta" for p in model.parameters())


def test_gradient_checkpointing_through_the_whole_model(tokenizer, batch):
    model = make_model(tokenizer=tokenizer).train()
    plain = model(**batch, return_loss=True).loss
    plain.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    enable_checkpointing(model)
    model(**batch, return_loss=True).loss.backward()
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, atol=1e-5, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("text, vision", [("llama", "vit"), ("gemma3", "siglip")])
def test_compiles_into_one_graph(text, vision):
    model = make_model(text, vision, layers=2)
    ids = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(9) < torch.tensor([[9], [6], [0]])).long()}
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calls = {
        model: {**inputs, "pixel_values": pixels, "aspect_weights": [1.0, 2.0, 0.5]},
        model.get_text_features: {**inputs, "num_prompts": 2},
        model.get_image_features: {"pixel_values": pixels},
    }
    for function, call in calls.items():
        torch.compiler.reset()
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)(**call)
        for name, value in function(**call).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-5)


def test_a_fresh_process_without_this_repository_loads_the_checkpoint(tmp_path):
    model, processor = towers(tmp_path)
    checkpoint = tmp_path / "checkpoint"
    model.eval().save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    image = Image.new("RGB", (40, 30), "red")
    inputs = processor(text=TEXTS, images=[image])
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.tolist()
    script = textwrap.dedent(f"""
        import json, sys, torch
        from PIL import Image
        from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
        folder = {str(checkpoint)!r}
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        assert config.model_type == "mpclip" and "modeling_mpclip" not in sys.modules
        inputs = processor(text={TEXTS!r}, images=[Image.new("RGB", (40, 30), "red")])
        assert inputs["input_ids"].tolist() == tokenizer({TEXTS!r}, padding=True)["input_ids"]
        with torch.no_grad():
            print(json.dumps(model(**inputs).logits_per_image.tolist()))
        model.save_pretrained("again"); processor.save_pretrained("again")
        again = AutoModel.from_pretrained("again", trust_remote_code=True)
        assert all((a == b).all() for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    """)
    # -I keeps this repository, the working folder and PYTHONPATH off the path.
    run = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert torch.allclose(torch.tensor(json.loads(run.stdout.splitlines()[-1])), torch.tensor(expected), atol=1e-5)
    assert not list(checkpoint.glob("*.bin")) and (checkpoint / "model.safetensors").exists()


def test_shipped_files_need_torch_and_transformers_alone():
    """Remote code is refused by transformers when a package it imports is missing."""
    import ast
    from pathlib import Path

    import modeling_mpclip

    for file in Path(modeling_mpclip.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text())
        tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, f"{file.name}:{node.lineno}"
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                root = name.split(".")[0]
                # transformers does not ask for what stands inside `try`. It imports numpy, and Pillow where that is installed.
                optional = {"sentence_transformers", "safetensors", "mpclip"} if id(node) in tried else set()
                through = {"numpy", "PIL"} if file.name in ("pictures.py", "picture_files.py", "video_files.py") else set()
                allowed = sys.stdlib_module_names | {"torch", "transformers"} | optional | through
                assert root in allowed, f"{file.name}:{node.lineno} imports {root}"


def test_the_vit_pooler_is_left_out():
    assert isinstance(make_model().vision_model, ViTModel) and make_model().vision_model.pooler is None
