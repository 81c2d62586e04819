"""Which path makes a step, and that all of them say the same; the C++ itself: tests/kernels/test_decode.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from gptlab.errors import UserError
from gptlab.generation.decoder import Decoder
from gptlab.generation.engine import generate
from gptlab.generation.precision import dequantised
from gptlab.generation.sampling import Sampling
from gptlab.kernels import native
from gptlab.kernels.decode import Precision
from gptlab.model.classifier import REWARD, as_classifier
from gptlab.model.gpt import GPT
from gptlab.model.rnn import RNN, RNNShape

WINDOWS = [[1], [5, 9, 3, 60, 2, 2, 7], [8, 8]]
NATIVE = native.library("decode") is not None


@pytest.fixture(params=["C++", "torch"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "C++" and not NATIVE:
        pytest.skip(native.reason("decode"))
    with native.torch_only("asked for") if request.param == "torch" else nullcontext():
        yield request.param


@torch.no_grad()
def steps(decoder: Decoder) -> torch.Tensor:
    """The logits of four steps after the same prompts, (4, rows, vocab_size)."""
    cache, _ = decoder.read(WINDOWS, 12)
    return torch.stack([decoder.step(torch.tensor([n, n + 20, 60 - n]), cache) for n in range(4)])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.3), ("int8", 0.3)])
def test_steps_are_those_of_the_dequantised_model(
    model: GPT, path: str, precision: Precision, tolerance: float
) -> None:
    """Logits of some 10 units. Where weights are rounded, torch's path rounds activations too."""
    model.eval()
    decoder = Decoder(model, precision)
    assert (decoder.native is not None) == (path == "C++")
    with native.torch_only("the reference"):
        plain = Decoder(dequantised(model, precision))
    plain.model.eval()
    plain.read = decoder.read  # type: ignore[method-assign]  # prompts are read unrounded
    found, expected = steps(decoder), steps(plain)
    assert expected.abs().max() > 5
    tolerance = 1e-4 if path == "C++" else tolerance
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt", "rnn"])
def test_what_does_not_write_says_what_it_does(model: GPT, kind: str) -> None:
    body = model if kind == "gpt" else RNN(RNNShape(61, context=24, n_layer=1, n_embd=16, n_hidden=16))
    with pytest.raises(UserError, match=r"the model is a classifier and writes no text; gptlab\.classify asks it"):
        Decoder(as_classifier(body, ["a", "b"]))
    with pytest.raises(
        UserError, match=r"the model is a reward model and writes no text; .*samples\.reward in a recipe"
    ):
        generate(as_classifier(body, REWARD), [[1]], Sampling(greedy=True), max_new_tokens=1)


