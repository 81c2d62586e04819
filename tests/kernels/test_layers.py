"""The kernels in torch's place: a model's step with them is the step without, to rounding; and torch's come back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gptlab.kernels import gelu, native
from gptlab.kernels.layers import fast_layers
from gptlab.model.gpt import GPT, Activation, GPTShape


def step(
    dtype: torch.dtype, *, checkpointing: bool = False, activation: Activation = "gelu_new"
) -> dict[str, torch.Tensor]:
    """Output and gradients of a small GPT."""
    torch.manual_seed(0)
    model = GPT(GPTShape(50, context=16, n_layer=2, n_head=2, n_embd=32, activation=activation))
    model.activation_checkpointing = checkpointing
    tokens = torch.randint(50, (3, 16))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden = model(tokens)
    hidden.float().square().sum().backward()
    return {"hidden": hidden.detach()} | {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_a_step_is_the_same_to_rounding(dtype, tolerance, checkpointing, activation):
    expected = step(dtype, activation=activation)
    with fast_layers():
        ours = step(dtype, checkpointing=checkpointing, activation=activation)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] - value).norm() <= tolerance * value.norm(), name


def test_torch_is_put_back_also_after_an_error():
    before = F.linear, F.gelu
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), fast_layers():
        F.linear(torch.zeros(2, 3), torch.zeros(2, 4))
    assert (F.linear, F.gelu) == before


@pytest.mark.skipif(native.library("gelu") is None, reason=native.reason("gelu") or "there")
def test_only_the_tanh_form_is_taken(monkeypatch):
    x = torch.randn(7, generator=torch.Generator().manual_seed(0))
    exact, tanh = F.gelu(x), F.gelu(x, approximate="tanh")
    taken = []
    monkeypatch.setattr(gelu, "gelu", lambda x, real=gelu.gelu: taken.append(x) or real(x))
    with fast_layers():
        torch.testing.assert_close(F.gelu(x), exact, rtol=0, atol=0)
        assert not taken
        torch.testing.assert_close(F.gelu(x, approximate="tanh"), tanh)
        assert len(taken) == 1
