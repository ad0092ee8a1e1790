"""A start in closed form: both projections solved by ridge regression on the states of the towers, not drawn at random (ours).

    pictures -> mean of their normalised tokens -> whitened principal axes (ridge.py)
    captions -> what the segments read: prompts, words -> ridge regression -> the axes of their picture
    segment k -> the D / K directions of the axes that its texts predict most of

The solution is written into the model: pooling queries of zero make the pooling a mean, its value matrix holds the axes, and
the projections hold regression and directions. So the model's own forward pass computes it, and training goes on from there.
The ridge is chosen by recall on pictures that are held out; then all pictures are used. The logit scale is the best one for
the held-out pictures.

docs/results/words.md has what it finds, beside what training finds.
"""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from eval.metrics import retrieval_compute_metrics
from modeling_mpclip.contrastive_losses import sigmoid_contrastive_loss, softmax_contrastive_loss

from .batch_size import pairs_per_process
from .collator import MPCLIPCollator
from .options import ModelArguments
from .projection_inputs import ProjectionInputs, trained
from .ridge import AXES, RIDGES, Ridge, Sums, whitened_axes

logger = logging.getLogger("train_hf")

MOST_PICTURES = 20_000  # that are looked at, with all their captions
MOST_HELD_OUT = 1_000  # pictures on which the ridge is chosen
FEWEST_HELD_OUT = 10  # with fewer, none are held out and the ridge is `RIDGE`
RIDGE = 0.1
TINY = 1e-3  # size of weights that take part in nothing yet, but must be able to learn


def solve_start(trainer, options: ModelArguments) -> dict[str, float]:
    """Solve the projections in closed form, if the options ask for it, and tell what is found.

    Args:
        trainer: [`MPCLIPTrainer`] from `build_trainer`, before training.
        options: of the model.

    Returns:
        As `solve_projections`; {} if the projections start at random.
    """
    if options.projection_start == "random":
        return {}
    solved = solve_projections(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.train_dataset,
        trainer.data_collator,
        batch_size=pairs_per_process(trainer.args),
        context=trainer.compute_loss_context_manager,
        seed=trainer.args.seed,
    )
    logger.info(
        "Closed form: %d pictures with %d texts, %.0f seconds, ridge %g%s",
        *(solved["pictures"], solved["texts"], solved["seconds"], solved["ridge"]),
        f", mean recall {solved['mean_recall']:.1f} on the pictures that were held out" if "mean_recall" in solved else "",
    )
    return solved


def refuse_closed_form(config) -> None:
    """Refuse a model that cannot hold a solution in closed form.

    Raises:
        ValueError: the image pooling is no attention pooling, the text pooling is one, or all prompts share one matrix.
    """
    if config.text_pooling == "attention":
        raise ValueError(
            "projection_start='closed_form' solves the projections from states of the frozen towers, and "
            "text_pooling='attention' puts pooling queries that are still to be learned between the two. Use another "
            "text_pooling, or leave projection_start out."
        )
    if not config.image_pooling.startswith("attention"):
        raise ValueError(
            "projection_start='closed_form' writes the principal axes of the pictures into the attention pooling, which "
            f"image_pooling={config.image_pooling!r} does not have. Use 'attention_per_prompt' or 'attention'."
        )
    if config.shared_projection:
        raise ValueError(
            "projection_start='closed_form' solves a matrix for each segment, and shared_projection=True has one for all. "
            "Leave one of them out."
        )


