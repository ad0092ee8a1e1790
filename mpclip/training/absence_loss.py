"""The loss of texts that say what a picture does not show (`without_weight`, ours).

Each pair of a batch brings one more text, such as "a dog without a ball". It is true of every picture of the batch that shows a
dog and no ball, and false of all others: those that show both are what the contrastive loss does not teach. A contrastive loss
would take each text as false of all pictures but one, so this one knows which texts are true of which pictures.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

OF_TEXTS = ("text_embeds", "text_prompt_embeds", "negated_text_embeds", "negated_prompt_embeds")


def of_pairs(outputs: Mapping[str, torch.Tensor], pairs: int) -> dict[str, torch.Tensor]:
    """Embeddings and logits of the captions alone.

    Args:
        outputs: of the model, for B pictures and B + T texts of which the captions come first.
        pairs: B.
    """
    found = {name: value[:pairs] if name in OF_TEXTS else value for name, value in outputs.items()}
    return found | {"logits_per_image": outputs["logits_per_image"][:, :pairs]}  # (B, B)


def absence_loss(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Each right pair of picture and text against all that is wrong in its row, and in its column.

    The mean over right pairs of softplus(logsumexp of the wrong logits - the right one), over the pictures of a text and over
    the texts of a picture; the mean of both. Right pairs do not compete with each other.

    Args:
        logits: (T, B), texts against pictures.
        true: (T, B) bool, whether a text is true of a picture; at least one is.
    """
    logits = logits.float()
    wrong = logits.masked_fill(true, -torch.inf)  # (T, B)
    both = [F.softplus(wrong.logsumexp(dim=dim, keepdim=True) - logits)[true].mean() for dim in (1, 0)]
    return sum(both) / 2
