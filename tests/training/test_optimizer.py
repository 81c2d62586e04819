"""Each optimizer is torch's own; what is tested is the grouping, and that its state survives by name."""

import pytest
import torch
import torch.nn.functional as F

from gptlab.errors import CheckpointError
from gptlab.model.gpt import GPT, GPTShape
from gptlab.training.optimizer import Optimizer, OptimizerSettings

SHAPE = GPTShape(vocab_size=31, context=8, n_layer=2, n_head=2, n_embd=8)
KINDS = ["adamw", "adam", "sgd", "nesterov", "adafactor", "muon"]


def step(model, optimizer):
    tokens = torch.arange(16).view(2, 8)
    optimizer.zero_grad()
    F.cross_entropy(model.logits(model(tokens)).flatten(0, 1), tokens.flatten()).backward()
    for part in optimizer.parts:
        part.step()


def new(kind, **settings):
    torch.manual_seed(0)
    model = GPT(SHAPE)
    return model, Optimizer(model, OptimizerSettings(kind=kind, **settings))


@pytest.mark.parametrize("kind", KINDS)
def test_state_saved_by_name_and_loaded_elsewhere_goes_on_bit_for_bit(kind):
    model, optimizer = new(kind)
    for _ in range(3):
        step(model, optimizer)
    tensors = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    other, its_optimizer = new(kind)
    other.load_state_dict(model.state_dict())
    its_optimizer.load(tensors)
    for each in ((model, optimizer), (other, its_optimizer)):
        step(*each)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_plain_sgd_is_the_formula_and_keeps_no_state():
    model, optimizer = new("sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, optimizer)
    for old, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.5 * parameter.grad)
    assert optimizer.tensors() == {}


def test_decay_acts_on_matrices_only():
    _, optimizer = new("adamw", weight_decay=0.3)
    for group in optimizer.parts[0].param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.dim() == 2 else 0.0)


def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_the_rest():
    model, optimizer = new("muon", learning_rate=1e-3, matrix_learning_rate=2e-2)
    muon, adamw = optimizer.parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    inside = {id(p) for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2}
    assert {id(p) for group in muon.param_groups for p in group["params"]} == inside
    optimizer.set_rate(0.5)
    assert muon.param_groups[0]["lr"] == 1e-2
    assert optimizer.parts[1].param_groups[0]["lr"] == 5e-4


def test_state_of_another_model_is_refused_by_name():
    model, optimizer = new("adamw")
    step(model, optimizer)
    tensors = {f"student.{name}": tensor for name, tensor in optimizer.tensors().items()}
    with pytest.raises(CheckpointError, match=r"student\."):
        new("adamw")[1].load(tensors)
