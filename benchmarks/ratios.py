"""Running times of the text side as ratios: one masked pass against other ways to the same states, and against less work."""

from functools import partial
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from benchmarks.contenders import Contenders, K, check_same
from benchmarks.llm_shapes import REAL
from benchmarks.timing import Clock
from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from mpclip.data.backbones import prepare_backbone
from mpclip.training.state_cache import cache_text_states

# As in configs/flickr8k_smollm2.yaml: six prompts of 13 tokens as a tree, where the paper's have 37.
SHORT_TEMPLATES = [f"The [APT-{i}]:" for i in range(1, K + 1)]
# Templates of our model (None: the paper's), and a prompt for the plain model with as many tokens as one of them.
WORDINGS = {
    "encode_vs_single_prompt": (None, " The aspect of this image means:"),
    "encode_vs_single_prompt_short": (SHORT_TEMPLATES, " The aspect:"),
}


@torch.inference_mode()
def passes(bench: Contenders, clock: Clock, texts: list[str], size: int, names: tuple[str, ...]) -> dict:
    """Time separate passes and prefix caching against one masked pass, each with its fastest attention implementation.

    Args:
        bench: the LLM.
        clock: times the calls.
        texts: at least `size` texts.
        size: texts in a batch.
        names: attention implementations to choose from.

    Returns:
        Three ratios as from `Clock.ratio`; `implementations`, the one that the masked and the plain model used; and
        `padded_text_tokens` and `mean_text_tokens`, tokens per text with and without padding.

    Raises:
        RuntimeError: the contenders compute different states, so that their times cannot be compared.
    """
    ids, mask = bench.batch(texts[:size])  # (B, N)
    tree, both = bench.tree(), bench.tree(negated=True)
    few = ids[: max(size // 4, 1)], mask[: max(size // 4, 1)]
    expected = bench.separate(*few, both)  # (B / 4, 2K, H)
    check_same(bench.masked(*few, both), expected)
    check_same(bench.prefix_cached(*few, tree), expected[:, :K])
    used = {
        "masked": clock.best_implementation(bench.prompted, lambda: bench.masked(*few, tree), names),
        "plain": clock.best_implementation(bench.plain, lambda: bench.separate(*few, tree), names),
    }
    one_pass = lambda: bench.masked(ids, mask, tree)  # noqa: E731
    return {
        "implementations": used,
        "padded_text_tokens": ids.shape[1],
        "mean_text_tokens": float(mask.sum() / len(mask)),
        "masked_vs_separate": clock.ratio(lambda: bench.separate(ids, mask, tree), one_pass),
        "masked_vs_separate_negation": clock.ratio(
            lambda: bench.separate(ids, mask, both), lambda: bench.masked(ids, mask, both)
        ),
        "masked_vs_prefix_cache": clock.ratio(lambda: bench.prefix_cached(ids, mask, tree), one_pass),
    }


def encode(bench: Contenders, clock: Clock, texts: list[str], folder: Path, wordings: dict) -> dict:
    """Time sentence-transformers' `encode` of our model with K prompts against that of the plain LLM with one prompt.

    Args:
        bench: gives dtype, device and attention implementations.
        clock: times the calls.
        texts: the texts to encode, in sentence-transformers' own batches.
        folder: where our models are saved.
        wordings: some of `WORDINGS`.

    Returns:
        Name of the wording -> ratio as from `Clock.ratio`.
    """
    kwargs = {"dtype": bench.dtype, "attn_implementation": bench.plain.config._attn_implementation}
    # Take the texts as they are. By default they are wrapped in this chat model's dialogue, about three times as many tokens.
    plain_text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    transformer = Transformer(
        str(prepare_backbone(REAL)), model_kwargs=kwargs, modality_config=plain_text, module_output_name="token_embeddings"
    )
    transformer.tokenizer.pad_token = transformer.tokenizer.pad_token or transformer.tokenizer.eos_token
    single = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), "lasttoken")], device=bench.device
    )
    kwargs["attn_implementation"] = {"text_config": bench.prompted.config._attn_implementation}
    ratios = {}
    for name, (templates, prompt) in wordings.items():
        for part in retrieval_model(templates):
            part.save_pretrained(folder / name)
        ours = SentenceTransformer(
            str(folder / name), trust_remote_code=True, device=bench.device, model_kwargs={**kwargs, "dtype": bench.dtype}
        )
        prompted = [text + prompt for text in texts]
        ratios[name] = clock.ratio(partial(ours.encode, texts), partial(single.encode, prompted))
    return ratios


def retrieval_model(templates: list[str] | None = None) -> tuple[MPCLIPModel, MPCLIPProcessor]:
    """The real LLM as a model of K prompts with random projections, and its processor.

    Args:
        templates: of the prompts; None takes the paper's.
    """
    towers = str(prepare_backbone(REAL)), str(prepare_backbone("efficientnet-lite0"))
    model = MPCLIPModel.from_pretrained_towers(
        *towers, num_prompts=K, templates=templates, projection_dim=768, adaptive_tokens="boundary", boundary_layer=29
    )
    config = model.config
    return model, MPCLIPProcessor.from_pretrained_towers(*towers, [*config.templates, *config.negated_templates])


def training_step(bench: Contenders, clock: Clock, texts: list[str], size: int, folder: Path) -> dict:
    """Time a training step of the text side from captions against one from cached states.

    Only the last layer and what lies above it are trained. A step ends with updated weights; it computes in `bench.dtype` by
    autocast.

    Args:
        bench: gives dtype and device.
        clock: times the steps.
        texts: at least `size` texts.
        size: texts in a batch.
        folder: where the states are cached.

    Returns:
        The ratio, as from `Clock.ratio`.
    """
    model, processor = retrieval_model()
    model.requires_grad_(False)
    trained = [*model.text_model.layers[-1].parameters(), *model.text_model.norm.parameters(), model.text_projection.weight]
    trained.append(model.text_model.boundary_embedding.weight)
    for parameter in trained:
        parameter.requires_grad_(True)
    model.to(bench.device).train()
    texts = texts[:size]
    states = cache_text_states(model, processor.tokenizer, texts, folder / "cache", device=bench.device)
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    direction = torch.randn(768, device=bench.device)  # (D,)

    def step(inputs: dict) -> None:
        inputs = {name: value.to(bench.device) for name, value in inputs.items()}
        with torch.autocast(bench.device.split(":")[0], bench.dtype, enabled=bench.dtype != torch.float32):
            embeds = model.get_text_features(**inputs).pooler_output  # (B, D)
        torch.nn.functional.normalize(embeds.float(), dim=-1).matmul(direction).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    live = lambda: step(processor(text=texts, truncation=True))  # noqa: E731
    return clock.ratio(live, lambda: step(states.batch(texts)))
