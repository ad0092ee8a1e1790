"""The slow, plain path that the text tower is compared with: each text with each prompt alone, through the untouched LLM."""

import torch
from transformers import AutoModel


def path(tree, node: int) -> list[int]:
    """Token ids from the root of a prompt tree to a node."""
    ids = []
    while node >= 0:
        ids.append(tree.token_ids[node])
        node = tree.parents[node]
    return ids[::-1]


def separate_passes(model, llm, tokenizer, texts: list[str], negated: bool) -> torch.Tensor:
    """(B, R, H): the slow, plain path. Each text with each prompt alone, unpadded, default causal attention."""
    tree = model.prompt_tree(negated)
    rows = []
    for text in texts:
        text_ids = tokenizer(text)["input_ids"]
        for node in (*tree.readouts, *tree.negated_readouts):
            embeds = model.text_model.embed(torch.tensor([text_ids + path(tree, node)]))
            rows.append(llm(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, -1])
    return torch.stack(rows).view(len(texts), -1, rows[0].shape[-1])


def plain_llm(model):
    """The library's own model with the same parameters (shared, so that gradients meet in one place)."""
    config = model.config.text_config
    llm = AutoModel.from_config(config, attn_implementation="eager" if config.model_type == "gemma2" else "sdpa").eval()
    shared = dict(model.text_model.named_parameters())
    for name, _ in list(llm.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        setattr(llm.get_submodule(parent), leaf, shared[name])
    return llm


def gradients(model, readouts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss that weighs every number differently."""
    weights = torch.randn(readouts.shape, generator=torch.Generator().manual_seed(7))
    model.zero_grad()
    (readouts * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.text_model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        scale = expected.abs().max().clamp(min=1e-3)
        assert ((ours[name] - expected).abs().max() / scale) < 1e-4, name
