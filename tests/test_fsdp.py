"""Weights that FSDP2 shards over two processes give the logits, losses, gradients and checkpoints of the whole model."""

import json

import pytest
import several_processes
from conftest import arguments
from safetensors.torch import load_file

COMPUTED = """
from conftest import enable_checkpointing, make_model
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

def compare(rank, count):
    dist.init_process_group("gloo")
    options = {"adaptive_tokens": "boundary", "loss": "sigmoid", "negation_weight": 0.5, "words": True}
    plain, model = (make_model("qwen3", "clip", **options) for _ in range(2))
    for module in [*model.modules()]:
        if isinstance(module, GradientCheckpointingLayer) or module is model.image_pooling.key:
            fully_shard(module)
    fully_shard(model)
    enable_checkpointing(model.train())

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (4, 7), generator=generator)
    mask = (torch.arange(7) < torch.tensor([7, 4, 0, 7])[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(4, 3, 32, 32, generator=generator)}
    ours, theirs = (either(**batch, return_loss=True) for either in (model, plain))
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image, atol=1e-4, rtol=1e-4)
    for output in (ours, theirs):
        output.loss.backward()
    sharded = dict(model.named_parameters())
    assert all(hasattr(weight, "full_tensor") for weight in sharded.values())
    for name, weight in plain.named_parameters():
        assert (weight.grad is None) == (sharded[name].grad is None) == (not weight.requires_grad), name
        if weight.grad is not None:
            scale = weight.grad.abs().max().clamp(min=1e-3)
            assert (sharded[name].grad.full_tensor() - weight.grad).abs().max() < 1e-3 * scale, name
    dist.destroy_process_group()

in_processes(2, compare)
"""

# accelerate shards on GPUs only. Here it is told that these processes have GPUs, but that their device is the CPU.
TRAINED = """
import json, logging
from accelerate import PartialState
from accelerate.utils import DistributedType
from mpclip.training.closed_form import solve_start
from mpclip.training.saving import save_final

def shard_on_the_cpu():
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP")
    os.environ.update(FSDP_RESHARD_AFTER_FORWARD="true", FSDP_STATE_DICT_TYPE="FULL_STATE_DICT")
    PartialState._prepare_backend = lambda self, *given: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    dist.init_process_group("gloo")

def trained(rank, count, name, resume):
    # Three steps, of four pairs in all; a checkpoint after the second one, and the final model.
    if name.startswith("fsdp"):
        shard_on_the_cpu()
    out = f"{root}/{name}"
    options = parse_options([*argv, "--per_device_train_batch_size", str(4 // count), "--output_dir", out])
    trainer, warned = build_trainer(options), []
    logging.getLogger("modeling_mpclip.shipped_code").warning = lambda *given: warned.append(str(given))
    if not resume:
        solve_start(trainer, options.model)
    trainer.train(resume_from_checkpoint=resume)
    # Processes that share the weights must evaluate the same batches at the same time.
    recall = trainer.evaluate()["eval_mean_recall"] if name in ("one", "fsdp") else None
    assert trainer.is_fsdp_enabled == name.startswith("fsdp")
    save_final(trainer, with_adapter=False)
    if rank == 0:
        logs = [log for log in trainer.state.log_history if "loss" in log]
        told = {"logs": logs, "recall": recall, "sharded": type(trainer.model).__name__.startswith("FSDP"), "warned": warned}
        open(f"{out}/told.json", "w").write(json.dumps(told))
    if count > 1:
        trainer.accelerator.free_memory()
        trainer.model_wrapped = None
        dist.destroy_process_group()

root, *argv = argv
in_processes(1, trained, "one", None)
in_processes(2, trained, "fsdp", None)
in_processes(2, trained, "fsdp_resumed", f"{root}/fsdp/checkpoint-2")
in_processes(2, trained, "ddp", None)
in_processes(1, trained, "one_resumed", f"{root}/ddp/checkpoint-2")
"""
# Groups whose gradients are nearly 0 would follow their rounding; a large epsilon makes the steps smooth.
TRAINING = [
    "--max_steps",
    "3",
    "--eval_strategy",
    "no",
    "--save_strategy",
    "steps",
    "--save_steps",
    "2",
    "--adam_epsilon",
    "1e-3",
]
TRAINING += [
    "--load_best_model_at_end",
    "false",
    "--text_tuning",
    "full",
    "--vision_tuning",
    "full",
    "--diversity_weight",
    "0.5",
    "--words",
    "true",
    "--projection_start",
    "closed_form",
]


def test_sharded_weights_compute_and_train_as_whole_ones(folder, tmp_path):
    """Through the Trainer also with DDP; and a run goes on with another number of processes."""
    several_processes.run(COMPUTED + TRAINED, tmp_path, str(tmp_path), *arguments(folder, tmp_path, *TRAINING))
    runs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/told.json")}
    assert {name for name, told in runs.items() if told["sharded"]} == {"fsdp", "fsdp_resumed"} and len(runs) == 5
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in runs}
    assert not any(told["warned"] for told in runs.values())  # the class that FSDP2 makes is no class of the user
    one = runs["one"]
    for name, told in runs.items():
        assert told["recall"] in (None, one["recall"]), name
        last = told["logs"][-1]
        for part in ("loss", "contrastive_loss", "diversity_loss", "logit_scale"):
            assert last[part] == pytest.approx(one["logs"][-1][part], rel=2e-4, abs=2e-4), (name, part)
        assert weights[name].keys() == weights["one"].keys(), name
        for path, expected in weights["one"].items():
            assert (weights[name][path] - expected).abs().max() < 2e-5 * expected.abs().max().clamp(min=0.1), (name, path)
