"""Memory that is kept from step to step never shows in a number."""

from __future__ import annotations

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gptlab.data.batch import make_batch
from gptlab.device import Precision
from gptlab.kernels import buffers, fused_head
from gptlab.model.gpt import GPT, GPTShape
from gptlab.objectives.language import LanguageObjective
from gptlab.training.loop import Engine, descend, gradients
from gptlab.training.optimizer import Optimizer, OptimizerSettings


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(buffers, "LARGE", 1)
    monkeypatch.setattr(buffers, "_kept", buffers._Kept())


def steps(tie_head: bool, precision: torch.dtype, micro_batch_size: int) -> GPT:
    """A small model after four steps, with the gradients of the fourth."""
    torch.manual_seed(0)
    model = GPT(GPTShape(60, context=8, n_layer=1, n_head=2, n_embd=16, tie_head=tie_head))
    optimizer = Optimizer(model, OptimizerSettings(kind="adamw", learning_rate=1e-2))
    engine = Engine(
        model, LanguageObjective(), optimizer, torch.device("cpu"), Precision("", precision, ""), micro_batch_size, 1.0
    )
    for _ in range(4):
        tokens = torch.randint(60, (6, 9))
        gradients(engine, make_batch(tokens[:, :-1], tokens[:, 1:], torch.arange(6)))
        descend(engine)
    return model


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("micro_batch_size", [6, 2])
def test_steps_are_those_of_torchs_own_embedding(monkeypatch, tie_head, precision, micro_batch_size):
    ours = steps(tie_head, precision, micro_batch_size)
    assert bool(buffers._kept.zeros) == (tie_head and precision == torch.bfloat16 and fused_head.supported())
    monkeypatch.setattr(buffers, "LARGE", 2**60)  # nothing is kept
    monkeypatch.setattr(buffers, "_kept", buffers._Kept())
    expected = steps(tie_head, precision, micro_batch_size)
    assert not buffers._kept.zeros
    for mine, its in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=0, atol=0)


@pytest.mark.usefixtures("everything_is_large")
def test_a_heads_gradient_is_given_back_and_taken_once():
    head, other = (torch.nn.Parameter(torch.ones(3, 5)) for _ in range(2))
    head.grad, other.grad = buffers.gradient_of_head(head).zero_(), torch.zeros(3, 5)
    buffers.give_back(head)
    buffers.give_back(other)  # no output layer
    assert buffers.gradient_of_head(other) is not other.grad
    assert buffers.gradient_of_head(head) is head.grad
    assert buffers.gradient_of_head(head) is not head.grad


@pytest.mark.usefixtures("everything_is_large")
def test_what_has_no_memory_is_not_kept():
    with FakeTensorMode():
        fake = torch.nn.Parameter(torch.ones(3, 5))
        fake.grad = torch.ones(3, 5)
        buffers.give_back(fake)
    buffers.give_back(torch.nn.Parameter(torch.ones(3, 5)))  # without a gradient
    assert not buffers._kept.heads


@pytest.mark.usefixtures("everything_is_large")
def test_an_embedding_alone():
    weight = torch.randn(11, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for ids in (torch.tensor([[1, 2], [2, 7]]), torch.tensor([[3, 3], [0, 10]])):
        weight.grad = None
        rows = buffers.Embedding.apply(ids, weight)
        assert torch.equal(rows, weight[ids])
        (rows * torch.arange(1.0, 5.0)).sum().backward()
        expected = torch.bincount(ids.flatten(), minlength=11)[:, None] * torch.arange(1.0, 5.0)
        assert torch.equal(weight.grad, expected)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.skipif(not fused_head.supported(), reason=fused_head.reason() or "there")
def test_a_steps_gradient_lies_where_the_last_ones_lay(monkeypatch):
    places = []

    def noting(weight, real=buffers.gradient_of_head):
        memory = real(weight)
        places.append(memory.data_ptr())  # the tensor itself, held here, would be copied by autograd
        return memory

    monkeypatch.setattr(buffers, "gradient_of_head", noting)
    steps(tie_head=True, precision=torch.bfloat16, micro_batch_size=6)
    assert places == [places[0]] * 4


@pytest.mark.usefixtures("everything_is_large")
def test_what_is_kept_goes_with_the_model():
    model = steps(tie_head=True, precision=torch.bfloat16, micro_batch_size=6)
    assert bool(buffers._kept.heads) == bool(buffers._kept.zeros) == fused_head.supported()
    del model
    gc.collect()
    assert not buffers._kept.heads
    assert not buffers._kept.zeros
