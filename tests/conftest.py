"""Tiny random towers, tokenizers and pictures: every unit test is offline and takes seconds."""

import gc
import json
import multiprocessing
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_standin import HubStandIn
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    EfficientNetConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    ViTConfig,
)

from modeling_mpclip import MPCLIPConfig, MPCLIPModel, MPCLIPProcessor
from mpclip.data.backbones import prepare_backbone

CORPUS = [
    "The cat sits on the red mat of this image, and the dog does NOT mean: harm.",
    "A small boat means: the aspect of a large picture without any people in it.",
]
WINDOW = 6  # shorter than the test texts with their prompts, so that the sliding layers really slide

# initializer_range 0.5 makes attention sharp: a wrong mask shows as a difference of order 1.
_TEXT = dict(
    vocab_size=384,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.5,
    pad_token_id=0,
)
TEXT_CONFIGS = {
    "llama": lambda: LlamaConfig(**_TEXT),
    "gemma": lambda: GemmaConfig(**_TEXT, head_dim=8),
    "gemma2": lambda: Gemma2Config(**_TEXT, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(
        **_TEXT,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2": lambda: Qwen2Config(**_TEXT, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**_TEXT, head_dim=8),
    "mistral": lambda: MistralConfig(**_TEXT, head_dim=8, sliding_window=WINDOW),
}
_VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
VISION_CONFIGS = {
    "vit": lambda: ViTConfig(**_VISION),
    "siglip": lambda: SiglipVisionConfig(**_VISION),
    "clip": lambda: CLIPVisionConfig(**_VISION),
    "dinov2": lambda: Dinov2Config(**{**_VISION, "mlp_ratio": 2}),
    "efficientnet": lambda: EfficientNetConfig(
        image_size=64,
        width_coefficient=0.25,
        depth_coefficient=0.1,
        hidden_dim=320,
        in_channels=[32, 16],
        out_channels=[16, 24],
        kernel_sizes=[3, 3],
        strides=[1, 2],
        num_block_repeats=[1, 1],
        expand_ratios=[1, 6],
        depthwise_padding=[],
    ),
}


def pytest_collection_finish():
    """What the imports have made lives as long as the tests; the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


def make_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens, with Gemma's habit of a leading BOS if wanted."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=["<pad>", "<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="right"
    )


def make_model(text: str = "llama", vision: str = "vit", tokenizer=None, **kwargs) -> MPCLIPModel:
    """A tiny random model in evaluation mode; `kwargs` are the config's, `attn_implementation` the text tower's.

    Its adaptive tokens are learned at the input, unless `kwargs` say otherwise; `layers` keeps the first of the LLM's three.
    """
    implementation = kwargs.pop("attn_implementation", "eager" if text == "gemma2" else "sdpa")
    text_config = TEXT_CONFIGS[text]()
    if layers := kwargs.pop("layers", None):
        text_config.num_hidden_layers = layers
        if getattr(text_config, "layer_types", None):
            text_config.layer_types = text_config.layer_types[:layers]
    defaults = dict(num_prompts=3, projection_dim=12, pooling_width=16, pooling_heads=2, adaptive_tokens="input")
    config = MPCLIPConfig(text_config, VISION_CONFIGS[vision](), **{**defaults, **kwargs})
    config.compile_prompts(tokenizer or make_tokenizer())
    config.text_config._attn_implementation = implementation
    torch.manual_seed(0)
    return MPCLIPModel(config).eval()


def enable_checkpointing(model: MPCLIPModel) -> None:
    """By the name of transformers 5.23, or of 5.17."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def make_processor(tokenizer) -> MPCLIPProcessor:
    """For the tiny ViT."""
    image_processor = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    return MPCLIPProcessor(image_processor, tokenizer)


def save_towers(folder, text: str = "llama", vision: str = "vit") -> None:
    """Two tiny random towers as checkpoints, folder/text and folder/vision, to join."""
    torch.manual_seed(1)
    AutoModel.from_config(TEXT_CONFIGS[text]()).save_pretrained(folder / "text")
    make_tokenizer().save_pretrained(folder / "text")
    AutoModel.from_config(VISION_CONFIGS[vision]()).save_pretrained(folder / "vision")
    make_processor(make_tokenizer()).image_processor.save_pretrained(folder / "vision")


def pretrained(name: str) -> Path:
    """The folder of a packaged backbone, in the ordinary cache; skips where its package is not installed."""
    try:
        return prepare_backbone(name)
    except ImportError as error:
        if "needs the package" not in str(error):
            raise  # a fault of ours
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def embeddings_of_tests(tmp_path_factory):
    """`python -m eval` keeps embeddings here and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.options.embeddings_folder", lambda: tmp_path_factory.getbasetemp() / "embeddings")
        yield


@pytest.fixture
def tokenizer():
    return make_tokenizer()


# What train_hf.py trains on in tests.
COLORS = ["red", "green", "blue", "yellow", "black", "white", "pink", "brown", "gray", "orange", "purple", "cyan"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two tower checkpoints and a data set of coloured squares with two or three captions each."""
    root = tmp_path_factory.mktemp("training")
    save_towers(root)
    (root / "data").mkdir()
    with open(root / "data" / "metadata.jsonl", "w") as file:
        for i, color in enumerate(COLORS):
            Image.new("RGB", (40, 40), color).save(root / "data" / f"{i}.png")
            captions = [f"a {color} square", f"{color} all over", f"the color {color}"][: 2 + i % 2]
            split = "validation" if i >= 8 else "train"
            row = {"file_name": f"{i}.png", "split": split, "captions": captions, "half": i % 4}
            file.write(json.dumps(row) + "\n")
    return root


@pytest.fixture
def datasets_cache(tmp_path_factory, monkeypatch):
    """A fresh cache of `datasets`: what it opens is prepared anew, and nothing is left in the user's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def arguments(folder, out, *extra: str) -> list[str]:
    """The command line of a run on `folder`, written to `out`."""
    options = {
        "text_model": folder / "text",
        "vision_model": folder / "vision",
        "dataset": folder / "data",
        "output_dir": out,
        "cache_dir": out / "cache",
        "num_prompts": 3,
        "projection_dim": 12,
        "pooling_width": 16,
        "pooling_heads": 2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "use_cpu": "true",
        "precision": "float32",  # on every machine
        "disable_tqdm": "true",
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))] + list(extra)


@pytest.fixture
def prepared_processes(monkeypatch):
    """Processes that are spawned through `multiprocessing` find the large libraries already imported.

    As with "spawn", what they are given is pickled and they know nothing else of this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sentence_transformers", "mpclip.training.run"])
    monkeypatch.setattr("multiprocessing.get_context", lambda method: context)
    monkeypatch.setattr("torch.multiprocessing.get_context", lambda method: context)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in as this process's Hub, with my token."""
    tokens = {"token-of-mine": "me", "token-of-hers": "her", "token-to-read": "me"}
    with HubStandIn(tokens, readers=("token-to-read",)) as hub:
        for name, value in (hub.environment("token-of-mine") | {"HF_HOME": str(tmp_path / "home")}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the suite runs offline, but for this server
        # Read from the environment when huggingface_hub was imported.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        yield hub
