"""GELU in C++ against float64, in value and derivative."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gptlab.kernels import gelu, native

pytestmark = pytest.mark.skipif(native.library("gelu") is None, reason=native.reason("gelu") or "there")


def both(x, d_y):
    """(value, derivative · d_y) by the kernel, and of the same inputs in float64."""
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, y_exact = gelu.gelu(ours), F.gelu(exact, approximate="tanh")
    y.backward(d_y)
    y_exact.backward(d_y.double())
    return (y.detach().double(), ours.grad.double()), (y_exact.detach(), exact.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (17,), (3, 5, 7), (4, 1000)])
def test_value_and_derivative(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    x, d_y = ((3 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(2))
    ours, exact = both(x, d_y)
    unit = torch.finfo(dtype).eps
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=max(2 * unit, 4e-6), atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_out(dtype):
    x = torch.tensor([-1e30, -100.0, -20.0, 0.0, 20.0, 100.0, 1e30]).to(dtype)
    ours, exact = both(x[1:-1].contiguous(), torch.ones(5, dtype=dtype))
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-6)
    assert gelu.gelu(x)[-1] == x[-1]
    assert gelu.gelu(x)[0].abs() < 1e-6 * x[0].abs()
    far = torch.tensor([-math.inf, -1e38, -1e20, 1e20, 1e38, math.inf]).to(dtype).requires_grad_()
    gelu.gelu(far).backward(torch.ones(6, dtype=dtype))
    assert far.grad.tolist() == pytest.approx([0, 0, 0, 1, 1, 1], abs=1e-30)


def test_not_a_number_stays_one():
    x = torch.tensor([1.0, math.nan, 2.0], requires_grad=True)
    y = gelu.gelu(x)
    y.sum().backward()
    assert y.isnan().tolist() == x.grad.isnan().tolist() == [False, True, False]


def test_a_tensor_that_is_not_contiguous():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).t()
    torch.testing.assert_close(gelu.gelu(x), F.gelu(x, approximate="tanh"))


def test_what_is_taken():
    assert gelu.supported()
    assert gelu.takes(torch.zeros(3))
    assert not gelu.takes(torch.zeros(3, dtype=torch.float64))
    assert not gelu.takes(torch.zeros(3).to_sparse())
    with native.torch_only("asked for"):
        assert not gelu.supported()


def test_the_operators_are_ones_that_torch_can_trace():
    x = torch.randn(5, 3)
    torch.library.opcheck(torch.ops.gptlab.gelu.default, (x,))
    torch.library.opcheck(torch.ops.gptlab.gelu_backward.default, (x, x))
