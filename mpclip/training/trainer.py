"""MPCLIPTrainer: transformers' Trainer with the contrastive loss, a log of its parts, and retrieval as evaluation."""

import logging
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from eval.metrics import retrieval_compute_metrics
from modeling_mpclip.contrastive_losses import draw_first_prompts
from modeling_mpclip.modeling_mpclip import MPCLIPModel
from mpclip.data.image_text import ImageTextDataset
from mpclip.encoding import ModelEncoder, encode_dataset

from .absence_loss import absence_loss, of_pairs
from .batch_size import batch_told, pairs_per_process, refuse_few_examples, refuse_no_negatives
from .callbacks import BoundLogitScale, SetEpoch
from .checkpoints import fault_of_weights
from .collator import MPCLIPCollator, WithIds
from .finite import Batch, FiniteSteps, examples_named, refuse_embeddings, refuse_weights
from .gathering import of_first_process, others_gathered, others_in_ring, refuse_uneven
from .gradient_cache import in_chunks, refuse_chunks, step_in_chunks
from .hub_push import HubPusher
from .late_states import LateStates
from .samplers import GroupSampler, LengthSampler
from .sharding import is_sharded, whole
from .tiled_loss import loss_of_pairs
from .tuning import learning_rate_group
from .watch import Watch

logger = logging.getLogger("train_hf")

LOSS_PARTS = ("contrastive_loss", "diversity_loss", "negation_loss", "absence_loss")


