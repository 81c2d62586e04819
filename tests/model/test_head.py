"""The fused head against the plain computation, in value, gradient and memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptlab.model import head
from gptlab.model.distilled_head import summed_distillation

ROWS, TIME, WIDTH, VOCABULARY = 3, 7, 5, 11


@pytest.fixture(params=[1, 4 * VOCABULARY, 10**6], ids=["chunk of 1", "chunk of 4", "one chunk"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", request.param)


def example(dtype=torch.float64, frozen_head=False):
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, TIME, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=not frozen_head)
    targets = torch.randint(VOCABULARY, (ROWS, TIME))
    positions = torch.randperm(ROWS * TIME)[:13].sort().values
    return hidden, weight, targets, positions


def plain(hidden, weight, targets, positions):
    """log p(target) of each supervised position, from all logits at once."""
    logits = F.linear(hidden.flatten(0, 1)[positions], weight)
    return -F.cross_entropy(logits, targets.flatten()[positions], reduction="none")


def gradients(value, hidden, weight):
    return torch.autograd.grad(value, [hidden, weight])


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_and_gradients_equal_the_plain_computation(weighted):
    hidden, weight, targets, positions = example()
    weights = torch.rand(len(positions), dtype=torch.float64) if weighted else None
    fused = head.summed_cross_entropy(hidden, weight, targets, positions, weights)
    expected = -(plain(hidden, weight, targets, positions) * (1 if weights is None else weights)).sum()
    assert fused.dtype == torch.float64
    torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(fused / 7, hidden, weight), gradients(expected / 7, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("chunk")
def test_log_probs_and_gradients_equal_the_plain_computation():
    hidden, weight, targets, positions = example()
    coefficients = torch.randn(len(positions), dtype=torch.float64)  # what a DPO would know only afterwards
    fused, expected = (f(hidden, weight, targets, positions) for f in (head.target_log_probs, plain))
    torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-12)
    ours = gradients((fused * coefficients).sum(), hidden, weight)
    theirs = gradients((expected * coefficients).sum(), hidden, weight)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_frozen_head_gets_no_gradient_and_hidden_the_same_one():
    free, frozen = example(), example(frozen_head=True)
    head.summed_cross_entropy(*free).backward()
    head.summed_cross_entropy(*frozen).backward()
    assert frozen[1].grad is None
    torch.testing.assert_close(free[0].grad, frozen[0].grad)


def test_bfloat16_products_keep_a_float32_softmax():
    hidden, weight, targets, positions = example(torch.float32)
    exact = head.summed_cross_entropy(hidden, weight, targets, positions)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head.summed_cross_entropy(hidden, weight, targets, positions)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    for ours, theirs in zip(gradients(rounded, hidden, weight), gradients(exact, hidden, weight), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def as_wanted(weight):
    return weight


def transposed(weight):
    return weight.t().contiguous().t()


@pytest.mark.parametrize(
    ("hidden_as", "weight_as"),
    [
        (torch.Tensor.float, transposed),
        (torch.Tensor.double, as_wanted),
        (torch.Tensor.double, torch.Tensor.double),
        (torch.Tensor.float, torch.Tensor.bfloat16),
    ],
    ids=["transposed", "hidden float64", "both float64", "weight bfloat16"],
)
def test_under_autocast_whatever_the_kernel_does_not_take(hidden_as, weight_as):
    hidden, weight, targets, positions = example(torch.float32)
    exact = head.summed_cross_entropy(hidden, weight, targets, positions)
    other = [hidden_as(hidden.detach()).requires_grad_(), weight_as(weight.detach()).requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        found = head.summed_cross_entropy(*other, targets, positions)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
    for ours, given, wanted in zip(gradients(found, *other), other, gradients(exact, hidden, weight), strict=True):
        assert ours.dtype == given.dtype
        assert (ours - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_torchs_default_dtype_is_no_matter(precision):
    case = example(torch.float32)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = head.summed_cross_entropy(*case)
        return loss, *gradients(loss, *case[:2])

    expected = run()
    torch.set_default_dtype(torch.float64)
    try:
        assert all(map(torch.equal, run(), expected))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [VOCABULARY, -100])
def test_a_target_that_the_vocabulary_has_not_is_an_error(precision, bad):
    hidden, weight, targets, positions = example(torch.float64 if precision == torch.float64 else torch.float32)
    targets.view(-1)[positions[3]] = bad
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16),
        pytest.raises(IndexError, match=f"a target is {bad}; the vocabulary has {VOCABULARY}"),
    ):
        head.summed_cross_entropy(hidden, weight, targets, positions)


def test_no_position_supervised_is_zero_and_has_zero_gradients():
    hidden, weight, targets, _ = example()
    loss = head.summed_cross_entropy(hidden, weight, targets, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


class LargestTensor(TorchDispatchMode):
    """The elements of the largest tensor any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def distillation(hidden, weight, targets, positions):
    """Of a wider teacher."""
    teacher = torch.randn(*hidden.shape[:2], 12), torch.randn(len(weight), 12)
    return summed_distillation(hidden, weight, *teacher, targets, positions, alpha=0.5, temperature=2.0)[0]


@pytest.mark.parametrize(
    ("function", "models"), [(head.summed_cross_entropy, 1), (head.target_log_probs, 1), (distillation, 2)]
)
def test_no_vocabulary_sized_tensor_per_position_is_held(function, models, monkeypatch):
    rows, time, width, vocabulary = 4, 64, 8, 1000
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 16 * vocabulary)
    hidden = torch.randn(rows, time, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets, positions = torch.randint(vocabulary, (rows, time)), torch.arange(rows * time)
    with LargestTensor() as largest:
        function(hidden, weight, targets, positions).sum().backward()
    assert largest.elements == models * 16 * vocabulary  # the plain computation's is 256 × vocabulary
