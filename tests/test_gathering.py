"""Several processes contrast their batches together: losses, gradients, logs and weights are those of one process.

Captions that recur are no negatives of each other, in one process and in several.
"""

import json

import pytest
import several_processes
import torch
from conftest import arguments, make_model, make_processor, make_tokenizer

from modeling_mpclip.contrastive_losses import sigmoid_contrastive_loss, softmax_contrastive_loss, total_loss
from mpclip.training import MPCLIPTrainingArguments
from mpclip.training.batch_size import batch_told, refuse_no_negatives
from mpclip.training.collator import MPCLIPCollator, WithIds

LOSSES = """
from conftest import make_model
from modeling_mpclip.contrastive_losses import total_loss
from mpclip.training import ModelArguments, prepare_tuning
from mpclip.training.gathering import of_first_process, others_gathered, others_in_ring

everything = {"negation_weight": 0.7, "diversity_weight": 0.3, "elastic_prompts": True, "adaptive_tokens": "boundary"}
CASES = [
    ("softmax", "vit", others_gathered, everything, (2, 3)),
    ("sigmoid", "vit", others_in_ring, everything | {"loss": "sigmoid"}, (2, 3)),
    ("LoRA, batch norms", "efficientnet", others_gathered, {"adaptive_tokens": "boundary"}, (2,)),
]

def compare(rank, count):
    dist.init_process_group("gloo")
    b = 3
    for name, vision, others, options, counts in CASES:
        if count not in counts:
            continue
        plain, model = (make_model(vision=vision, layers=1, **options) for _ in range(2))
        if name.startswith("LoRA"):
            tuning = ModelArguments(text_tuning="lora", lora_rank=4, vision_tuning="full")
            torch.manual_seed(1)
            plain = prepare_tuning(plain, tuning)
            torch.manual_seed(1)
            model = prepare_tuning(model, tuning)
        lora = name.startswith("LoRA")
        base, plain_base = (either.get_base_model() if lora else either for either in (model, plain))
        config = plain_base.config
        generator = torch.Generator().manual_seed(0)
        side = 64 if vision == "efficientnet" else 32
        batch = {
            "input_ids": torch.randint(3, 300, (b * count, 5), generator=generator),
            "attention_mask": torch.ones(b * count, 5, dtype=torch.long),
            "pixel_values": torch.randn(b * count, 3, side, side, generator=generator),
        }
        captions = torch.arange(b * count)
        captions[[1, b + 1]] = 0  # recurs within the first process, and in the second
        own = slice(rank * b, rank * b + b)
        # What one process drew counts: process 0 has drawn 1.
        m = of_first_process(1 + rank, torch.device("cpu")) if config.elastic_prompts else None
        assert m in (None, 1)
        assert of_first_process(None, torch.device("cpu")) is None

        def loss_of(model, base, batch, captions, *given):
            outputs = model(**batch, negated=bool(config.negation_weight))
            return total_loss(outputs, config, base.logit_scale, m, captions, *given)

        parallel = torch.nn.parallel.DistributedDataParallel(model.train())
        ours = loss_of(parallel, base, {k: v[own] for k, v in batch.items()}, captions[own], others)
        ours["loss"].backward()
        theirs = loss_of(plain.train(), plain_base, batch, captions)
        theirs["loss"].backward()
        for part, expected in theirs.items():
            mean = ours[part].detach().clone()
            dist.all_reduce(mean)
            torch.testing.assert_close(mean / count, expected.detach(), atol=1e-6, rtol=1e-6)
        compared = 0
        for (path, weight), (_, expected) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
            assert (weight.grad is None) == (expected.grad is None), (name, path)
            if weight.grad is not None:
                compared += 1
                off = (weight.grad - expected.grad).norm() / expected.grad.norm().clamp(min=1e-2)
                assert off < 5e-6, (name, path, off)  # the towers round differently in batches of other sizes
        assert compared > 10
        del parallel, ours  # a DDP object that outlives its group waits for ever
    dist.destroy_process_group()

for count in (2, 3):
    in_processes(count, compare)
"""

