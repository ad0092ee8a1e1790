"""`--torch_compile`: a compiled model trains as the plain one does. The compiler here traces and does not generate code."""

import pytest
import torch
from conftest import arguments

from mpclip.training import build_trainer, parse_options


def test_training_compiled_equals_training(folder, tmp_path):
    weights, logs = [], []
    for compiled in ([], ["--torch_compile", "true", "--torch_compile_backend", "eager"]):
        extra = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
        extra += ["--optim", "sgd", "--text_layers", "1"]
        trainer = build_trainer(parse_options(arguments(folder, tmp_path, *extra, *compiled)))
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer.train()
        assert (torch._dynamo.utils.counters["frames"]["ok"] > 0) == bool(compiled)
        weights.append({name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad})
        logs.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-6, rtol=1e-5)
