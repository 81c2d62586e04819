"""bfloat16 linear layers against float64 on the same bfloat16 operands, and against torch's autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointError, checkpoint

from gptlab.device import Precision
from gptlab.kernels import linear, native
from gptlab.kernels.layers import fast_layers
from gptlab.model.gpt import GPT, GPTShape
from gptlab.objectives.language import LanguageObjective
from gptlab.training import loop
from gptlab.training.memory import FullRows, predict_peak_bytes
from gptlab.training.optimizer import OptimizerSettings

HALF_UNIT = 2.0**-8
"""The largest relative error of rounding to bfloat16, which has 8 significant bits."""

SHAPES = [(1, 1, 1), (7, 3, 5), (33, 65, 127), (100, 768, 130), (13, 2_000, 64), (2 * 2048 + 3, 33, 70)]
"""n, in, out: odd ones, less and more than a tile, a panel, a strip and a chunk."""

autocast = partial(torch.autocast, "cpu", torch.bfloat16)
bfloat16_linears = partial(fast_layers, ("linear",))


@pytest.fixture(autouse=True)
def needs_bfloat16() -> None:
    if not linear.supported():
        pytest.skip(f"no bfloat16 linear layers: {linear.reason()}")


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "FEWEST_ROWS", 1)
    monkeypatch.setattr(linear, "FEWEST_PRODUCTS", 1)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Case(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    dy: Tensor


class Result(NamedTuple):
    y: Tensor
    dx: Tensor | None
    d_weight: Tensor | None
    d_bias: Tensor | None


def case(n: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> Case:
    random = torch.Generator().manual_seed(n + inputs + outputs)
    x, weight, bias, dy = (
        torch.randn(shape, generator=random) for shape in ((n, inputs), (outputs, inputs), (outputs,), (n, outputs))
    )
    return Case(x.to(dtype), weight / inputs**0.5, bias, dy.bfloat16())


def run(
    case: Case,
    inside: Callable[[], AbstractContextManager[None]] = bfloat16_linears,
    frozen: str = "",
) -> Result:
    """F.linear forward and backward, `frozen` naming what needs no gradient."""
    x, weight = case.x.detach(), case.weight.detach()
    bias = None if case.bias is None else case.bias.detach()
    for name, leaf in (("x", x), ("weight", weight), ("bias", bias)):
        if leaf is not None and name not in frozen.split():
            leaf.requires_grad_()
    with inside(), autocast():
        y = F.linear(x, weight, bias)
    if y.grad_fn is not None:
        assert (y.grad_fn.name() == "_LinearBackward") == (inside is bfloat16_linears)
        y.backward(case.dy)
    return Result(y.detach(), x.grad, weight.grad, None if bias is None else bias.grad)


def exact(case: Case) -> Result:
    """In float64, of the operands as bfloat16 has them."""
    x, weight, dy = (operand.bfloat16().double() for operand in (case.x, case.weight, case.dy))
    y = x @ weight.t() + (0 if case.bias is None else case.bias.double())
    return Result(y, dy @ weight, dy.t() @ x, dy.sum(dim=0))


def assert_near(found: Tensor | None, wanted: Tensor | None, terms: int, magnitude: Tensor | None) -> None:
    """A sum of `terms` in float32 is right to terms · 2⁻²⁴ of its magnitudes', in any order; then it is rounded."""
    assert found is not None
    assert wanted is not None
    assert magnitude is not None
    rounding = HALF_UNIT if found.dtype == torch.bfloat16 else 0.0
    bound = wanted.abs() * rounding + (terms + 2) * 2.0**-24 * magnitude * (1 + rounding)
    assert bool(((found.double() - wanted).abs() <= bound).all())


def relative_error(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def same(found: Tensor | None, wanted: Tensor | None) -> bool:
    return found is wanted if found is None or wanted is None else torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, inputs, outputs = shape
    given = case(*shape, dtype)
    found, wanted = run(given), exact(given)
    sizes = exact(Case(*(None if operand is None else operand.abs() for operand in given)))  # type: ignore[arg-type]
    assert found.y.dtype == torch.bfloat16
    assert found.dx is not None
    assert found.dx.dtype == dtype
    for result, right, terms, size in zip(found, wanted, (inputs + 1, outputs, n, n), sizes, strict=True):
        assert_near(result, right, terms, size)


def test_is_nearer_to_float64_than_autocast() -> None:
    given = case(500, 256, 192)
    found, torchs, wanted = run(given), run(given, nullcontext), exact(given)
    assert relative_error(found.y, wanted.y) <= relative_error(torchs.y, wanted.y) < HALF_UNIT
    for ours, other, right in zip(found[1:], torchs[1:], wanted[1:], strict=True):
        assert relative_error(ours, right) < 1e-6  # only summed in float32, where autocast rounds to bfloat16
        assert HALF_UNIT / 3 < relative_error(other, right) < HALF_UNIT


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_change_no_bit(shape: tuple[int, int, int]) -> None:
    results = []
    for threads in (1, 2, 5, 1, 40):
        torch.set_num_threads(threads)
        results.append(run(case(*shape)))
    assert all(all(map(same, result, results[0])) for result in results)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "x weight", "weight bias", "x bias", "x weight bias"])
