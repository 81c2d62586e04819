"""Softmax cross-entropy and its gradient in C++ and in torch, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gptlab.kernels import native
from gptlab.kernels.softmax import softmax_loss_

ROWS = 37
native_only = pytest.mark.skipif(native.library("softmax") is None, reason=native.reason("softmax") or "there")


@pytest.fixture(params=["C++", "torch"])
def path(request):
    """Which of the two does the work."""
    if request.param == "torch":
        with native.torch_only("asked for"):
            yield request.param
    elif native.library("softmax") is None:
        pytest.skip(native.reason("softmax"))
    else:
        yield request.param


def example(vocabulary: int, dtype: torch.dtype, spread: float = 4.0):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (spread * torch.randn(ROWS, vocabulary, generator=generator)).to(dtype)
    targets = torch.randint(vocabulary, (ROWS,), generator=generator)
    weights = torch.randn(ROWS, generator=generator)  # negative ones too: those of log-probabilities
    return logits, targets, weights


def reference(logits, targets, weights):
    """Losses and the gradient of Σ weights · loss, in float64."""
    exact = logits.double().requires_grad_()
    losses = F.cross_entropy(exact, targets, reduction="none")
    (losses * weights.double()).sum().backward()
    return losses.detach(), exact.grad


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("vocabulary", [1, 17, 4096, 50_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_and_gradient(vocabulary, dtype, weighted):
    logits, targets, weights = example(vocabulary, dtype)
    weights = weights if weighted else torch.ones(ROWS)
    losses, gradient = reference(logits, targets, weights)
    ours = softmax_loss_(logits, targets, weights if weighted else None, gradient=True)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), losses, rtol=1e-6, atol=2e-6)
    # A gradient is at most |weight|; its rounding is that of its dtype, half a unit in the last place.
    unit = torch.finfo(dtype).eps
    bound = (gradient.abs() * unit + 2e-6 * weights.abs()[:, None].double()).clamp_min(1e-12)
    assert ((logits.double() - gradient).abs() <= bound).all()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e38, 0.0, 3e38], [-math.inf, 0.0, 0.0]]).to(dtype)
    targets = torch.tensor([0, 2, 1])
    losses, gradient = reference(logits, targets, torch.ones(3))
    ours = softmax_loss_(logits, targets, None, gradient=True)
    torch.testing.assert_close(ours.double(), losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.double(), gradient, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    logits = torch.zeros(2, 1000)
    logits[1, 500] = bad
    losses = softmax_loss_(logits, torch.tensor([3, 3]), None, gradient=True)
    assert losses[0].isfinite()
    assert not losses[1].isfinite()
    assert logits[0].isfinite().all()
    assert not logits[1].isfinite().all()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [10, 11, -1, -100])
def test_a_target_outside_of_the_vocabulary_is_an_error_and_writes_nothing(dtype, bad):
    everything = torch.ones(6, 10, dtype=dtype)
    with pytest.raises(IndexError, match=f"a target is {bad}; the vocabulary has 10"):
        softmax_loss_(everything[2:4], torch.tensor([3, bad]), None, gradient=True)
    assert (everything == 1).all()


@pytest.mark.usefixtures("path")
def test_what_cannot_be_read_is_an_error():
    logits, targets, weights = example(10, torch.float32)
    before = logits.clone()
    for bad, message in {
        (logits, targets.int(), weights): r"targets is torch\.int32",
        (logits, targets[:-1], weights): r"targets is .*\(36,\).* wants torch\.int64 \(37,\)",
        (logits, targets[:, None], weights): r"targets is .*\(37, 1\)",
        (logits, targets, weights[:-1]): r"weights is .*\(36,\)",
        (logits.t().contiguous().t(), targets, weights): r"logits is .* strides \(1, 37\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            softmax_loss_(*bad, gradient=True)
    assert torch.equal(logits, before)


@pytest.mark.usefixtures("path")
def test_targets_and_weights_may_have_any_strides_and_weights_any_dtype():
    logits, targets, weights = example(10, torch.float32)
    plain, spread = logits.clone(), logits.clone()
    expected = softmax_loss_(plain, targets, weights, gradient=True)
    targets, weights = (torch.stack([x, x], dim=1)[:, 0] for x in (targets, weights.double()))
    assert torch.equal(softmax_loss_(spread, targets, weights, gradient=True), expected)
    assert torch.equal(spread, plain)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_no_rows_have_no_losses(dtype):
    losses = softmax_loss_(torch.zeros(0, 10, dtype=dtype), torch.zeros(0, dtype=torch.int64), None, gradient=True)
    assert losses.shape == (0,)
    assert losses.dtype == torch.promote_types(dtype, torch.float32)


@native_only
def test_the_number_of_threads_changes_nothing(monkeypatch):
    results = []
    for threads in (1, 2, 5, 64):  # more threads than rows too
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        logits, targets, weights = example(1000, torch.float32)
        results.append((softmax_loss_(logits, targets, weights, gradient=True), logits))
    for losses, logits in results[1:]:
        assert torch.equal(losses, results[0][0])
        assert torch.equal(logits, results[0][1])


@pytest.mark.usefixtures("path")
def test_without_the_gradient_the_loss_is_the_same():
    logits, targets, _ = example(1000, torch.bfloat16)
    with_gradient = softmax_loss_(logits.clone(), targets, None, gradient=True)
    assert torch.equal(softmax_loss_(logits, targets, None, gradient=False), with_gradient)


def test_the_operator_is_one_that_torch_can_trace():
    logits, targets, weights = example(100, torch.bfloat16)
    torch.library.opcheck(torch.ops.gptlab.softmax_loss_.default, (logits, targets, weights, True))
