"""Memory that is kept from step to step never shows in a number."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from gptlab.data.batch import make_batch
from gptlab.device import Precision
from gptlab.kernels import buffers, tiles
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.head import summed_cross_entropy
from gptlab.objectives.language import LanguageObjective
from gptlab.training.loop import Engine, descend, gradients
from gptlab.training.optimizer import Optimizer, OptimizerSettings

IN_BOTH = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(buffers, "LARGE", 1)
    monkeypatch.setattr(buffers, "_kept", buffers._Kept())
    monkeypatch.setattr(tiles, "_kept", threading.local())


class Training:
    """A small model, its head tied or not, and steps of it."""

    def __init__(self, tie_head: bool, precision: torch.dtype, micro_batch_size: int = 6) -> None:
        torch.manual_seed(0)
        self.model = GPT(GPTShape(60, context=8, n_layer=1, n_head=2, n_embd=16, tie_head=tie_head))
        self.engine = Engine(
            self.model, LanguageObjective(), Optimizer(self.model, OptimizerSettings(learning_rate=1e-2)),
            torch.device("cpu"), Precision("", precision, ""), micro_batch_size, 1.0,
        )  # fmt: skip

    def step(self) -> list[torch.Tensor]:
        """The gradients of one more step."""
        tokens = torch.randint(60, (6, 9))
        gradients(self.engine, make_batch(tokens[:, :-1], tokens[:, 1:], torch.arange(6)))
        descend(self.engine)
        return [parameter.grad for parameter in self.model.parameters()]


@pytest.mark.usefixtures("everything_is_large")
@IN_BOTH
@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("micro_batch_size", [6, 2])
def test_steps_are_those_without(monkeypatch, tie_head, precision, micro_batch_size):
    training = Training(tie_head, precision, micro_batch_size)
    ours = [training.step() for _ in range(4)][-1]
    assert buffers._kept.memories
    monkeypatch.setattr(buffers, "LARGE", 2**60)  # nothing is kept
    training = Training(tie_head, precision, micro_batch_size)
    expected = [training.step() for _ in range(4)][-1]
    for mine, its in zip(ours, expected, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.usefixtures("everything_is_large")
@IN_BOTH
@pytest.mark.parametrize("micro_batch_size", [6, 2])
def test_steps_share_their_memory(monkeypatch, precision, micro_batch_size):
    made = []

    class Counted(buffers._Memory):
        def __init__(self, weight):
            super().__init__(weight)
            made.append(weight.shape)

    monkeypatch.setattr(buffers, "_Memory", Counted)
    training = Training(True, precision, micro_batch_size)
    training.step()
    after_one = len(made)
    for _ in range(3):
        training.step()
    assert len(made) == after_one
    assert made.count(training.model.head_weight.shape) == buffers.MOST


@pytest.mark.usefixtures("everything_is_large")
@IN_BOTH
@pytest.mark.parametrize("tie_head", [True, False])
def test_a_gradient_that_somebody_holds_stays_as_it_is(precision, tie_head):
    training = Training(tie_head, precision)
    training.step()
    held = training.step()
    views = [gradient.detach()[0].numpy() for gradient in training.step()]  # of memory that only a view holds
    copies = [gradient.clone() for gradient in held], [view.copy() for view in views]
    for _ in range(3):
        training.step()
    assert all(map(torch.equal, held, copies[0]))
    assert all((view == copy).all() for view, copy in zip(views, copies[1], strict=True))


@pytest.mark.usefixtures("everything_is_large")
@IN_BOTH
def test_two_lookups_in_one_backward(precision):
    """As of a reward model with two texts: a tied embedding that in this backward is no output layer."""
    training = Training(True, precision)
    training.step()
    weight = training.model.wte.weight
    a, b = torch.randint(60, (2, 2, 8))

    def score(lookup) -> torch.Tensor:
        return lookup(a, weight).mul(3).sum() - lookup(b, weight).square().sum()

    wanted = torch.autograd.grad(score(F.embedding), weight)[0]
    weight.grad = None
    score(buffers.Embedding.apply).backward()
    torch.testing.assert_close(weight.grad, wanted)


@pytest.mark.usefixtures("everything_is_large")
def test_memory_goes_to_one_tensor_at_a_time():
    weight = torch.nn.Parameter(torch.ones(3, 5))
    tensors = [buffers.empty_like(weight) for _ in range(buffers.MOST + 2)]
    places = [tensor.data_ptr() for tensor in tensors]
    assert len(set(places)) == len(places)
    assert all((tensor.shape, tensor.dtype) == (weight.shape, torch.float32) for tensor in tensors)
    del tensors[1]
    assert buffers.empty_like(weight).data_ptr() == places[1]
    part = tensors[0][1:]
    del tensors[0]
    assert buffers.empty_like(weight).data_ptr() == places[1]
    del part
    assert buffers.empty_like(weight).data_ptr() == places[0]
    assert len(buffers._kept.memories[weight]) == buffers.MOST


@pytest.mark.usefixtures("everything_is_large")
def test_what_has_no_memory_is_not_kept():
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.ones(3, 5))
        assert buffers.empty_like(weight).shape == (3, 5)
        assert buffers.logits_like(weight, 7, 11).shape == (7, 11)
    assert not buffers._kept.memories
    assert not hasattr(tiles._kept, "scratch")


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_made_anew(dtype):
    weight = torch.ones(5, 3, dtype=dtype).t()
    made = buffers.empty_like(weight)
    assert (made.dtype, made.shape, made.is_contiguous()) == (dtype, weight.shape, True)
    assert not buffers._kept.memories


@pytest.mark.usefixtures("everything_is_large")
def test_what_was_kept_in_inference_serves_training():
    hidden, weight = torch.randn(1, 4, 8), torch.nn.Parameter(torch.randn(10, 8))
    targets, positions = torch.tensor([[1, 2, 9, 3]]), torch.arange(4)
    with torch.inference_mode():
        expected = summed_cross_entropy(hidden, weight, targets, positions)
    loss = summed_cross_entropy(hidden, weight, targets, positions)
    loss.backward()
    assert loss.item() == expected.item()


@pytest.mark.usefixtures("everything_is_large")
@IN_BOTH
def test_what_is_kept_goes_with_the_model(precision):
    training = Training(True, precision)
    training.step()
    assert buffers._kept.memories
    del training
    gc.collect()
    assert not buffers._kept.memories