def test_what_is_frozen_gets_no_gradient_and_changes_none(frozen: str) -> None:
    given = case(20, 65, 33)
    everything, found = run(given), run(given, frozen=frozen)
    assert torch.equal(found.y, everything.y)
    for name, part, whole in zip(("x", "weight", "bias"), found[1:], everything[1:], strict=True):
        if name in frozen.split():
            assert part is None
        else:
            torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)


def test_without_bias_and_without_gradients() -> None:
    given = case(20, 65, 33)._replace(bias=None)
    found = run(given)
    assert found.d_bias is None
    assert_near(found.y, exact(given).y, 65, given.x.abs().double() @ given.weight.abs().double().t())
    with torch.no_grad():
        assert torch.equal(run(given, frozen="x weight").y, found.y)


def test_any_number_of_dimensions_and_any_strides() -> None:
    given = case(24, 66, 34)
    flat = run(given)
    deep = run(given._replace(x=given.x.view(2, 3, 4, 66), dy=given.dy.view(2, 3, 4, 34)))
    assert deep.y.shape == (2, 3, 4, 34)
    assert all(
        found is not None and same(found.reshape(right.shape), right)
        for found, right in zip(deep, flat, strict=True)
        if right is not None
    )
    turned = given._replace(x=given.x.t().contiguous().t(), dy=given.dy.t().contiguous().t())
    assert not turned.x.is_contiguous()
    assert all(map(same, run(turned), flat))
    one = run(given._replace(x=given.x[0], dy=given.dy[0]))
    assert torch.equal(one.y, flat.y[0])
    spread = run(given._replace(dy=given.dy[0, 0].expand(24, 34)))
    assert all(map(same, spread, run(given._replace(dy=given.dy[0, 0].repeat(24, 34)))))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_goes_where_it_belongs(bad: float) -> None:
    """Also where rows are odd: what pads them must not meet a neighbour's."""
    given = case(21, 33, 35)
    given.x[3, 32] = bad
    found = run(given)
    assert found.d_weight is not None
    assert (~found.y.isfinite()).any(dim=1).nonzero().flatten().tolist() == [3]
    assert (~found.d_weight.isfinite()).any(dim=0).nonzero().flatten().tolist() == [32]
    given = case(21, 33, 35)
    given.weight[34, 7] = bad
    found = run(given)
    assert found.dx is not None
    assert (~found.y.isfinite()).any(dim=0).nonzero().flatten().tolist() == [34]
    assert (~found.dx.isfinite()).any(dim=0).nonzero().flatten().tolist() == [7]
    given = case(21, 33, 35)
    given.dy[20, 34] = bad
    found = run(given)
    assert found.dx is not None
    assert found.d_bias is not None
    assert (~found.dx.isfinite()).any(dim=1).nonzero().flatten().tolist() == [20]
    assert (~found.d_bias.isfinite()).nonzero().flatten().tolist() == [34]


def kernel_does(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    node = F.linear(x, weight, bias).grad_fn
    return node is not None and node.name() == "_LinearBackward"


def test_everything_else_is_torchs() -> None:
    x, weight, bias = torch.randn(4, 8), torch.randn(6, 8, requires_grad=True), torch.randn(6)
    assert not kernel_does(x, weight, bias)
    with autocast():
        assert not kernel_does(x, weight, bias)
    with bfloat16_linears():
        assert not kernel_does(x, weight, bias)
        with torch.autocast("cpu", torch.float16):
            assert not kernel_does(x, weight, bias)
        with autocast():
            assert kernel_does(x, weight, bias)
            assert kernel_does(x, weight)
            assert not kernel_does(x.double(), weight.double(), bias.double())
            assert not kernel_does(x[:0], weight, bias)
            assert not kernel_does(x, weight.bfloat16(), bias)
            assert not kernel_does(x, weight.t().contiguous().t(), bias)
            assert not kernel_does(x, weight, bias.bfloat16())
            assert not kernel_does(x, weight[0])
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                F.linear(x[:, :7], weight)
            with autocast(enabled=False):
                assert not kernel_does(x, weight, bias)
    with native.torch_only("asked for"), bfloat16_linears(), autocast():
        assert not kernel_does(x, weight, bias)


def test_small_layers_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "FEWEST_ROWS", 6)
    monkeypatch.setattr(linear, "FEWEST_PRODUCTS", 6 * 8 * 10)
    x, weight = torch.randn(2, 3, 8), torch.randn(10, 8, requires_grad=True)
    with bfloat16_linears(), autocast():
        assert kernel_does(x, weight)
        assert not kernel_does(x[:, :2], torch.randn(20, 8, requires_grad=True))
        assert not kernel_does(x, weight[:9].clone())