class MPCLIPTrainer(Trainer):
    """Trains an `MPCLIPModel`, or its `PeftModel`, on pictures with captions. Evaluates recall over a whole evaluation set.

    Example:

        model = MPCLIPModel.from_pretrained_towers(text, vision)
        processor = MPCLIPProcessor.from_pretrained_towers(text, vision, model.config.all_templates)
        trainer = MPCLIPTrainer(
            model=prepare_tuning(model, ModelArguments()),  # trains the last layer and the new modules
            args=MPCLIPTrainingArguments("runs/mine"),
            train_dataset=rows.select(range(900)),  # a datasets.Dataset with the columns image and captions
            eval_dataset=rows.select(range(900, 1000)),
            processing_class=processor,
        )
        trainer.train()

    Args:
        train_dataset, eval_dataset: a `datasets.Dataset` with `image` and `captions` (a list of str per row), as from
            `load_image_text`, or an `ImageTextDataset`. Training draws one caption per picture and epoch. In evaluation every
            caption is a query for all pictures, and every picture a query for all captions.
        processing_class: the [`MPCLIPProcessor`].
        compute_metrics: gets (image_embeds (I, D), text_embeds (T, D), caption_image (T,)) as predictions. Default: recall.
        data_collator: an [`MPCLIPCollator`]. Default: one without cached states.
        eval_collator: the collator of the evaluation set, if its states are cached. Default: `data_collator`.
        train_groups: the group of each training row; `group_size` rows of a group share a batch (`GroupSampler`).
        without_weight: weight of the loss of texts on what pictures do not show, if the collator adds such (`absence_loss.py`).
        named_rows: "train" and "eval" -> the table from which messages take file names, if the data sets lack that column.
        hub_pusher: pushes to the Hub instead of Trainer.
        write_card: called as `write_card(folder, repo_id=, model=, processor=)` instead of Trainer's own model card.
        model, args, kwargs: as for `Trainer`.
    """

    # The loss is a mean over the batch of one step, so Trainer must divide it for gradient accumulation.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model=None,
        args=None,
        *,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable[[EvalPrediction], dict] = retrieval_compute_metrics,
        data_collator: MPCLIPCollator | None = None,
        eval_collator: MPCLIPCollator | None = None,
        train_groups: list | None = None,
        group_size: int = 2,
        without_weight: float = 0.0,
        named_rows: dict[str, datasets.Dataset] | None = None,
        hub_pusher: HubPusher | None = None,
        write_card: Callable | None = None,
        **kwargs,
    ):
        super().__init__(
            model,
            args,
            data_collator=data_collator or MPCLIPCollator(processing_class),
            train_dataset=_examples(train_dataset, "random", args),
            eval_dataset=_examples(eval_dataset, "all", args),
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        refuse_chunks(self, has_own_loss=type(self).compute_loss is not MPCLIPTrainer.compute_loss)
        self.late_states = None
        if in_chunks(self.args) and isinstance(self.data_collator, MPCLIPCollator):
            self.late_states = LateStates(self.data_collator)
        self.write_card = write_card
        self.eval_collator = eval_collator or self.data_collator
        self.train_groups, self.group_size, self.without_weight = train_groups, group_size, without_weight
        self.named_rows = named_rows or {}
        self.add_callback(BoundLogitScale())
        self.add_callback(SetEpoch())
        self.finite_steps = FiniteSteps(self)
        self.add_callback(self.finite_steps)
        self.watch = Watch(self) if self.args.report_to else None
        if self.watch is not None:
            self.add_callback(self.watch)
        self.hub_pusher = hub_pusher
        if hub_pusher is not None:
            self.add_callback(hub_pusher)
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._embeds: list[torch.Tensor] = []  # of the last batch: of its pictures and of its texts, (B, D) each

    # Training ---------------------------------------------------------------------------------------------------------

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Create the optimizer, with parameter groups by learning rate (`learning_rate_group`) and by weight decay."""
        if self.optimizer is None:
            model = model if model is not None else self.model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    decays = name in decayed and parameter.dim() > 1 and "_embedding" not in name
                    groups.setdefault((learning_rate_group(name), decays), []).append(parameter)
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            kwargs.pop("lr")
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "lr": getattr(self.args, rate),
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (rate, decays), parameters in groups.items()
                ],
                **kwargs,
            )
            self.optimizer.register_load_state_dict_post_hook(_moments_in_shape)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's own, with the row numbers of each batch, so that a message can name its examples, and its captions' ids."""
        refuse_no_negatives(self.args)
        refuse_few_examples(len(self.train_dataset), self.args)
        if self.args.world_size > 1 and self.is_world_process_zero():
            logger.info("%s", batch_told(len(self.train_dataset), self.args))
        collator = self.data_collator
        self.data_collator = WithIds(self.late_states or collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def training_step(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        """As `Trainer.training_step`. What [`FiniteSteps`] looks at is kept until the optimizer's step."""
        rows, self._embeds = inputs.pop("row", None), []
        if self.watch is not None:
            base = self.accelerator.unwrap_model(model)
            self.watch.saw(inputs, len(base.prompt_tree(negated=bool(base.config.negation_weight))))
        if in_chunks(self.args):
            read = dict if self.late_states is None else self.late_states.read
            loss = step_in_chunks(self, model, inputs, lambda rows: self._prepare_inputs(read(rows)))
        else:
            loss = super().training_step(model, inputs, *args, **kwargs)
        self.finite_steps.batches.append(Batch(loss, rows, self._embeds))
        return loss

    def examples_told(self, rows: list[int]) -> str:
        """Training examples as a part of a message, by the `row` numbers of their batches."""
        return examples_named(self.train_dataset, rows, self.named_rows.get("train"))

    def get_batch_samples(self, *args, **kwargs):
        """As Trainer's; the time that it takes is the time in which the model waits for data."""
        with self.watch.waiting() if self.watch is not None else nullcontext():
            return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The total loss of the config, with the negatives of all processes (gathering.py). Its parts are kept for the log.

        Pictures whose captions have the same token ids (`caption_id`) are no negatives of each other's captions. Texts on what
        is absent (`without_true`) meet the pictures of their own process alone.
        """
        caption_ids, true = inputs.get("caption_id"), inputs.get("without_true")
        arguments = {name: value for name, value in inputs.items() if name not in ("caption_id", "without_true")}
        base = self.accelerator.unwrap_model(model)
        outputs = model(**arguments, negated=bool(base.config.negation_weight))
        if true is None:
            loss = self.loss_of_embeddings(model, outputs, caption_ids)
        else:
            pairs = true.shape[1]
            absences = absence_loss(outputs["logits_per_text"][pairs:], true)
            self._parts.setdefault("absence_loss", []).append(absences.detach())
            loss = self.loss_of_embeddings(model, of_pairs(outputs, pairs), caption_ids) + self.without_weight * absences
        return (loss, outputs) if return_outputs else loss

    def loss_of_embeddings(self, model, embeds: Mapping[str, torch.Tensor], caption_ids: torch.Tensor | None) -> torch.Tensor:
        """The total loss of embeddings by their names in [`MPCLIPOutput`], 0-dimensional; `caption_ids` as for `total_loss`."""
        base = self.accelerator.unwrap_model(model)
        self._embeds = [embeds["image_embeds"].detach(), embeds["text_embeds"].detach()]
        if self.watch is not None:
            self.watch.segments = embeds["text_prompt_embeds"].detach()  # (B, K, D/K)
        first_prompts, others = draw_first_prompts(base.config, model.training), None
        if self.args.world_size > 1:
            refuse_uneven(len(embeds["text_embeds"]), pairs_per_process(self.args))
            others = others_in_ring if base.config.loss == "sigmoid" else others_gathered
            first_prompts = of_first_process(first_prompts, self.args.device)
        losses = loss_of_pairs(embeds, base.config, base.logit_scale, first_prompts, caption_ids, others, self.args.world_size)
        for part in LOSS_PARTS:
            if part in losses:
                self._parts.setdefault(part, []).append(losses[part].detach())
        return losses["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log, in addition, the mean of every part of the loss since the last log, over all processes, and the logit scale."""
        if "loss" in logs:
            means = {part: torch.stack(values).mean() for part, values in self._parts.items()}
            if means and self.args.world_size > 1:
                means = self.accelerator.reduce(means, "mean")
            logs |= {part: round(mean.item(), 4) for part, mean in means.items()}
            self._parts.clear()
            scale = next(p for n, p in self.model.named_parameters() if n.endswith("log_scale") and p.requires_grad)
            logs["logit_scale"] = round(whole(scale).exp().item(), 2)
            if self.watch is not None:
                logs |= self.watch.values()
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, *args, **kwargs):
        drawn = {"seed": self.args.seed, "epoch": lambda: self.train_dataset.epoch}
        by_length = self.args.train_sampling_strategy == "group_by_length"
        if self.train_groups is not None:
            if by_length:
                raise ValueError(
                    "Batches are made by group_column or by length, not by both. Leave out group_column or "
                    "train_sampling_strategy='group_by_length'."
                )
            return GroupSampler(self.train_groups, self.group_size, **drawn)
        if by_length:
            return LengthSampler(self.train_dataset.caption_lengths, self.args.train_batch_size, **drawn)
        return super()._get_train_sampler(*args, **kwargs)

    # Evaluation -------------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """A loader that only carries the evaluation set: `evaluation_loop` makes the batches itself."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        if dataset is None:
            raise ValueError("Evaluation needs a data set, and there is none. Give the Trainer an eval_dataset.")
        return DataLoader(dataset, batch_size=self.args.eval_batch_size, collate_fn=list)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As `get_eval_dataloader`."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> EvalLoopOutput:
        """Embed the whole evaluation set with `mpclip.encoding`, as `python -m eval` does, and compute the metrics.

        The processes of a job share the work, and each gets all embeddings.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            predictions, labels = self.predictions(dataloader.dataset)
        finally:
            self.model.train(was_training)
        metrics = self.compute_metrics(EvalPrediction(predictions, labels)) if self.compute_metrics else {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions, labels, metrics, num_samples=len(dataloader.dataset))

    def predictions(self, dataset) -> tuple:
        """The arguments of `compute_metrics` for an evaluation set: predictions, and labels or None."""
        images = getattr(dataset, "clips", None) if self.eval_collator.image_states is None else range(len(dataset))
        # Processes that share the weights compute the same batches at the same time.
        options = {"shared": not is_sharded(self.model), "quiet": self.args.disable_tqdm}
        embeds = encode_dataset(self.encoder(), dataset.rows, self.args.eval_batch_size, images, **options)
        refuse_embeddings(embeds, dataset, self.named_rows.get("eval"), self.args)
        return tuple(embeds[name].numpy() for name in ("image_embeds", "text_embeds", "caption_image")), None

    def encoder(self) -> ModelEncoder:
        """An encoder of the current model, with the inputs of the evaluation collator and the precision of the training."""
        model = self.accelerator.unwrap_model(self.model)
        return ModelEncoder(
            model,
            self.processing_class,
            text_inputs=self.eval_collator.text_inputs,
            image_inputs=self.eval_collator.image_inputs,
            context=self._evaluating if is_sharded(model) else self.compute_loss_context_manager,
        )

    @contextmanager
    def _evaluating(self):
        """The context of the training for shared weights, which FSDP cannot gather in inference mode."""
        with torch.inference_mode(False), torch.no_grad(), self.compute_loss_context_manager():
            yield

    # Saving -----------------------------------------------------------------------------------------------------------

    def save_model(self, *args, **kwargs) -> None:
        """As `Trainer.save_model`, without training_args.bin. Weights that are not finite are refused with [`NotFinite`].

        That file is a pickle, which may run code when it is read, and it holds the token of the Hub. Nothing here reads it: the
        options of a run are in run.json and training.json.
        """
        refuse_weights(self.accelerator.unwrap_model(self.model), self.args)
        super().save_model(*args, **kwargs)
        if self.args.should_save:
            folder = args[0] if args else kwargs.get("output_dir")
            Path(folder or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_as_saved(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if fault := fault_of_weights(Path(self.state.best_model_checkpoint)):
            raise OSError(
                f"The best checkpoint {self.state.best_model_checkpoint} cannot be loaded: {fault}. The same command with "
                "--load_best_model_at_end false ends with the last checkpoint."
            )
        super()._load_best_model()
        self._load_as_saved(self.state.best_model_checkpoint)

    def _load_as_saved(self, checkpoint: str) -> None:
        """Load the weights of a checkpoint with `from_pretrained`.

        transformers saves ViT, CLIP and other towers under names that only `from_pretrained` translates. Trainer looks for the
        names in the model, so it would leave out the weights of a trained vision tower, with a warning.
        """
        if self._loads_as_saved:
            model = self.accelerator.unwrap_model(self.model)
            model.load_state_dict(MPCLIPModel.from_pretrained(checkpoint).state_dict())

    @property
    def _loads_as_saved(self) -> bool:
        whole = isinstance(self.accelerator.unwrap_model(self.model), MPCLIPModel)  # no adapter
        return whole and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _issue_warnings_after_load(self, load_result) -> None:
        # The warnings would be wrong where `_load_as_saved` comes next: it loads all weights, or refuses them by name.
        if not self._loads_as_saved:
            super()._issue_warnings_after_load(load_result)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the model card of this project. Trainer's own describes neither prompts nor towers."""
        if self.write_card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            model = self.accelerator.unwrap_model(self.model)
            repo_id = None if self.hub_pusher is None else self.hub_pusher.repo_id
            self.write_card(self.args.output_dir, repo_id=repo_id, model=model, processor=self.processing_class)


def _examples(dataset, captions: str, args):
    """A table of pictures and captions as an `ImageTextDataset`. Anything else is returned unchanged."""
    if not isinstance(dataset, datasets.Dataset) or "captions" not in dataset.column_names:
        return dataset
    return ImageTextDataset(dataset, captions, 0 if args is None else args.seed)


def _moments_in_shape(optimizer: torch.optim.Optimizer) -> None:
    """Give the moments of the logit scale its shape, (1,). In earlier checkpoints they are 0-dimensional, as it was."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if parameter.shape == (1,) and name != "step" and torch.is_tensor(value):
                state[name] = value.reshape(1)
