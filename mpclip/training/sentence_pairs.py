"""Fine-tunes the text tower on pairs of sentences with a similarity score (STS).

The loss is CoSENT of sentence-transformers. Its SentenceTransformerTrainer and its evaluator are not used, because they give
token ids to the model. Here the frozen layers run once, and training works on their cached states.
"""

import torch
from scipy.stats import spearmanr
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers.trainer_utils import EvalPrediction

from modeling_mpclip.contrastive_losses import diversity_loss

from .collator import MPCLIPCollator
from .samplers import LengthSampler
from .trainer import MPCLIPTrainer

SIDES = ("sentence1", "sentence2")


class SentencePairCollator(MPCLIPCollator):
    """Makes a batch of B rows of `load_sts`: 2B texts, first sentences before second ones, and `score` (B,)."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [row[side] for side in SIDES for row in rows]
        return {**self.text_inputs(texts), "score": torch.tensor([float(row["score"]) for row in rows])}


class SentencePairTrainer(MPCLIPTrainer):
    """Trains on batches of a [`SentencePairCollator`]. Evaluation gives the Spearman correlation of cosine and score.

    Args:
        args, kwargs: as for [`MPCLIPTrainer`], without `compute_metrics`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=spearman, **kwargs)
        self.cosent = CoSENTLoss(None)  # None: the model is not needed, as the embeddings are given

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """CoSENT, plus the weighted diversity loss if the config has one."""
        score = inputs.pop("score")
        output = model(**inputs)
        loss = self.cosent.compute_loss_from_embeddings(output.text_embeds.chunk(2), score)
        config = self.accelerator.unwrap_model(model).config
        if config.diversity_weight:
            loss = loss + config.diversity_weight * diversity_loss(output.text_prompt_embeds, config.diversity_margin)
        return (loss, output) if return_outputs else loss

    def _get_train_sampler(self, *args, **kwargs):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(*args, **kwargs)
        sides = (self.train_dataset[name][:] for name in SIDES)
        characters = [max(map(len, pair)) for pair in zip(*sides, strict=True)]
        drawn = {"seed": self.args.seed, "epoch": lambda: int(self.state.epoch or 0)}
        return LengthSampler(lambda: characters, self.args.train_batch_size, **drawn)

    def predictions(self, dataset) -> tuple:
        """The cosine of each of the P pairs (P,), and its score (P,)."""
        texts = [text for side in SIDES for text in dataset[side][:]]
        first, second = self.encoder().texts(texts, self.args.eval_batch_size, shared=True, quiet=True).chunk(2)  # (P, D)
        return (first * second).sum(dim=1).numpy(), dataset["score"][:]


def spearman(prediction: EvalPrediction) -> dict[str, float]:
    """The Spearman correlation of predictions (cosines) and label_ids (scores), in percent."""
    return {"spearman": 100.0 * float(spearmanr(prediction.predictions, prediction.label_ids).statistic)}