def test_the_model_itself_is_left_alone(model: GPT, path: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    steps(Decoder(model, "int8"))
    assert modules == [type(module) for module in model.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_torch_shares_what_is_no_product(model: GPT) -> None:
    with native.torch_only("asked for"):
        twin = Decoder(model, "int8")._steps
    assert twin.wte.weight is model.wte.weight
    assert twin.h[0].attn.c_attn.bias is model.h[0].attn.c_attn.bias


class Wrapped(nn.Linear):
    """Stands for an adapter: a Linear that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.skipif(not NATIVE, reason=native.reason("decode") or "there")
@torch.no_grad()
def test_only_a_plain_float32_model_takes_the_native_path(model: GPT) -> None:
    assert Decoder(model).native is not None
    model.h[1].mlp.c_fc.__class__ = Wrapped
    wrapped = Decoder(model.eval())
    assert wrapped.native is None
    cache, _ = wrapped.read([[1, 2, 3]], 5)
    logits = wrapped.step(torch.tensor([4]), cache)
    torch.testing.assert_close(logits, model.logits(model(torch.tensor([[1, 2, 3, 4]]))[:, -1]), atol=1e-4, rtol=1e-4)
    model.h[1].mlp.c_fc.__class__ = nn.Linear
    assert Decoder(model.double()).native is None


@pytest.mark.skipif(not NATIVE, reason=native.reason("decode") or "there")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@torch.no_grad()
def test_the_exact_gelu_is_left_to_torch(model: GPT, precision: Precision) -> None:
    """The C++ step computes GPT-2's own; the model says what comes out."""
    exact = GPT(dataclasses.replace(model.shape, activation="gelu")).eval()
    exact.load_state_dict(model.state_dict())
    decoder = Decoder(exact, precision)
    assert decoder.native is None
    cache, _ = decoder.read([[1, 2, 3]], 5)
    plain = dequantised(exact, precision)
    tolerance = 1e-4 if precision == "float32" else 0.3
    expected = plain.logits(plain(torch.tensor([[1, 2, 3, 4]]))[:, -1])
    torch.testing.assert_close(decoder.step(torch.tensor([4]), cache), expected, atol=tolerance, rtol=1e-4)


class Listener:
    """A hook that counts its calls and halves what the module gives, or what it is given."""

    def __init__(self) -> None:
        self.calls = 0

    def after(self, module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return output / 2

    def before(self, module: nn.Module, given: tuple[torch.Tensor]) -> torch.Tensor:
        return self.after(module, None, given[0])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("part", ["h.0.mlp", "h.1.mlp.c_fc", "ln_f", "lm_head"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_are_called_at_every_step(model: GPT, precision: Precision, part: str, when: str) -> None:
    listener, module = Listener(), model.eval().get_submodule(part)
    if when == "before":
        module.register_forward_pre_hook(listener.before)
    else:
        module.register_forward_hook(listener.after)
    decoder = Decoder(model, precision)
    assert decoder.native is None
    found = steps(decoder)
    assert listener.calls == 5  # the prompts, and four steps
    plain = Decoder(dequantised(model, precision))
    plain.read = decoder.read  # type: ignore[method-assign]  # prompts are read unrounded
    torch.testing.assert_close(found, steps(plain), atol=1e-4 if precision == "float32" else 0.3, rtol=1e-4)


@torch.no_grad()
def test_a_forward_put_on_a_module_is_called(model: GPT) -> None:
    model.eval().h[1].mlp.forward = lambda x: 0 * x  # type: ignore[method-assign]
    decoder = Decoder(model)
    cache, _ = decoder.read([[1, 2, 3]], 5)
    expected = model.logits(model(torch.tensor([[1, 2, 3, 4]]))[:, -1])
    torch.testing.assert_close(decoder.step(torch.tensor([4]), cache), expected, atol=1e-4, rtol=1e-4)


def test_why_torch_makes_the_steps_is_said(model: GPT) -> None:
    with native.torch_only("no C++ compiler"):
        assert Decoder(model).reason == "no C++ compiler"
    assert Decoder(model).reason == native.reason("decode")
    model.h[1].ln_1.register_forward_hook(lambda *_: None)
    assert Decoder(model).reason == "a module of it has a hook"
    model.h[0].mlp.c_fc.__class__ = Wrapped
    assert Decoder(model).reason == "it has a Wrapped"
    assert Decoder(model.to("meta")).reason == ""  # as on a GPU


@pytest.mark.usefixtures("path")
def test_threads_may_share_one(model: GPT) -> None:
    decoder = Decoder(model.eval())

    def write(n: int) -> list[tuple[int, ...]]:
        prompts = [[n + 1, 7 * n + 2], [n]][: 1 + n % 2]
        return [c.ids for c in generate(decoder, prompts, Sampling(greedy=True), max_new_tokens=40)]

    alone = [write(n) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert list(pool.map(write, range(6))) == alone


@torch.no_grad()
def test_a_full_cache_refuses(model: GPT, path: str) -> None:
    decoder = Decoder(model.eval())
    cache, _ = decoder.read([[1, 2], [3]], 3)
    decoder.step(torch.tensor([1, 1]), cache)
    with pytest.raises(ValueError, match="4 tokens do not fit into a cache of 3"):
        decoder.step(torch.tensor([1, 1]), cache)


@pytest.mark.usefixtures("path")
def test_an_id_that_is_none(model: GPT) -> None:
    decoder = Decoder(model)
    cache, _ = decoder.read([[1]], 3)
    with pytest.raises(IndexError):
        decoder.step(torch.tensor([61]), cache)


def test_a_precision_that_there_is_not(model: GPT) -> None:
    with pytest.raises(UserError, match="precision 'int4': wanted float32, bfloat16, int8"):
        Decoder(model, "int4")  # type: ignore[arg-type]
