"""The fused head against float64 on the same bfloat16 inputs, and against the chunked pure-torch path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab.kernels import fused_head
from gptlab.model.head import summed_cross_entropy

ROUNDING = 2.0**-9
"""The largest relative error of rounding to bfloat16. Uniform below it, an error's mean square is ROUNDING² / 3."""


@pytest.fixture(autouse=True)
def needs_bfloat16() -> None:
    if not fused_head.supported():
        pytest.skip(f"no fused head: {fused_head.reason()}")


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(n: int, vocabulary: int, width: int, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets, and weights of either sign with zeros; the logits have a deviation of `spread`."""
    random = torch.Generator().manual_seed(n + vocabulary + width)
    hidden = torch.randn(n, width, generator=random)
    weight = torch.randn(vocabulary, width, generator=random) * spread / width**0.5
    targets = torch.randint(vocabulary, (n,), generator=random)
    targets[-1] = vocabulary - 1
    weights = torch.randn(n, generator=random)
    weights[1::5] = 0
    return hidden, weight, targets, weights


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and gradients in float64 of the inputs as bfloat16 has them."""
    h, w = (x.bfloat16().double().requires_grad_() for x in (hidden, weight))
    losses = F.cross_entropy(h @ w.t(), targets, reduction="none")
    (losses.sum() if weights is None else losses @ weights.double()).backward()
    assert h.grad is not None
    assert w.grad is not None
    return losses.detach(), h.grad, w.grad


def fused(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    d_hidden, d_weight = (torch.full(x.shape, torch.nan) for x in (hidden, weight))
    losses = fused_head.cross_entropy(hidden, weight, targets, weights, d_hidden=d_hidden, d_weight=d_weight)
    return losses, d_hidden, d_weight


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("n", "vocabulary", "width"),
    [(1, 17, 33), (7, 17, 128), (2, 5, 1), (7, 1_000, 768), (513, 1_000, 100), (65, 4_096, 33), (513, 50_257, 128)],
)
def test_equals_float64(n: int, vocabulary: int, width: int, weighted: bool) -> None:
    hidden, weight, targets, weights = inputs(n, vocabulary, width)
    case = (hidden, weight, targets, weights if weighted else None)
    losses, d_hidden, d_weight = fused(*case)
    wanted = exact(*case)
    # Sums of `width` products and of the vocabulary's exponentials in float32, and exponentials right to 3e-7.
    torch.testing.assert_close(losses.double(), wanted[0], rtol=2e-6, atol=2e-5)
    # dh: each probability is rounded once; dW: so is the scaled h it is multiplied with. The targets' shares are not.
    assert relative_error(d_hidden, wanted[1]) < ROUNDING
    assert relative_error(d_weight, wanted[2]) < 1.5 * ROUNDING


def test_is_nearer_to_float64_than_the_chunked_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one rounds the logits, an error that grows with them; here only exponentials are rounded."""
    hidden, weight, targets, weights = inputs(200, 3_000, 128)
    losses, d_hidden, d_weight = fused(hidden, weight, targets, weights)
    wanted = exact(hidden, weight, targets, weights)
    h, w = hidden[None].clone().requires_grad_(), weight.clone().requires_grad_()
    monkeypatch.setattr(fused_head, "supported", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_cross_entropy(h, w, targets[None], torch.arange(200), weights)
    loss.backward()
    assert h.grad is not None
    assert w.grad is not None
    exact_loss = wanted[0] @ weights.double()
    assert abs(losses.double() @ weights.double() - exact_loss) < abs(loss.detach() - exact_loss)
    assert relative_error(d_hidden, wanted[1]) < relative_error(h.grad[0], wanted[1]) < 10 * ROUNDING
    assert relative_error(d_weight, wanted[2]) < relative_error(w.grad, wanted[2]) < 10 * ROUNDING


def test_gradient_of_a_sure_model_keeps_its_digits() -> None:
    """Where p(target) is 1 − 1e-4, p − 1 in bfloat16 products would be rounding alone."""
    hidden, weight, targets, _ = inputs(64, 300, 64, spread=0.5)
    hidden += 14 * weight[targets] / weight[targets].square().sum(dim=1, keepdim=True)  # 14 more of the target's logit
    wanted = exact(hidden, weight, targets, None)
    losses, d_hidden, d_weight = fused(hidden, weight, targets, None)
    assert 1e-5 < wanted[0].mean() < 1e-2
    torch.testing.assert_close(losses.double(), wanted[0], rtol=1e-2, atol=2e-6)
    assert relative_error(d_hidden, wanted[1]) < 2 * ROUNDING
    assert relative_error(d_weight, wanted[2]) < 2 * ROUNDING


def test_targets_far_below_the_largest_logit() -> None:
    """exp(x − x[target]) would overflow: such positions are taken relative to their largest logit."""
    hidden, weight, targets, weights = inputs(70, 1_000, 64, spread=80.0)
    wanted = exact(hidden, weight, targets, weights)
    assert wanted[0].max() > 200
    losses, d_hidden, d_weight = fused(hidden, weight, targets, weights)
    torch.testing.assert_close(losses.double(), wanted[0], rtol=2e-6, atol=2e-4)
    assert relative_error(d_hidden, wanted[1]) < ROUNDING
    assert relative_error(d_weight, wanted[2]) < 1.5 * ROUNDING


def test_any_part_alone_is_the_same() -> None:
    hidden, weight, targets, weights = inputs(100, 1_000, 96)
    losses, d_hidden, d_weight = fused(hidden, weight, targets, weights)
    alone_hidden, alone_weight = torch.empty_like(d_hidden), torch.empty_like(d_weight)

    def run(d_hidden: Tensor | None, d_weight: Tensor | None) -> Tensor:
        return fused_head.cross_entropy(hidden, weight, targets, weights, d_hidden=d_hidden, d_weight=d_weight)

    for found in (run(alone_hidden, None), run(None, alone_weight), run(None, None)):
        assert torch.equal(found, losses)
    assert torch.equal(alone_hidden, d_hidden)
    assert torch.equal(alone_weight, d_weight)
    assert all(map(torch.equal, fused(hidden.bfloat16(), weight, targets, weights), (losses, d_hidden, d_weight)))


def test_bits_repeat_and_threads_change_only_rounding() -> None:
    case = inputs(600, 3_001, 80)
    by_threads = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        first, again = fused(*case), fused(*case)
        assert all(map(torch.equal, first, again))
        by_threads.append(first)
    alone = by_threads[0]
    for several in by_threads[1:]:
        # dW more than the others: a total's last bit sends a scaled h here and there to the other bfloat16.
        for found, wanted, bound in zip(several, alone, (1e-6, 1e-6, ROUNDING / 10), strict=True):
            assert relative_error(found, wanted) < bound


def test_more_threads_than_words() -> None:
    torch.set_num_threads(8)
    case = inputs(3, 7, 20)
    for found, wanted in zip(fused(*case), exact(*case), strict=True):
        assert relative_error(found, wanted) < 1.5 * ROUNDING


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    hidden, weight, targets, _ = inputs(40, 500, 64)
    sound = fused(hidden, weight, targets, None)[0]
    hidden[3, 5] = bad
    losses, d_hidden, d_weight = fused(hidden, weight, targets, None)
    assert losses.isnan().nonzero().flatten().tolist() == [3]
    assert d_hidden.isnan().any(dim=1).nonzero().flatten().tolist() == [3]
    assert d_weight.isnan().any()
    hidden, weight, targets, _ = inputs(40, 500, 64)
    weight[7, 0] = bad
    losses, d_hidden, d_weight = fused(hidden, weight, targets, None)
    impossible = (hidden[:, 0] * bad == -torch.inf) & (targets != 7)  # as in torch the word then has no probability
    assert torch.equal(losses.isnan(), ~impossible)
    torch.testing.assert_close(losses[impossible], sound[impossible], rtol=0.1, atol=0)
    assert d_hidden.isnan().any(dim=1).all()
    assert d_weight[7].isnan().any()


def test_no_positions_give_no_gradient() -> None:
    hidden, weight, targets, _ = inputs(4, 50, 16)
    losses, d_hidden, d_weight = fused(hidden[:0], weight, targets[:0], None)
    assert losses.shape == (0,)
    assert d_hidden.shape == (0, 16)
    assert not d_weight.any()


def test_what_the_kernel_cannot_read_is_an_error() -> None:
    hidden, weight, targets, weights = inputs(4, 50, 16)
    with pytest.raises(IndexError, match="a target is 50; the vocabulary has 50"):
        fused(hidden, weight, targets + 1, None)
    with pytest.raises(IndexError, match="a target is -100"):
        fused(hidden, weight, torch.full_like(targets, -100), None)
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16"):
        fused(hidden, weight.bfloat16(), targets, None)
    with pytest.raises(ValueError, match=r"hidden is .* strides \(1, 4\)"):
        fused(hidden.t().contiguous().t(), weight, targets, None)
    with pytest.raises(ValueError, match=r"weights is torch\.float32 \(3,\)"):
        fused(hidden, weight, targets, weights[:3])
