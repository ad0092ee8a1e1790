"""Ways to get the hidden state at the end of every prompt: one masked pass, K separate passes, batched prefix caching.

All three run on the weights of one LLM and give the same numbers; the last two use the library's plain model, written as
well as one of its users could write them.
"""

import inspect

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, DynamicCache, LlamaModel

from benchmarks.flops import TEXT_CONFIGS, single_prompts
from modeling_mpclip import PromptTree, compile_prompt_tree, default_templates
from modeling_mpclip.prompt_tree import add_adaptive_tokens
from modeling_mpclip.text_families import text_tower_class
from mpclip.data.backbones import prepare_backbone

K, MAX_K = 6, 16
REAL = "smollm2-135m"
# How a decoder names its key-value cache: the first since transformers 5.24.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
SHAPES = {name.lower().replace(" ", "-"): config for name, config in TEXT_CONFIGS.items() if name.lower() != REAL}


class Contenders:
    """One LLM as the library's plain model and as the prompted tower, on the same weights and device.

    Args:
        tower: `REAL`, or the name of a shape (`SHAPES`) with random weights.
        device, dtype: where and in what both run.
    """

    def __init__(self, tower: str, device: str, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        folder = prepare_backbone(REAL)  # for its tokenizer in every case
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        ids = tuple(add_adaptive_tokens(self.tokenizer, default_templates(MAX_K)))
        if tower == REAL:
            config = AutoConfig.from_pretrained(folder)
            cls = text_tower_class(type(config))
            self.prompted = cls.from_pretrained(folder, adaptive_token_ids=ids, dtype=dtype).to(device)
            self.plain = AutoModel.from_pretrained(folder, dtype=dtype).to(device)
        else:
            config = SHAPES[tower]()
            with torch.device(device):
                self.prompted = text_tower_class(type(config))(config, adaptive_token_ids=ids).to(dtype)
            self.plain = AutoModel.from_config(config, dtype=dtype).to(device)
            self.plain.load_state_dict(self.prompted.state_dict(), strict=False)
        for model in (self.prompted, self.plain):
            model.eval().requires_grad_(False)
        # A user of the plain model gives the [APT-i] rows of the embedding matrix.
        rows = torch.cat([self.plain.embed_tokens.weight[: ids[0]], self.prompted.adaptive_embedding.weight])
        self.plain.embed_tokens.weight = torch.nn.Parameter(rows, requires_grad=False)

    def tree(self, num_prompts: int = K, negated: bool = False) -> PromptTree:
        negative = default_templates(num_prompts, negated=True) if negated else []
        return compile_prompt_tree(self.tokenizer, default_templates(num_prompts), negative)

    def batch(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N) ids and mask, padded on the left."""
        batch = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        return batch["input_ids"], batch["attention_mask"]

    # The contenders: each gives (B, R, H), the final hidden state at the end of every prompt.

    def masked(self, ids: torch.Tensor, mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
        nodes = torch.tensor([*tree.readouts, *tree.negated_readouts], device=ids.device)
        readouts = (ids.shape[1] + nodes).expand(len(ids), -1)  # (B, R)
        return self.prompted(ids, mask, tree=tree, readouts=readouts).last_hidden_state

    def separate(self, ids: torch.Tensor, mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
        states = []
        for one in single_prompts(tree):
            prompt = torch.tensor(one.token_ids, device=ids.device).expand(len(ids), -1)  # (B, P)
            longer = torch.cat([mask, torch.ones_like(prompt)], dim=1)  # (B, N + P)
            positions = (longer.cumsum(dim=1) - 1).clamp(min=0)
            output = self.plain(torch.cat([ids, prompt], dim=1), longer, positions, use_cache=False)
            states.append(output.last_hidden_state[:, -1])
        return torch.stack(states, dim=1)

    def prefix_cached(self, ids: torch.Tensor, mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
        """For prompts of equal length, such as the K positive ones: a batch of B * K continuations."""
        B, N = ids.shape
        prompts = torch.tensor([one.token_ids for one in single_prompts(tree)], device=ids.device)  # (K, P)
        number, P = prompts.shape
        cache = DynamicCache(config=self.plain.config)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        self.plain(ids, mask, positions, use_cache=True, **{CACHE: cache})
        cache.batch_repeat_interleave(number)
        lengths = mask.sum(dim=1).repeat_interleave(number)  # (B * K,)
        positions = lengths[:, None] + torch.arange(P, device=ids.device)
        longer = torch.cat([mask.repeat_interleave(number, dim=0), torch.ones_like(positions)], dim=1)
        continued = prompts.repeat(B, 1)  # (B * K, P)
        output = self.plain(continued, longer, positions, use_cache=True, **{CACHE: cache})
        return output.last_hidden_state[:, -1].view(B, number, -1)
