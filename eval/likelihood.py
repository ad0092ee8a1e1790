"""The likelihood of texts under a causal language model: what a model can tell of a text without seeing the picture."""

import torch
from torch import Tensor


class Likelihood:
    """A causal language model that judges texts alone (ours; VALSE and SugarCrepe judge texts alone likewise).

    A text begins with the tokenizer's beginning-of-text token, or its end-of-text token where it has no other, so that the
    first word counts too. What comes after the text does not count.

    Args:
        name: folder, Hub id, or packaged tower such as "smollm2-135m".
        device: torch device. The model computes in float32.

    Raises:
        ValueError: the checkpoint has not all weights of a causal language model, or its tokenizer has no token to begin with.
        OSError, ImportError: there is no such model.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from mpclip.data.backbones import resolve_backbone

        self.folder = folder = resolve_backbone(name)
        model, loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(f"{name} lacks weights of a causal language model: {', '.join(missing[:3])}")
        self.model = model.to(device).eval()
        self.device = self.model.device
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        begin = self.tokenizer.bos_token_id
        self.begin = self.tokenizer.eos_token_id if begin is None else begin
        if self.begin is None:
            raise ValueError(f"the tokenizer of {name} has neither a beginning-of-text nor an end-of-text token")

    def of(self, texts: list[str], batch_size: int = 64, cache: str | None = None, **options) -> Tensor:
        """The likelihood of texts. Equal texts are judged once.

        Args:
            texts: T texts.
            batch_size: texts per batch.
            cache: folder in which the likelihoods are kept, as embeddings are. None: they are not kept.
            options: of `mpclip.encoding.batches.in_batches`.

        Returns:
            (T, 2) float32: the log-probability of each text, in nats, and its number of tokens.
        """
        from mpclip.encoding.batches import by_length, in_batches
        from mpclip.encoding.cache import kept_parts

        distinct = by_length(texts)
        parts = kept_parts(self, cache, batch_size, judged=distinct)
        place = {text: i for i, text in enumerate(distinct)}
        found = in_batches(self._judge, distinct, batch_size, "Judging texts alone", resume=parts, **options)  # (distinct, 2)
        return found[[place[text] for text in texts]]

    def fingerprint(self) -> str:
        """As `Encoder.fingerprint`."""
        from mpclip.encoding.fingerprint import model_fingerprint

        return model_fingerprint(self.folder, self.model)

    def preparation(self) -> str:
        """As `Encoder.preparation`."""
        from mpclip.encoding.cache import tokenizer_hash

        return f"{self.begin} {tokenizer_hash(self.tokenizer)}"

    def _judge(self, texts: list[str]) -> Tensor:
        """One batch of texts -> (B, 2)."""
        ids = [[self.begin, *self.tokenizer(text, add_special_tokens=False).input_ids] for text in texts]
        longest = max(map(len, ids))
        # Padded on the right, where causal attention does not look; the id of the padding does not matter.
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=self.model.device)  # (B, N)
        lengths = torch.tensor([len(row) - 1 for row in ids], device=tokens.device)  # (B,)
        counted = torch.arange(longest - 1, device=tokens.device) < lengths[:, None]  # (B, N - 1)
        logits = self.model(tokens, attention_mask=torch.ones_like(tokens)).logits[:, :-1]  # (B, N - 1, V)
        chosen = logits.gather(2, tokens[:, 1:, None]).squeeze(2) - logits.logsumexp(dim=2)  # (B, N - 1)
        return torch.stack([chosen.where(counted, 0).sum(dim=1), lengths.to(chosen)], dim=1)  # (B, 2)
