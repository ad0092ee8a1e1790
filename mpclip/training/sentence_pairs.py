"""STSTrainer: fine-tunes the text side on pairs of sentences whose similarity was scored."""

import torch
from scipy.stats import spearmanr
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from torch import nn
from transformers.trainer_utils import EvalPrediction

from modeling_mpclip.contrastive_losses import diversity_loss
from modeling_mpclip.modeling_mpclip import MPCLIPOutput

from .samplers import LengthSampler
from .state_cache import TextStates
from .trainer import MPCLIPTrainer


class STSCollator:
    """Rows of `load_sts` -> texts of both sides in one batch, (2B, N), from token ids or from cached states, and `score`."""

    def __init__(self, processor, text_states: TextStates | None = None):
        self.processor, self.text_states = processor, text_states

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [row["sentence1"] for row in rows] + [row["sentence2"] for row in rows]
        batch = self.processor(text=texts, truncation=True) if self.text_states is None else self.text_states.batch(texts)
        return {**batch, "score": torch.tensor([float(row["score"]) for row in rows])}


class STSTrainer(MPCLIPTrainer):
    """Trains on an `STSCollator`'s batches; evaluation gives the Spearman correlation of cosine and score, in percent."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=spearman, **kwargs)
        self.cosent = CoSENTLoss(None)  # works on embeddings; the model is for callers that have none yet

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        output = self._embed(model, inputs)
        loss = self.cosent.compute_loss_from_embeddings(output.text_embeds.chunk(2), inputs["score"])
        config = self.accelerator.unwrap_model(model).config
        if config.diversity_weight:
            loss = loss + config.diversity_weight * diversity_loss(output.text_prompt_embeds, config.diversity_margin)
        return (loss, output) if return_outputs else loss

    def _get_train_sampler(self, *args, **kwargs):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(*args, **kwargs)
        sides = (self.train_dataset[name][:] for name in ("sentence1", "sentence2"))
        characters = [max(map(len, pair)) for pair in zip(*sides, strict=True)]
        drawn = {"seed": self.args.seed, "epoch": lambda: int(self.state.epoch or 0)}
        return LengthSampler(lambda: characters, self.args.train_batch_size, **drawn)

    def prediction_step(self, model: nn.Module, inputs: dict, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(dict(inputs))
        with torch.inference_mode(), self.compute_loss_context_manager():
            first, second = self._embed(model, inputs).text_embeds.chunk(2)  # (B, D) each
        return None, (first * second).sum(dim=1), inputs["score"]

    @staticmethod
    def _embed(model: nn.Module, inputs: dict) -> MPCLIPOutput:
        """`text_embeds` (2B, D): the first sentences, then the second."""
        return model(**{name: value for name, value in inputs.items() if name != "score"})


def spearman(prediction: EvalPrediction) -> dict[str, float]:
    """Of predictions (cosines) and label_ids (scores), in percent."""
    return {"spearman": 100.0 * float(spearmanr(prediction.predictions, prediction.label_ids).statistic)}
