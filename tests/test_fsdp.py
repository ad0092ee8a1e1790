"""Weights that FSDP2 shards over two processes give the logits, the loss and the gradients of the whole model."""

import os
import socket
from pathlib import Path

import fresh_process

SCRIPT = """
import sys
repository = sys.argv[1]
sys.path[:0] = [repository, repository + "/tests"]
import torch
from conftest import enable_checkpointing, make_model
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

torch.distributed.init_process_group("gloo")
options = {"adaptive_tokens": "boundary", "loss": "sigmoid", "negation_weight": 0.5}
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
torch.distributed.destroy_process_group()
"""


def test_sharded_weights_compute_as_whole_ones(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    given = (str(Path(__file__).parent.parent),)
    ranks = [fresh_process.start(SCRIPT, tmp_path, job | {"RANK": rank, "LOCAL_RANK": rank}, given) for rank in ("0", "1")]
    for run in [rank.wait() for rank in ranks]:
        assert run.returncode == 0, run.stderr[-3000:]