def solve_projections(
    model, dataset, collator: MPCLIPCollator, *, batch_size: int, context: Callable, seed: int = 0
) -> dict[str, float]:
    """Solve both projections of a model in closed form, and write them into it. All processes of a job call this.

    Args:
        model: [`MPCLIPModel`]; adapters may be around its modules.
        dataset: pictures or clips with captions, such as an `ImageTextDataset`. Its draws of captions and crops are not used.
        collator: makes the inputs, from cached states or from pixels and token ids.
        batch_size: pictures, or texts, at a time.
        context: makes the context to compute in, such as autocast.
        seed: of the draw of the pictures that are held out.

    Returns:
        `pictures`, `texts`, `ridge` and `seconds`; if some pictures were held out, also the `mean_recall` on them.

    Raises:
        ValueError: as for `refuse_closed_form`, or there are fewer than two pictures.
    """
    refuse_closed_form(model.config)
    started, was_training = time.monotonic(), model.training
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:MOST_PICTURES].tolist()
    if len(order) < 2:
        raise ValueError(f"projection_start='closed_form' needs two pictures or more, and there are {len(order)}.")
    held = min(MOST_HELD_OUT, len(order) // 10)
    held = held if held >= FEWEST_HELD_OUT else 0
    model.eval()
    try:
        with torch.no_grad():
            read = ProjectionInputs(model, collator, context)
            means, captions = read.pictures(_all_captions(dataset), order, batch_size)  # (I, C)
            centre, axes = whitened_axes(means, min(AXES, model.config.pooling_width))
            y = (means - centre) @ axes  # (I, r)
            fitted, held_out, held_texts = read.texts(captions, y, held, batch_size)
            solved, found = _best(model.config, fitted, held_out, held_texts, y[:held])
            _write(model, solved, centre, axes)
        if held:
            _fit_logits(trained(model.logit_scale), solved, held_texts, y[:held], batch_size)
    finally:
        model.train(was_training)
    texts = int(fitted[0].count) + int(held_out[0].count)
    return {"pictures": len(order), "texts": texts, **found, "seconds": round(time.monotonic() - started, 1)}


def _all_captions(dataset):
    """A copy of an `ImageTextDataset` that gives all captions of a picture, and the whole picture."""
    dataset = copy.copy(dataset)
    dataset.captions, dataset.smallest_crop, dataset.absences = "all", 1.0, None
    return dataset


# Solving ----------------------------------------------------------------------------------------------------------


@dataclass
class Solution:
    """Projections of texts and pictures to K segments of D / K dimensions.

    Attributes:
        text: (K, F, D / K), of what each segment reads.
        image: (r, K, D / K), of the axes of a picture.
    """

    text: torch.Tensor
    image: torch.Tensor

    def embeds(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised embeddings of texts, (t, n, F) -> (t, D), and of pictures, (i, r) -> (i, D)."""
        texts = torch.einsum("tkf,kfd->tkd", x.expand(-1, len(self.text), -1), self.text)  # (t, K, D/K)
        pictures = torch.einsum("ir,rkd->ikd", y, self.image)  # (i, K, D/K)
        return F.normalize(texts.flatten(1), dim=-1), F.normalize(pictures.flatten(1), dim=-1)


def solution(config, ridges: list[Ridge], strength: float) -> Solution:
    """The projections by regressions of a strength.

    Args:
        config: of the model.
        ridges: one for each segment, or one for all (joint_projection).
        strength: of the ridge.
    """
    K, d = config.num_prompts, config.projection_dim // config.num_prompts
    text, image = [], []
    for i, ridge in enumerate(ridges):
        weight = ridge.solve(strength)  # (F, r)
        directions = ridge.directions(weight)  # (r, r)
        for k in range(K) if config.joint_projection else [i]:
            # One regression for all segments: they take turns, so that each has as much of the best directions.
            own = directions[:, k::K] if config.joint_projection else directions
            own = F.pad(own[:, :d], (0, max(0, d - own.shape[1])))  # (r, d); there may be fewer directions than dimensions
            text.append(weight @ own)
            image.append(own)
    return Solution(torch.stack(text), torch.stack(image, dim=1))


def _best(
    config, fitted: list[Sums], held_out: list[Sums], held_texts: tuple[torch.Tensor, torch.Tensor], held_y: torch.Tensor
) -> tuple[Solution, dict[str, float]]:
    """The solution on all pictures, with the ridge that finds most of those that are held out; and what it is."""
    H = config.text_config.hidden_size
    widths = [H] * (config.text_width // H)
    if not len(held_y):
        return solution(config, [Ridge(sums, widths) for sums in fitted], RIDGE), {"ridge": RIDGE}
    recalls, ridges = {}, [Ridge(sums, widths) for sums in fitted]
    for strength in RIDGES:
        texts, pictures = solution(config, ridges, strength).embeds(held_texts[0], held_y)
        measured = SimpleNamespace(predictions=(pictures.numpy(), texts.numpy(), held_texts[1].numpy()))
        recalls[strength] = retrieval_compute_metrics(measured)["mean_recall"]
    best = max(recalls, key=recalls.get)
    ridges = [Ridge(a + b, widths) for a, b in zip(fitted, held_out, strict=True)]
    return solution(config, ridges, best), {"ridge": best, "mean_recall": round(recalls[best], 2)}


# Writing ----------------------------------------------------------------------------------------------------------


def _write(model, solved: Solution, centre: torch.Tensor, axes: torch.Tensor) -> None:
    """Write a solution into the weights of a model.

    Args:
        model: [`MPCLIPModel`].
        solved: its projections.
        centre, axes: (C,) and (C, r), from `whitened_axes`.
    """
    pooling, projection = trained(model.image_pooling), trained(model.image_projection)
    r, (Q, _, size) = axes.shape[1], projection.weight.shape
    pooling.queries.zero_()  # equal scores, so that the pooling is a mean
    pooling.norm.reset_parameters()
    pooling.value.weight[:r].copy_(axes.T)
    pooling.value.bias.zero_()[:r].copy_(-centre @ axes)
    nn.init.eye_(pooling.output.weight)
    for zero in (pooling.output.bias, pooling.mlp[2].weight, pooling.mlp[2].bias):
        zero.zero_()
    projection.weight.zero_()[:, :r].copy_(solved.image.flatten(1).view(r, Q, size).transpose(0, 1))
    text = trained(model.text_projection)
    # Dimensions without a direction are 0 in pictures. In texts they must not be, or no gradient would ever reach them.
    unused = ~solved.image.any(dim=0)  # (K, D/K)
    noise = torch.randn(solved.text.shape, generator=torch.Generator().manual_seed(0)) * solved.text.std() * TINY
    text.weight.copy_(torch.where(unused[:, None], noise, solved.text))


def _fit_logits(
    logit_scale: nn.Module, solved: Solution, held_texts: tuple[torch.Tensor, torch.Tensor], y: torch.Tensor, batch_size: int
) -> None:
    """Set the logit scale, and the bias of the sigmoid loss, to the best ones for the pictures that are held out.

    Args:
        logit_scale: [`LogitScale`].
        solved, held_texts, y: the solution, and the pictures with their texts.
        batch_size: pairs that are contrasted.
    """
    x, owner = held_texts
    first = torch.full((len(y),), -1).scatter_(0, owner.flip(0), torch.arange(len(owner)).flip(0))  # (i,), a text of each
    texts, pictures = solved.embeds(x[first], y)
    loss_of = softmax_contrastive_loss if logit_scale.bias is None else sigmoid_contrastive_loss
    weights = [logit_scale.log_scale, *([] if logit_scale.bias is None else [logit_scale.bias])]
    search = torch.optim.LBFGS(weights, max_iter=100, line_search_fn="strong_wolfe")
    batches = [batch for batch in torch.arange(len(y)).split(batch_size) if len(batch) > 1]

    def closure() -> torch.Tensor:
        search.zero_grad()
        similarity = ((pictures[batch] @ texts[batch].T).to(logit_scale.log_scale.device) for batch in batches)
        loss = sum(loss_of(logit_scale(one)) for one in similarity) / len(batches)
        loss.backward()
        return loss

    search.step(closure)
    search.zero_grad()
