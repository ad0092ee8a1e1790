"""Three ways to the hidden state at the end of every prompt: one masked pass, K separate passes, batched prefix caching.

All three use the weights of one LLM and give the same states. The last two use transformers' plain model, in the fastest code
that we could write for it.
"""

import inspect

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, DynamicCache, LlamaModel

from benchmarks.flop_counts import single_prompts
from benchmarks.llm_shapes import REAL, SHAPES
from modeling_mpclip import PromptTree, compile_prompt_tree, default_templates
from modeling_mpclip.prompt_tree import add_adaptive_tokens
from modeling_mpclip.text_families import text_tower_class
from mpclip.data.backbones import prepare_backbone

K, MAX_K = 6, 16  # prompts by default, and at most
# The argument of a decoder that takes its key-value cache: `cache` since transformers 5.24.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


class Contenders:
    """One LLM as transformers' plain model and as the prompted tower, with the same weights.

    Args:
        tower: `REAL`, or a name in `SHAPES` for random weights.
        device, dtype: of both models.
    """

    def __init__(self, tower: str, device: str, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        folder = prepare_backbone(REAL)  # every tower uses its tokenizer
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
        # The plain model has the [APT-i] as further rows of its embedding matrix.
        rows = torch.cat([self.plain.embed_tokens.weight[: ids[0]], self.prompted.adaptive_embedding.weight])
        self.plain.embed_tokens.weight = torch.nn.Parameter(rows, requires_grad=False)

    def tree(self, num_prompts: int = K, negated: bool = False) -> PromptTree:
        """The tree of the paper's prompts, with their negated twins if `negated`."""
        negative = default_templates(num_prompts, negated=True) if negated else []
        return compile_prompt_tree(self.tokenizer, default_templates(num_prompts), negative)

    def batch(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask of B texts, each (B, N) int64, padded on the left."""
        batch = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        return batch["input_ids"], batch["attention_mask"]

    # The contenders take ids and mask (B, N) and return (B, R, H), the final hidden state at the end of each of R prompts.

    def masked(self, ids: torch.Tensor, mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
        """One pass over text and prompt tree, under the prompt-wise mask."""
        return self.prompted(ids, mask, tree=tree, readouts=readout_columns(ids, tree)).last_hidden_state

    def separate(self, ids: torch.Tensor, mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
        """A pass of "text + prompt" for each prompt."""
        states = []
        for one in single_prompts(tree):
            prompt = torch.tensor(one.token_ids, device=ids.device).expand(len(ids), -1)  # (B, P)
            longer = torch.cat([mask, torch.ones_like(prompt)], dim=1)  # (B, N + P)
            positions = (longer.cumsum(dim=1) - 1).clamp(min=0)
            output = self.plain(torch.cat([ids, prompt], dim=1), longer, positions, use_cache=False)
            states.append(output.last_hidden_state[:, -1])
        return torch.stack(states, dim=1)

    def prefix_cached(self, ids: torch.Tensor, mask: torch.Tensor, tree: PromptTree) -> torch.Tensor:
        """One pass over the text, then a batch of B * K continuations of its key-value cache.

        The prompts must have the same number of tokens, as the K positive ones do.
        """
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


def readout_columns(ids: torch.Tensor, tree: PromptTree) -> torch.Tensor:
    """The columns at the ends of all prompts behind (B, N) token ids: (B, R)."""
    nodes = torch.tensor([*tree.readouts, *tree.negated_readouts], device=ids.device)
    return (ids.shape[1] + nodes).expand(len(ids), -1)


def check_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Refuse states (..., H) whose cosine is below 0.99, which bfloat16 does not explain.

    Raises:
        RuntimeError: they differ.
    """
    cosine = torch.nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)
    if not cosine.min() >= 0.99:  # NaN too
        raise RuntimeError(f"The contenders disagree: cosine {cosine.min():.3f}. Their times cannot be compared.")
