"""Scale and bias are vectors of one element; checkpoints, adapters and optimizers in which they are numbers load."""

import warnings

import pytest
import torch
from conftest import arguments, make_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_mpclip import MPCLIPModel
from modeling_mpclip.logit_scale import LogitScale
from mpclip.encoding.fingerprint import model_fingerprint
from mpclip.training import build_trainer, parse_options

WEIGHTS = {"logit_scale.log_scale": 1.25, "logit_scale.bias": -3.5}


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_logits_have_the_shape_of_the_similarities(shape):
    scale = LogitScale(has_bias=True)
    with torch.no_grad():
        scale.log_scale.fill_(0.5)
        scale.bias.fill_(2.0)
    similarity = torch.rand(shape)
    torch.testing.assert_close(scale(similarity), similarity * torch.tensor(0.5).exp() + 2)
    assert [weight.shape for weight in scale.parameters()] == [(1,), (1,)]


def as_before(file) -> None:
    """Write scale and bias of a safetensors file as the numbers that they were."""
    weights = load_file(file)
    found = [name for name in weights if "logit_scale" in name]
    assert len(found) == 2 and all(weights[name].shape == (1,) for name in found)
    save_file(weights | {name: weights[name].reshape(()) for name in found}, file, metadata={"format": "pt"})


@pytest.fixture
def earlier(tmp_path):
    """A folder of a model whose scale and bias are numbers; trained ones, not the initial values."""
    model = make_model(loss="sigmoid")
    model.load_state_dict({name: torch.tensor(value) for name, value in WEIGHTS.items()}, strict=False)
    model.save_pretrained(tmp_path / "model")
    as_before(tmp_path / "model" / "model.safetensors")
    return tmp_path / "model"


def values(model) -> dict[str, float]:
    return {name: model.get_parameter(name).item() for name in WEIGHTS}


@pytest.mark.parametrize("load", [MPCLIPModel.from_pretrained, AutoModel.from_pretrained])
def test_an_earlier_checkpoint_loads_without_a_word_and_is_saved_in_the_new_form(earlier, tmp_path, load, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = load(earlier, output_loading_info=True)
    assert values(model) == WEIGHTS and not caplog.text
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert values(MPCLIPModel.from_pretrained(tmp_path / "again")) == WEIGHTS
    saved = [load_file(file) for file in (tmp_path / "again").glob("*.safetensors")]
    assert [weights[name].shape for name in WEIGHTS for weights in saved if name in weights] == [(1,), (1,)]


def test_weights_given_as_a_dict(earlier):
    weights = load_file(earlier / "model.safetensors")
    assert values(MPCLIPModel.from_pretrained(None, config=make_model(loss="sigmoid").config, state_dict=weights)) == WEIGHTS


def test_code_of_before_still_loads_its_own_checkpoint(earlier, monkeypatch):
    """It comes with the checkpoint, and shares a process with this code."""

    def earlier_init(self, has_bias):
        super(LogitScale, self).__init__()
        self.log_scale, self.bias = (torch.nn.Parameter(torch.empty(())) for _ in range(2))

    monkeypatch.setattr(LogitScale, "__init__", earlier_init)
    assert values(MPCLIPModel.from_pretrained(earlier)) == WEIGHTS


def test_an_earlier_adapter_goes_onto_its_base(earlier, tmp_path):
    peft = get_peft_model(
        MPCLIPModel.from_pretrained(earlier), LoraConfig(target_modules=["q_proj"], modules_to_save=["logit_scale"])
    )
    trained = peft.get_base_model().logit_scale.modules_to_save["default"]
    with torch.no_grad():
        trained.log_scale.fill_(0.25)
        trained.bias.fill_(-7.0)
    peft.save_pretrained(tmp_path / "adapter")
    as_before(tmp_path / "adapter" / "adapter_model.safetensors")
    merged = PeftModel.from_pretrained(MPCLIPModel.from_pretrained(earlier), tmp_path / "adapter").merge_and_unload()
    assert list(values(merged).values()) == [0.25, -7.0]


def test_the_fingerprint_is_that_of_before(earlier):
    model = MPCLIPModel.from_pretrained(earlier)
    now = model_fingerprint(str(earlier), model)
    for weight in model.logit_scale.parameters():
        weight.data = weight.data.reshape(())
    assert model_fingerprint(str(earlier), model) == now


def test_moments_of_before_go_on(folder, tmp_path):
    """The state of the optimizer in a checkpoint that a run goes on from."""
    trainer = build_trainer(parse_options(arguments(folder, tmp_path)))
    optimizer, scale = trainer.create_optimizer(), trainer.model.logit_scale.log_scale
    trainer.model.logit_scale(torch.rand(3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    for moments in state["state"].values():
        assert moments["exp_avg"].shape == (1,)
        moments.update({name: moments[name].reshape(()) for name in ("exp_avg", "exp_avg_sq")})
    optimizer.load_state_dict(state)
    assert optimizer.state[scale]["exp_avg"].shape == (1,) and optimizer.state[scale]["step"].shape == ()
    optimizer.step()