def model_gradients(
    inside: Callable[[], AbstractContextManager[None]] = nullcontext, *, checkpointing: bool = False, bits: int = 16
) -> list[Tensor]:
    """The loss and all gradients of a small GPT-2."""
    torch.manual_seed(1)
    model = GPT(GPTShape(vocab_size=50, context=16, n_layer=2, n_head=2, n_embd=32))
    model.activation_checkpointing = checkpointing
    tokens = torch.randint(50, (3, 17))
    with inside():
        with autocast(enabled=bits == 16):
            logits = model.logits(model(tokens[:, :-1])).float()
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def test_a_model_is_as_near_to_float32_as_under_autocast() -> None:
    exactly, torchs, ours = model_gradients(bits=32), model_gradients(), model_gradients(bfloat16_linears)
    assert len(ours) == len(exactly)
    for wanted, other, found in zip(exactly, torchs, ours, strict=True):
        assert relative_error(found, wanted) < max(1.2 * relative_error(other, wanted), 1e-3)


def test_computing_again_in_backward_gives_the_same_bits() -> None:
    kept, again = (model_gradients(bfloat16_linears, checkpointing=checkpointing) for checkpointing in (False, True))
    assert all(map(torch.equal, kept, again))


def test_computing_again_elsewhere_is_an_error() -> None:
    """Outside, torch would do the second forward, and keep other tensors than the first did: it says so."""
    layer, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    with bfloat16_linears(), autocast():
        y = checkpoint(layer, x, use_reentrant=False)
    with pytest.raises(CheckpointError):
        y.sum().backward()


def test_traced_without_memory() -> None:
    with FakeTensorMode():
        given = case(6, 10, 12)
        found = run(given)
        wanted = Result(given.dy, given.x, given.weight, given.bias)
    for ours, other in zip(found, wanted, strict=True):
        assert ours is not None
        assert other is not None
        assert (ours.shape, ours.dtype) == (other.shape, other.dtype)


def test_a_step_needs_no_more_memory_than_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = GPTShape(vocab_size=300, context=64, n_layer=3, n_head=2, n_embd=64)

    def peak(inside: Callable[[], AbstractContextManager[None]]) -> int:
        monkeypatch.setattr(loop, "fast_layers", lambda names: inside())
        return predict_peak_bytes(
            lambda: GPT(shape),
            LanguageObjective,
            OptimizerSettings(),
            precision=Precision("bfloat16", torch.bfloat16, ""),
            micro_batch_size=8,
            batch_size=8,
            rows=FullRows(64),
        )

    assert peak(bfloat16_linears) < peak(nullcontext)


@pytest.mark.parametrize("shape", [(6, 10, 12), (5, 7, 9)], ids=str)
def test_the_operators_keep_torchs_rules(shape: tuple[int, int, int]) -> None:
    given = case(*shape)
    x = given.x.bfloat16()
    for operator, arguments in {
        torch.ops.gptlab.linear.default: (x, given.weight, given.bias),
        torch.ops.gptlab.linear_input_gradient.default: (given.dy, given.weight, torch.float32),
        torch.ops.gptlab.linear_weight_gradient.default: (given.dy, x),
    }.items():
        torch.library.opcheck(operator, arguments)


def test_what_the_kernel_cannot_read_is_an_error() -> None:
    x, weight, bias, dy = case(6, 10, 12)
    with pytest.raises(ValueError, match=r"input is torch\.float32"):
        torch.ops.gptlab.linear(x, weight, bias)
    with pytest.raises(ValueError, match=r"weight is .* wants torch\.float32 \(12, 10\)"):
        torch.ops.gptlab.linear(x.bfloat16(), weight[:, :9], bias)
    with pytest.raises(ValueError, match=r"weight is .* wants torch\.float32 \(11, 10\)"):
        torch.ops.gptlab.linear_input_gradient(dy[:, :11], weight, torch.float32)
    with pytest.raises(ValueError, match=r"input is .* wants torch\.bfloat16 \(6, 10\)"):
        torch.ops.gptlab.linear_weight_gradient(dy, x[:5].bfloat16())