TRAINING = """
import json

def trained(rank, count, name, argv):
    # The weights and logs of two steps of two accumulated batches each, of four pairs in all.
    trainer = build_trainer(parse_options([*argv, "--per_device_train_batch_size", str(4 // count)]))
    assert trainer.args.world_size == count
    trainer.train()
    if rank == 0:
        out = trainer.args.output_dir
        torch.save({n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}, f"{out}/{name}.pt")
        names = ("loss", "contrastive_loss", "diversity_loss", "grad_norm", "logit_scale")
        logs = [{n: log[n] for n in names} for log in trainer.state.log_history if "loss" in log]
        open(f"{out}/{name}.json", "w").write(json.dumps(logs))
    if count > 1:
        trainer.accelerator.free_memory()
        trainer.model_wrapped = None
        dist.destroy_process_group()

out = parse_options(argv).training.output_dir
for count, name, *more in ((1, "one"), (2, "two"), (2, "chunks", "--forward_chunk", "1")):
    in_processes(count, trained, name, [*argv, *more])
    ours, one = (torch.load(f"{out}/{run}.pt") for run in (name, "one"))
    for weight, expected in one.items():
        torch.testing.assert_close(ours[weight], expected, atol=1e-6, rtol=1e-5, msg=lambda m: f"{name}, {weight}: {m}")
"""


def test_several_processes_compute_and_train_as_one(folder, tmp_path):
    """The losses and gradients of two and three processes are those of one. So are weights and logs of a training.

    The training is that of the Trainer, with gradient accumulation and plain SGD, with and without chunks.
    """
    extra = ["--gradient_accumulation_steps", "2", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
    extra += ["--load_best_model_at_end", "false", "--optim", "sgd", "--diversity_weight", "0.5", "--elastic_prompts", "true"]
    several_processes.run(LOSSES + TRAINING, tmp_path, *arguments(folder, tmp_path, *extra))
    one, *others = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two", "chunks"))
    assert len(one) == 2
    for other in others:
        for ours, theirs in zip(other, one, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1.1e-4)  # the log rounds to 4 digits


def test_equal_captions_are_no_negatives_of_each_other():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    model = make_model()
    found = total_loss({"logits_per_image": logits}, model.config, model.logit_scale, caption_ids=torch.tensor([5, 7, 5, 8]))
    rows = [[0, 1, 3], [1, 0, 2, 3], [2, 1, 3], [3, 0, 1, 2]]  # the candidates of each image and each text, its own first
    expected = [torch.logsumexp(side[b, row], 0) - side[b, b] for side in (logits, logits.T) for b, row in enumerate(rows)]
    assert found["loss"].item() == pytest.approx(sum(expected).item() / 8, rel=1e-6)
    assert found["loss"] < softmax_contrastive_loss(logits)

    model = make_model(loss="sigmoid")
    found = total_loss({"logits_per_image": logits}, model.config, model.logit_scale, caption_ids=torch.tensor([5, 7, 5, 8]))
    left_out = torch.nn.functional.softplus(logits[0, 2]) + torch.nn.functional.softplus(logits[2, 0])
    assert found["loss"].item() == pytest.approx((sigmoid_contrastive_loss(logits) - left_out / 4).item(), rel=1e-6)


def test_captions_are_told_apart_by_their_token_ids():
    """Whatever the padding, and with cached states too."""
    processor = make_processor(make_tokenizer())
    collate = WithIds(MPCLIPCollator(processor))
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)

    def ids_of(*captions: str) -> list[int]:
        return collate([{"captions": [caption], "image": image} for caption in captions])["caption_id"].tolist()

    first, second, third = ids_of("The cat sits.", "a red boat on the mat", "The cat sits.")
    assert first == third != second
    assert ids_of("The cat sits.") == [first]
    without_token_ids = collate.caption_ids({}, ["a red boat on the mat", "The cat sits."])
    assert without_token_ids.tolist() == [second, first]


def test_what_is_left_out_is_told_and_uneven_batches_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(MPCLIPTrainingArguments, "world_size", 3)
    options = {"use_cpu": True, "eval_strategy": "no", "load_best_model_at_end": False, "per_device_train_batch_size": 4}
    training = MPCLIPTrainingArguments(str(tmp_path), **options)
    refuse_no_negatives(training)
    assert batch_told(29, training) == (
        "3 processes contrast 12 pairs per step with one another; 5 of 29 examples are left out of each epoch, drawn anew"
    )
    assert batch_told(24, training).endswith("no example is left out of an epoch")
    training.dataloader_drop_last = False
    assert batch_told(29, training).endswith("7 examples are taken twice per epoch to fill the last batch")
    refuse_no_negatives(training)
    training.accelerator_config.even_batches = False
    with pytest.raises(ValueError, match="Leave dataloader_drop_last true"):
        refuse_no_negatives(training)
